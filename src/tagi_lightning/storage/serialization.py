"""Model folders: safetensors and a plain JSON configuration, nothing that could run code when loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tagi_lightning.backbones.base import Backbone
from tagi_lightning.backbones.loading import BackboneConfig, load_backbone
from tagi_lightning.data.instruction import InstructionPrompts
from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import shortened
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.options import fits

CONFIG, WEIGHTS = "config.json", "model.safetensors"

FIELDS: dict[str, dict[str, Any]] = {
    "tagi": {"tagi": dict, "backbone": str, "backbone_digest": str, "stages": list[str]}
    | {"prompts": dict | None, "instruction_layer": int | None},
    "teachers": {"lora": dict, "names": list[str], "backbone": str, "backbone_digest": str},
}
"""What a configuration must hold, with its types, by kind of folder."""

Config = TypeVar("Config")


class ModelFolderError(ValueError):
    """A model folder that cannot be used; the message names the folder, what is wrong and what to do."""


def from_plain(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds a configuration dataclass, nested ones included, from plain JSON types.

    Raises:
        ValueError: If a key is unknown, or a value of another type than the field.
    """
    hints = get_type_hints(kind)
    if unknown := values.keys() - hints.keys():
        raise ValueError(f"{kind.__name__} has no {shortened(', '.join(sorted(unknown)))}")
    arguments = {}
    for name, value in values.items():
        if is_dataclass(hints[name]) and isinstance(value, dict):
            value = from_plain(hints[name], value)  # type: ignore[arg-type]
        elif not fits(value, hints[name]):
            raise ValueError(f"{kind.__name__}.{name} cannot be {shortened(repr(value))}")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def write_folder(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes weights and configuration to a temporary sibling, then renames it to `folder`, replacing it."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary / WEIGHTS)
    config = {**config, "sha256": _sha256(temporary / WEIGHTS, config)}
    (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # a crash between the two renames leaves the old folder, under its other name
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sha256(weights: Path, config: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    with weights.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: sha).hexdigest()


def read_folder(folder: Path, kind: str, make: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_folder` wrote.

    Args:
        folder: The model folder.
        kind: Value of the configuration's `kind` that is expected.
        make: The command that makes such a folder.

    Raises:
        ModelFolderError: If files are missing or broken, or the folder holds something else.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelFolderError(f"no {kind} model in {folder} ({CONFIG} and {WEIGHTS} are expected); make it: {make}")
    try:
        config = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own type without a common base
        raise ModelFolderError(f"{folder} is damaged: {shortened(str(error))}; make it again: {make}") from error
    if not isinstance(config, dict) or config.get("kind") != kind:
        found = config.get("kind", "something else") if isinstance(config, dict) else "something else"
        raise ModelFolderError(f"{folder} holds {shortened(str(found))}, expected {kind}; make it: {make}")
    if config.pop("sha256", None) != _sha256(folder / WEIGHTS, config):
        raise ModelFolderError(f"{folder} is damaged: its files are not what was saved; make it again: {make}")
    if wrong := [name for name, hint in FIELDS[kind].items() if name not in config or not fits(config[name], hint)]:
        raise ModelFolderError(f"{folder / CONFIG} does not tell {', '.join(wrong)} as it must; make it again: {make}")
    return tensors, config


def check_backbone(folder: Path, config: Mapping[str, Any], backbone: Backbone) -> None:
    """Refuses a folder that was made on another backbone.

    Raises:
        ModelFolderError: If the digests of the weights differ.
    """
    if config["backbone_digest"] != backbone.digest():
        raise ModelFolderError(
            f"{folder} was trained on backbone {config['backbone']!r} ({config['backbone_digest'][:12]}), "
            f"but {backbone.name!r} ({backbone.digest()[:12]}) is loaded; use the same backbone or train again"
        )


def save_tagi(
    model: TagiModel, folder: Path, stages: tuple[str, ...] = (), prompts: InstructionPrompts | None = None
) -> None:
    """Saves what training changed, with the backbone's name and digest.

    Args:
        model: The model.
        folder: Where to; replaced if it exists.
        stages: Stages the weights passed through, in order.
        prompts: How the instructions were written that it was trained on; None where there were none.
    """
    config = {
        "kind": "tagi",
        "tagi": asdict(model.config),
        "backbone": model.backbone.name,
        "backbone_digest": model.backbone.digest(),
        "stages": list(stages),
        "prompts": asdict(prompts) if prompts is not None else None,
        "instruction_layer": getattr(model.backbone, "instruction_layer", None),
    }
    write_folder(folder, model.trained_state(), config)


def load_tagi(folder: Path, config: BackboneConfig, frozen: Backbone | None = None) -> TagiModel:
    """Loads a model saved by `save_tagi` on the backbone that it was trained on.

    One whose backbone trained gets a copy of its own, read in float32 and then stored in the type of `config`, without
    its quantisation.

    Args:
        folder: The model folder.
        config: How the backbone is loaded.
        frozen: The backbone where it is loaded already, for a model that leaves it as it is.

    Raises:
        ModelFolderError: If the folder is damaged, of another backbone, or its tensors do not fit its configuration.
    """
    tensors, described = read_folder(folder, "tagi", "make distill")
    if described["tagi"].get("trained_backbone", "none") == "none":
        return build_tagi(folder, tensors, described, frozen or load_backbone(config))
    copy = load_backbone(replace(config, dtype="float32", quantization=None))
    model = build_tagi(folder, tensors, described, copy)
    model.backbone.to(getattr(torch, config.dtype))
    return model


def build_tagi(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], backbone: Backbone) -> TagiModel:
    """Builds the model that `read_folder` read from `folder`, on `backbone`; it knows where it came from.

    Raises:
        ModelFolderError: If the folder is of another backbone, or its tensors do not fit its configuration.
    """
    check_backbone(folder, config, backbone)
    try:
        model = TagiModel(backbone, from_plain(TagiConfig, config["tagi"]))
    except (ValueError, RuntimeError, OverflowError, TypeError) as error:  # TypeError: a size beyond 64 bits
        told = shortened(str(error))
        raise ModelFolderError(f"{folder} was written by another version of tagi-lightning: {told}") from error
    load_tagi_weights(model, tensors, str(folder))
    model.stages, model.source = tuple(config["stages"]), folder
    model.prompts, _ = recorded_prompts(folder, config)
    return model


def recorded_prompts(folder: Path, config: Mapping[str, Any]) -> tuple[InstructionPrompts | None, int | None]:
    """Returns how a model's instructions were written, None where it read none, and which layer's states it reads.

    Raises:
        ModelFolderError: If that is no way of writing instructions.
    """
    if config["prompts"] is None:
        return None, config["instruction_layer"]
    try:
        return from_plain(InstructionPrompts, config["prompts"]), config["instruction_layer"]
    except (ValueError, TypeError) as error:
        told = shortened(repr(error))
        raise ModelFolderError(f"{folder / CONFIG} does not tell how instructions were written: {told}") from error


def load_tagi_weights(model: TagiModel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies saved weights into `model`.

    Raises:
        ModelFolderError: If names or shapes differ from what `model` needs.
    """
    needed = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith("backbone.")}
    optional = {name: tuple(t.shape) for name, t in model.trained_state().items() if name.startswith("backbone.")}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"missing {name}" for name in needed if name not in given]
    problems += [f"unexpected {shortened(name)}" for name in given if name not in needed and name not in optional]
    problems += [
        f"{name} has shape {given[name]}, expected {shape}"
        for name, shape in (needed | optional).items()
        if name in given and given[name] != shape
    ]
    if problems:
        raise ModelFolderError(
            f"the weights of {source} do not fit this configuration (rank, sites, generator, fusion, "
            "trained_backbone): "
            + "; ".join(problems[:5])
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    model.load_state_dict(dict(tensors), strict=False)


def save_bank(bank: LoraBank, folder: Path, backbone: Backbone) -> None:
    """Saves a bank of teachers with its names and the backbone's digest; replaces `folder`."""
    config = {
        "kind": "teachers",
        "lora": asdict(bank.config),
        "names": list(bank.names),
        "backbone": backbone.name,
        "backbone_digest": backbone.digest(),
    }
    write_folder(folder, bank.state_dict(), config)


def load_bank(
    folder: Path, backbone: Backbone, lora: LoraConfig | None = None, make: str = "make teachers"
) -> LoraBank:
    """Loads a bank of teachers, frozen.

    Args:
        folder: Where `save_bank` wrote it.
        backbone: The backbone it must belong to.
        lora: The configuration it must share with the student: sites, rank, scale and A_0; None for its own.
        make: The command that makes it.

    Raises:
        ModelFolderError: If the folder is damaged, of another backbone, or of another LoRA configuration.
    """
    tensors, config = read_folder(folder, "teachers", make)
    check_backbone(folder, config, backbone)
    try:
        taught = from_plain(LoraConfig, config["lora"])
    except ValueError as error:
        raise ModelFolderError(f"{folder} was written by another version of tagi-lightning: {error}") from error
    lora = lora or taught
    differing = [
        f"{field.name} is {getattr(taught, field.name)!r} there and {getattr(lora, field.name)!r} here"
        for field in fields(lora)
        if field.name != "dropout" and getattr(taught, field.name) != getattr(lora, field.name)
    ]
    if differing:
        raise ModelFolderError(
            f"the teachers in {folder} have another LoRA configuration: {'; '.join(differing)}; "
            f"use the same values or train them again: {make}"
        )
    try:
        bank = LoraBank(backbone.sites(lora), taught, config["names"])
        bank.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise ModelFolderError(f"{folder} does not hold what its {CONFIG} tells: {error}; {make}") from error
    bank.requires_grad_(False)
    return bank.eval()
