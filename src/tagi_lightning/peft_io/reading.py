"""PEFT's LoRA folders as `LoraWeights`, whoever made them, and whole adapters as they were exported."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tagi_lightning.adapter import InstructionStates, PreparedAdapter
from tagi_lightning.backbones.base import Backbone
from tagi_lightning.data.instruction import Instruction, instruction_of_row
from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import shortened
from tagi_lightning.fusion import FusionStates
from tagi_lightning.lora import LoraConfig, LoraSite, LoraWeights
from tagi_lightning.model import TagiModel
from tagi_lightning.peft_io.folders import ALONE, CONFIG, INSTRUCTION, PREFIX, REST, WEIGHTS, AdapterFolderError
from tagi_lightning.prefix import PrefixWeights

REST_NAME = re.compile(r"(fusion|memory)\.(mask|states|(keys|values)\.\d+)|prefix\.(keys|values)\..+")
"""Names of what PEFT cannot hold."""

UNSUPPORTED = (
    *("alpha_pattern", "rank_pattern", "layer_replication", "alora_invocation_tokens", "use_dora"),
    *("use_qalora", "use_bdlora", "arrow_config", "velora_config", "kasa_config", "monteclora_config"),
)
"""Options of PEFT that change what A and B mean."""


def read_lora(folder: Path, backbone: Backbone) -> LoraWeights:
    """Reads a LoRA folder of PEFT as the adapter of one task, float32 and on the backbone's device.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors.
        backbone: The model it belongs to.

    Raises:
        AdapterFolderError: If files are missing or damaged, or the adapter is not plain LoRA on this backbone's
            attention.
    """
    config = _read_config(folder)
    tensors, metadata = _read_tensors(folder / WEIGHTS)
    if metadata.get("backbone_digest", backbone.digest()) != backbone.digest():
        raise AdapterFolderError(
            f"{folder} was made for backbone {shortened(repr(config.get('base_model_name_or_path')))}, and "
            f"{backbone.name!r} has other weights; load the same backbone or make the adapter again"
        )
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    every = backbone.sites(LoraConfig(rank=rank, targets=("q", "k", "v", "o")))
    a, b = _factors(folder, tensors, every, rank)
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    device = backbone.model.device
    return LoraWeights(
        {site: factor[None].to(device, torch.float32) for site, factor in a.items()},
        {site: factor[None].to(device, torch.float32) for site, factor in b.items()},
        scale,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        pickled = " (a pickled adapter_model.bin is not read: save it as safetensors)"
        more = pickled if (folder / "adapter_model.bin").exists() else ""
        raise AdapterFolderError(f"no PEFT adapter in {folder}: {CONFIG} and {WEIGHTS} are expected{more}")
    try:
        config: dict[str, Any] = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
        rank, alpha = (int(config["r"]), float(config["lora_alpha"])) if kind == "LORA" else (1, 1.0)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        told = shortened(repr(error))
        raise AdapterFolderError(f"{folder / CONFIG} is no configuration of PEFT: {told}") from error
    if kind != "LORA":
        raise AdapterFolderError(f"{folder} is a {shortened(str(kind))} adapter; supported: LORA")
    if rank < 1 or not math.isfinite(alpha):
        raise AdapterFolderError(
            f"{folder / CONFIG} names rank {rank} and lora_alpha {alpha}: at least 1, and a finite number, are allowed"
        )
    if used := [name for name in UNSUPPORTED if config.get(name)]:
        raise AdapterFolderError(f"{folder} uses {', '.join(used)}; supported: LoRA of one rank and one alpha")
    return config


def _read_metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except Exception as error:  # safetensors raises what it meets in a header
        raise AdapterFolderError(f"{file} is damaged: {shortened(str(error))}; make it again") from error


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    metadata = _read_metadata(file)
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises what it meets in a header
        raise AdapterFolderError(f"{file} is damaged: {shortened(str(error))}; make it again") from error
    for name, tensor in tensors.items():
        if tensor.is_complex() or not tensor.float().isfinite().all():
            raise AdapterFolderError(f"{file} is damaged: {shortened(name)} holds no finite numbers; make it again")
    return tensors, metadata


def _factors(
    folder: Path, tensors: dict[str, Tensor], sites: tuple[LoraSite, ...], rank: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns A and B of every site that has them, in the order of `sites`.

    Raises:
        AdapterFolderError: If a tensor is no factor of a site, has another shape, or lacks its other half.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for site in sites:
        shapes[f"{PREFIX}{site.name}.lora_A.weight"] = (rank, site.in_features)
        shapes[f"{PREFIX}{site.name}.lora_B.weight"] = (site.out_features, rank)
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise AdapterFolderError(
            f"{folder} holds {shortened(unknown[0])}, which is no LoRA factor of the backbone's attention; "
            f"supported: {PREFIX}<module>.lora_A.weight and lora_B.weight of modules such as {sites[0].name}"
        )
    used = [site.name for site in sites if any(f"{PREFIX}{site.name}.lora_{part}.weight" in tensors for part in "AB")]
    if not used:
        raise AdapterFolderError(f"{folder} holds no LoRA factor at all")
    for name in (f"{PREFIX}{site}.lora_{part}.weight" for site in used for part in "AB"):
        if name not in tensors or tuple(tensors[name].shape) != shapes[name]:
            found = f"has shape {tuple(tensors[name].shape)}" if name in tensors else "is missing"
            raise AdapterFolderError(f"{folder}: {name} {found}, expected {shapes[name]}; make the adapter again")
    a, b = ({site: tensors[f"{PREFIX}{site}.lora_{part}.weight"] for site in used} for part in "AB")
    return a, b


def load_adapter(folder: Path, model: TagiModel) -> PreparedAdapter:
    """Loads an exported adapter with all that belongs to it: LoRA, fusion and memory.

    Args:
        folder: What `tagi adapt` wrote.
        model: The model that made it, whose fusion layers read the instruction's keys and values.

    Raises:
        AdapterFolderError: If it is damaged, or another model made its fusion or memory.
    """
    backbone = model.backbone
    lora = read_lora(folder, backbone)
    if not (folder / REST).is_file():
        has_rest = model.fusion is not None or model.config.decoder_memory or model.config.hypernetwork.writes != "lora"
        if has_rest and ALONE not in _read_metadata(folder / WEIGHTS):
            raise AdapterFolderError(
                f"{folder} holds no {REST}, which adapters of a model with fusion, memory or prefix have"
            )
        return PreparedAdapter(lora, model_digest=model.digest())
    tensors, metadata = _read_tensors(folder / REST)
    if metadata.get("model_digest") != model.digest():
        raise AdapterFolderError(
            f"{folder / REST} was made by other weights than the present ones; run tagi adapt again"
        )
    tensors = {name: tensor.to(backbone.model.device) for name, tensor in tensors.items()}
    return adapter_from_rest(lora, tensors, model, folder / REST)


def read_instruction(folder: Path) -> Instruction | None:
    """Returns the instruction that an exported adapter was made from; None where the folder tells none.

    Args:
        folder: What `tagi adapt` wrote.

    Raises:
        AdapterFolderError: If it is damaged.
    """
    file = folder / WEIGHTS
    row = _read_metadata(file).get(INSTRUCTION)
    try:
        return None if row is None else instruction_of_row(parse_json(row))
    except ValueError as error:
        told = shortened(str(error))
        raise AdapterFolderError(f"{file} is damaged at its instruction: {told}; make it again") from error


def adapter_from_rest(lora: LoraWeights, tensors: dict[str, Tensor], model: TagiModel, source: Path) -> PreparedAdapter:
    """Returns a whole adapter of `model` from its LoRA and what `writing.rest_tensors` named of it.

    Args:
        lora: Its LoRA.
        tensors: The rest by name.
        model: The model that made it.
        source: The file that the rest stood in.

    Raises:
        AdapterFolderError: If the rest is not of such a model, or not whole.
    """
    if unknown := [name for name in tensors if not REST_NAME.fullmatch(name)]:
        raise AdapterFolderError(f"{source} holds {shortened(unknown[0])}, which is no part of an adapter")
    try:
        return _assemble(lora, tensors, model)
    except (KeyError, ValueError) as error:
        raise AdapterFolderError(f"{source} is damaged: it lacks a part ({error}); run tagi adapt again") from error


def _assemble(lora: LoraWeights, tensors: dict[str, Tensor], model: TagiModel) -> PreparedAdapter:
    fusion, memory, prefix = None, None, None
    if model.fusion is not None:
        keys, values = (_numbered(tensors, f"fusion.{part}") for part in ("keys", "values"))
        fusion = FusionStates(model.fusion.layers, keys, values, tensors["fusion.mask"])
        list(zip(model.fusion.layers, keys, values, strict=True))
    elif "fusion.mask" in tensors:
        raise ValueError("the model has no fusion")
    if "memory.mask" in tensors:
        keys, values = (_numbered(tensors, f"memory.{part}") for part in ("keys", "values"))
        pairs = tuple(zip(keys, values, strict=True))
        memory = InstructionStates(tensors["memory.states"], tensors["memory.mask"], pairs)
    if any(name.startswith("prefix.") for name in tensors):
        prefix = PrefixWeights(_named(tensors, "prefix.keys."), _named(tensors, "prefix.values."))
    return PreparedAdapter(lora, fusion, memory, prefix, model_digest=model.digest())


def _named(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with `start`, by the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _numbered(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """Returns name.0, name.1 and so on."""
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return tuple(tensors[f"{name}.{number}"] for number in range(count))
