"""What writing and reading of adapters share: folders that appear whole, transformers' own model, comparisons."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones.base import Backbone
from tagi_lightning.backbones.loading import SIZES
from tagi_lightning.lora import LoraWeights

CONFIG, WEIGHTS, REST, CARD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "tagi_adapter.safetensors",
    "README.md",
)

INSTRUCTION, ALONE = "instruction", "alone"
"""What the metadata of the weights tell: the instruction as JSON, and that nothing but LoRA belongs to it."""

PREFIX = "base_model.model."
"""Stands before a module's path in the names of PEFT's tensors."""


class AdapterFolderError(ValueError):
    """An adapter that cannot be written or read; the message names the folder, what is wrong and what to do."""


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` that takes its name where the block ends without an error.

    Raises:
        AdapterFolderError: If the folder is already there and is not to be replaced.
    """
    if folder.exists() and not overwrite:
        raise AdapterFolderError(f"{folder} is already there; name another or replace it: --overwrite true")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".adapter-", dir=folder.parent) as temporary:
        made = Path(temporary, "new")
        made.mkdir()
        yield made
        if folder.exists():
            folder.rename(Path(temporary, "old"))
        made.rename(folder)


def location(backbone: Backbone) -> str:
    """Returns where a backbone lies, for whoever loads it from any folder: an absolute path, or its id on the hub."""
    folder = Path(backbone.name).expanduser()
    is_folder = backbone.name not in SIZES and (folder / "config.json").is_file()
    return str(folder.resolve()) if is_folder else backbone.name


def check_float32(backbone: Backbone) -> None:
    """Refuses a backbone whose weights are rounded: neither a merge nor a comparison would be exact.

    Raises:
        AdapterFolderError: If it is stored in another type than float32.
    """
    if backbone.stored_digest is not None or backbone.model.dtype != torch.float32:
        stored = "int8" if backbone.stored_digest is not None else str(backbone.model.dtype).removeprefix("torch.")
        raise AdapterFolderError(
            f"{backbone.name} is loaded in {stored}, in which adapters cannot be checked; load it with "
            "dtype=float32 and without quantization"
        )


def check_single(lora: LoraWeights) -> None:
    """Refuses the adapters of several tasks.

    Raises:
        ValueError: If there are several.
    """
    if lora.num_tasks != 1:
        raise ValueError(f"one folder holds the adapter of one task, got {lora.num_tasks}; take one: lora.index")


def plain_model(backbone: Backbone) -> PreTrainedModel:
    """Returns transformers' own model, without anything of ours, on the very weights of `backbone`."""
    own = backbone.model
    auto = AutoModelForSeq2SeqLM if own.config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        plain: PreTrainedModel = auto.from_config(copy.deepcopy(own.config))
    plain.load_state_dict(own.state_dict(), assign=True)
    shared: dict[int, Tensor] = {}
    for name, parameter in own.named_parameters(remove_duplicate=False):  # what is tied stays tied
        parent, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(parent), leaf, shared.setdefault(id(parameter), plain.get_parameter(name)))
    for name, buffer in own.named_buffers():  # rotary frequencies are no part of the state
        parent, _, leaf = name.rpartition(".")
        plain.get_submodule(parent).register_buffer(leaf, buffer, persistent=False)
    plain.generation_config = own.generation_config
    plain.requires_grad_(False).eval()
    return plain


def sample_arguments(backbone: Backbone) -> dict[str, Tensor]:
    """Returns a few rows of random tokens as arguments of transformers' forward pass, the same every time."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(backbone.vocabulary_size, (3, 8), generator=draw).to(backbone.model.device)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return arguments | ({"decoder_input_ids": ids[:, 4:]} if backbone.model.config.is_encoder_decoder else {})


@torch.no_grad()
def difference(model: Any, backbone: Backbone, lora: LoraWeights) -> float:
    """Returns how far the logits of `model` are from those of `backbone` under `lora`, relative to the largest."""
    arguments = sample_arguments(backbone)
    tasks = torch.zeros(len(arguments["input_ids"]), dtype=torch.long, device=backbone.model.device)
    with backbone.lock:
        adapter = TaskAdapter(lora=lora).in_runs(True)
        expected = backbone.model(**arguments, adapter=adapter, task_index=tasks).logits
    found = model(**arguments).logits
    return float((found - expected).abs().max() / expected.abs().max())
