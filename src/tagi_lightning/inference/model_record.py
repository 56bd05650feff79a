"""What the run that a model lies in recorded of it: the options of its evaluation, or of its training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tagi_lightning.backbones.base import GenerationConfig
from tagi_lightning.backbones.loading import Dtype
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits, flatten
from tagi_lightning.storage.run_layout import CONFIG_FILE, EVALUATE

Option = TypeVar("Option")


@dataclass(frozen=True)
class ModelRecord:
    """The record of one model.

    Attributes:
        run: The run folder.
        file: The record.
        options: All options by dotted name.
    """

    run: Path
    file: Path
    options: dict[str, Any]

    @classmethod
    def of(cls, source: Path | None) -> ModelRecord | None:
        """Returns what is recorded of a model folder; None where it lies in no run.

        Args:
            source: RUN/model or RUN/<stage>/model.

        Raises:
            ValueError: If the record is damaged.
        """
        if source is None:
            return None
        source = source.resolve()
        own = source.parent / CONFIG_FILE
        run = source.parent.parent if own.is_file() else source.parent
        for file in (run / EVALUATE / "tagi" / CONFIG_FILE, own, run / "distill" / CONFIG_FILE):
            if file.is_file():
                return cls(run, file, dict(flatten(read_mapping(file, "remove it to go on without"))))
        return None

    @property
    def of_evaluation(self) -> bool:
        """Whether the options are those of an evaluation, and not of training."""
        return self.file.parent.parent.name == EVALUATE

    @property
    def dtype(self) -> str:
        """Type that the backbone was stored in."""
        return self._option("backbone.dtype", Dtype, "float32")

    @property
    def generation(self) -> GenerationConfig:
        """How answers were decoded, as far as an answer is told by it: their length, and whether they are one line."""
        default = GenerationConfig()
        longest = self._option("model.init_args.generation.max_new_tokens", int, default.max_new_tokens)
        one_line = self._option("model.init_args.generation.stop_at_newline", bool, default.stop_at_newline)
        try:
            return GenerationConfig(longest, stop_at_newline=one_line)
        except ValueError as error:
            raise ValueError(f"{self.file} is damaged: {error}; remove it to go on without") from error

    def describe(self) -> str:
        """Returns the type that the backbone was stored in, in words."""
        what = "evaluated" if self.of_evaluation else "trained"
        rounded = f"which rounds some answers otherwise: dtype=torch.{self.dtype}"
        then = "as above" if self.dtype == "float32" else rounded
        return f"The model was {what} with the backbone in {self.dtype}, {then}."

    def evaluate(self, *systems: str) -> str:
        """Returns the command that evaluates `systems` with these options, where the model was trained."""
        options = [f"--config={self.file}", f"--run={self.run}", f"--model.init_args.systems=[{','.join(systems)}]"]
        if not self.of_evaluation:
            options.insert(1, "--model=Evaluation")
            options += ["--data.init_args.with_prompt=true", "--trainer.logger=false"]
            options += ["--trainer.enable_checkpointing=false"]
            if self.file.parent.name != "distill":
                options.append(f"--model.init_args.weights={self.file.parent / 'model'}")
        return shlex.join(["tagi", "evaluate", *options])

    def _option(self, name: str, kind: Any, default: Option) -> Option:
        value = self.options.get(name, default)
        if not fits(value, kind):
            raise ValueError(
                f"{self.file} is damaged: {name} cannot be {shortened(repr(value))}; remove it to go on without"
            )
        found: Option = value
        return found
