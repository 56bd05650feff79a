"""Adapters of a trained model as folders, with their cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tagi_lightning import __version__
from tagi_lightning.data.instruction import Instruction, instruction_row
from tagi_lightning.inference.model_record import ModelRecord
from tagi_lightning.lora import LoraWeights
from tagi_lightning.model import TagiModel
from tagi_lightning.peft_io.card import LOSES, adapter_card
from tagi_lightning.peft_io.folders import ALONE, INSTRUCTION, location
from tagi_lightning.peft_io.merged import merge_to_folder
from tagi_lightning.peft_io.usage import Kind, Usage
from tagi_lightning.peft_io.writing import PeftWriter
from tagi_lightning.storage.model_card import run_metrics

if TYPE_CHECKING:
    from tagi_lightning.inference.instructed import InstructedAdapter, InstructedModel

FIGURES = {"accuracy_mean": "accuracy", "exact_match": "exact match"}
"""Figures by which the loss is told, the first that was measured."""


def pieces_besides_lora(model: TagiModel) -> str:
    """Returns what a model's adapters have besides LoRA, in words; empty where that is all."""
    config = model.config
    has = {
        "fusion of the encoder with the instruction": config.fusion.enabled,
        "the instruction as memory of the decoder": config.decoder_memory,
        "a generated prefix": config.hypernetwork.writes == "both",
    }
    return ", ".join(piece for piece, there in has.items() if there)


def measured_loss(model: TagiModel) -> str:
    """Returns what the run that a model lies in measured of its adapters with and without what PEFT cannot hold."""
    metrics = run_metrics(model.source, model) if model.source is not None else {}
    whole, alone = metrics.get("tagi", {}), metrics.get("lora_only", {})
    figure = next((name for name in FIGURES if name in whole and name in alone), None)
    if figure is None:
        record = ModelRecord.of(model.source)
        how = f"; measure it where it was trained: {record.evaluate('tagi', 'lora_only')}" if record else "."
        return f"How much that costs was not measured of these weights{how}"
    without = metrics.get("no_instruction", {}).get(figure)
    beside = f", {without:.1f} without any adapter" if without is not None else ""
    return (
        f"Measured on the {whole['n']:.0f} instances of its run's test tasks, {FIGURES[figure]}: {whole[figure]:.1f} "
        f"whole, {alone[figure]:.1f} by its LoRA alone{beside}."
    )


def what_peft_loses(model: TagiModel) -> str:
    """Returns what an adapter loses in PEFT, in words and figures; empty where that is nothing."""
    pieces = pieces_besides_lora(model)
    return LOSES.format(pieces=pieces, measured=measured_loss(model)) if pieces else ""


def check_exports(model: TagiModel) -> None:
    """Refuses a model whose adapters PEFT cannot put on the backbone as it lies there.

    Raises:
        ValueError: If it generates no LoRA, or trained weights of the backbone.
    """
    config, name = model.config, model.source or "this model"
    if config.trained_backbone != "none":
        raise ValueError(
            f"{name} trained weights of the backbone itself (tagi.trained_backbone={config.trained_backbone}), "
            "which no adapter holds; supported: trained_backbone=none"
        )
    if not config.generates_lora:
        raise ValueError(
            f"{name} generates no LoRA; supported: tagi.hypernetwork.enabled=true with writes=lora or both"
        )


def recorded(instruction: Instruction) -> dict[str, str]:
    """Returns what a LoRA's file tells of the instruction that it was made from; see `reading.read_instruction`."""
    return {INSTRUCTION: json.dumps(instruction_row(instruction), ensure_ascii=False)}


class Exporter:
    """Writes adapters of one model."""

    def __init__(
        self, loaded: InstructedModel, overwrite: bool = False, facts: Mapping[str, str] | None = None
    ) -> None:
        """Takes the model.

        Args:
            loaded: The model.
            overwrite: Whether to replace folders that are there.
            facts: More rows of the cards' tables.

        Raises:
            ValueError: If what the model generates cannot be an adapter on the backbone as it lies there.
            AdapterFolderError: If the backbone is not stored in float32.
        """
        check_exports(loaded.model)
        self.loaded, self.overwrite, self.facts = loaded, overwrite, facts or {}
        self.loses = what_peft_loses(loaded.model)
        self.record = ModelRecord.of(loaded.model.source)
        self.generation = loaded.generation
        self.writer = PeftWriter(loaded.model.backbone)

    def write(self, adapter: InstructedAdapter, folder: Path) -> None:
        """Writes the PEFT folder of one adapter, and what PEFT cannot hold beside it."""
        assert adapter.lora is not None
        rest = adapter.prepared if self.loses else None
        card, told = self.card(adapter.instruction, "adapter"), recorded(adapter.instruction)
        self.writer.write(adapter.lora, folder, card, rest, self.overwrite, told)

    def write_lora(
        self, lora: LoraWeights, instruction: Instruction, folder: Path, facts: Mapping[str, str], report: str = ""
    ) -> None:
        """Writes the PEFT folder of a LoRA that stands alone, such as one that was trained on.

        Args:
            lora: The LoRA of one task.
            instruction: What it was made from.
            folder: The folder to make.
            facts: More rows of its card's table.
            report: Ends the card.
        """
        card = self.card(instruction, "adapter", facts, loses="")
        told = {**recorded(instruction), ALONE: "true"}
        self.writer.write(lora, folder, f"{card}\n{report}\n" if report else card, None, self.overwrite, told)

    def write_merged(self, adapter: InstructedAdapter, folder: Path, dtype: torch.dtype) -> None:
        """Writes a whole model with one adapter in its weights."""
        assert adapter.lora is not None
        merge_to_folder(
            self.loaded.model.backbone,
            adapter.lora,
            folder,
            dtype,
            self.loaded.tokenizer,
            self.card(adapter.instruction, "merged"),
            self.overwrite,
        )

    def card(
        self,
        instruction: Instruction,
        kind: Kind,
        facts: Mapping[str, str] | None = None,
        loses: str | None = None,
    ) -> str:
        """Returns the text of a folder's README.md."""
        model = self.loaded.model
        lora, backbone = model.config.lora, model.backbone
        stacks = sorted({site.stack for site in model.sites})
        rows = {
            "backbone": f"{location(backbone)}, weights {self.writer.digest[:12]}",
            "hypernetwork": f"{model.source or 'in memory'}, weights {model.digest()[:12]}",
            "rank": f"{lora.rank}, updates scaled by {lora.scale:g}",
            "sites": f"{len(model.sites)}: {', '.join(lora.targets)} of {', '.join(stacks)}",
            "tagi-lightning": __version__,
            **self.facts,
            **(facts or {}),
        }
        return adapter_card(
            instruction,
            location(backbone),
            Usage(self.loaded, instruction, self.generation, kind).code(),
            rows,
            kind,
            self.record.describe() if self.record else "",
            self.loses if loses is None else loses,
        )
