"""A backbone with one task's LoRA in its weights, as a Hugging Face folder that needs nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from tagi_lightning.backbones.base import Backbone
from tagi_lightning.backbones.loading import refuse_float16
from tagi_lightning.lora import LoraWeights
from tagi_lightning.peft_io.folders import (
    CARD,
    AdapterFolderError,
    check_float32,
    check_single,
    difference,
    new_folder,
    plain_model,
)

TOLERANCE = 1e-4
"""Largest relative difference of logits between merged and added updates, in float32."""


def merge_to_folder(
    backbone: Backbone,
    lora: LoraWeights,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str = "",
    overwrite: bool = False,
) -> None:
    """Writes a whole model: the update is added in float32, compared, and only then cast.

    Args:
        backbone: The model, in float32.
        lora: The adapter of one task.
        folder: The folder to make.
        dtype: Type of the weights that are written.
        tokenizer: Saved beside the weights.
        card: Text of README.md.
        overwrite: Whether to replace a folder that is already there.

    Raises:
        AdapterFolderError: If the folder is there, the merge changes the logits, or transformers does not load what
            was written.
        BackboneError: If a T5 is to be written in float16.
    """
    check_float32(backbone)
    check_single(lora)
    refuse_float16(backbone, dtype == torch.float16, "dtype=bfloat16")
    with new_folder(folder, overwrite) as made:
        merged = _merge(plain_model(backbone), lora)
        found = difference(merged, backbone, lora)
        if found > TOLERANCE:
            raise AdapterFolderError(
                f"{folder} was not written: merged, its logits differ by {found:.1e} of the largest"
            )
        merged = merged.to(dtype)  # type: ignore[arg-type]
        merged.save_pretrained(made)
        if tokenizer is not None:
            tokenizer.save_pretrained(made)
        (made / CARD).write_text(card, encoding="utf-8")
        _check_reload(made, merged, folder)


@torch.no_grad()
def _merge(plain: PreTrainedModel, lora: LoraWeights) -> PreTrainedModel:
    """Returns `plain` with the update in new tensors; the backbone's own stay as they are."""
    for site in lora.a:
        linear = plain.get_submodule(site)
        assert isinstance(linear, nn.Linear)
        linear.weight = nn.Parameter(linear.weight + lora.delta(site)[0].to(linear.weight.dtype), requires_grad=False)
    return plain


def _check_reload(made: Path, merged: PreTrainedModel, folder: Path) -> None:
    """Refuses a folder that transformers loads to other weights than were written."""
    auto = AutoModelForSeq2SeqLM if merged.config.is_encoder_decoder else AutoModelForCausalLM
    loaded = auto.from_pretrained(made, dtype=merged.dtype).state_dict()
    for name, tensor in merged.state_dict().items():
        if name not in loaded or not torch.equal(loaded[name], tensor.cpu()):
            raise AdapterFolderError(f"{folder} was not written: transformers loads other weights, e.g. {name}")
