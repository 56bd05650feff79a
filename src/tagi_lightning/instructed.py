"""A trained model with its tokenizer and the prompts it was trained on: instructions in, adapters out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from transformers import PreTrainedTokenizerFast

from tagi_lightning.adapter import PreparedAdapter
from tagi_lightning.backbones.loading import BackboneConfig, BackboneError, load_backbone
from tagi_lightning.data.batch import Tokens
from tagi_lightning.data.instruction import Instruction, InstructionPrompts
from tagi_lightning.data.tokenizer import load_tokenizer
from tagi_lightning.model import TagiModel
from tagi_lightning.serialization import ModelFolderError, from_plain, load_tagi, read_folder

SHOWN = {"def": 0, "def+2pos": 2}
"""Demonstrations that an instruction shows in each setting."""

BATCH = 16
"""Instructions read at once."""


@dataclass(frozen=True)
class InstructedModel:
    """A trained hypernetwork on its backbone, ready for instructions in words.

    Attributes:
        model: The model, frozen.
        tokenizer: The backbone's tokenizer.
        prompts: How instructions are written for it.
    """

    model: TagiModel
    tokenizer: PreTrainedTokenizerFast
    prompts: InstructionPrompts

    @classmethod
    def load(cls, folder: Path, backbone: str | None = None) -> Self:
        """Loads what a training stage left, the backbone in float32.

        Args:
            folder: RUN/<stage>/model.
            backbone: Where the backbone lies; None for where it lay in training.

        Raises:
            ModelFolderError: If the folder is damaged, tells no prompts, or its backbone is another one or not there.
        """
        _, config = read_folder(folder, "tagi", "make distill")
        prompts, layer = recorded_prompts(folder, config)
        name = backbone or config["backbone"]
        try:
            loaded = load_backbone(BackboneConfig(name, instruction_layer=layer))
        except (BackboneError, FileNotFoundError) as error:
            raise ModelFolderError(
                f"{folder} was trained on backbone {config['backbone']!r}; where it lies now: --backbone DIR\n{error}"
            ) from error
        model, _ = load_tagi(folder, loaded)
        return cls(model.requires_grad_(False).eval(), load_tokenizer(loaded.name), prompts)

    def adapt(self, instructions: Sequence[Instruction]) -> Iterator[PreparedAdapter]:
        """Yields the adapter of each instruction, reading several at once.

        Raises:
            ValueError: If an instruction is too long.
        """
        for start in range(0, len(instructions), BATCH):
            rows = [self.prompts.tokenize(self.tokenizer, each).ids for each in instructions[start : start + BATCH]]
            pad_id = self.tokenizer.pad_token_id
            assert isinstance(pad_id, int)
            prepared = self.model.prepare(Tokens.pad(rows, pad_id))
            yield from (prepared.select(row) for row in range(len(rows)))


def recorded_prompts(folder: Path, config: Mapping[str, Any]) -> tuple[InstructionPrompts, int | None]:
    """Returns how a model's instructions were written and which layer's states it reads.

    Model folders of before they were recorded there lie in a run whose config.yaml tells them.

    Raises:
        ModelFolderError: If nothing tells them.
    """
    if config.get("prompts") is not None:
        return from_plain(InstructionPrompts, config["prompts"]), config["instruction_layer"]
    record = folder.resolve().parent / "config.yaml"
    options = yaml.safe_load(record.read_text(encoding="utf-8")) if record.is_file() else {}
    data = options.get("data", {})
    given = data.get("init_args", {})
    if "setting" not in given and not str(data.get("class_path")).endswith("P3DataModule"):
        raise ModelFolderError(
            f"{folder} does not tell how its instructions were written, nor does {record}; adapt with the model of "
            "a stage that trains on instructions: make distill"
        )
    texts = "plain" if data["class_path"].endswith("P3DataModule") else "definition"
    shown = SHOWN[given.get("setting", "def")]
    prompts = InstructionPrompts(given.get("prompt", "t5"), texts, shown, given["max_input_length"])  # type: ignore[arg-type]
    return prompts, options["backbone"].get("instruction_layer")
