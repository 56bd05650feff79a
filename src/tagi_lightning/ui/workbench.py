"""What the page does, without the page: adapters, comparisons and archives for several users of one model."""

from __future__ import annotations

import io
import math
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tagi_lightning.adapter import PreparedAdapter, TaskAdapter
from tagi_lightning.backbones.base import GenerationConfig
from tagi_lightning.data.batch import TaskBatch, Tokens, pad_labels
from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.task import Demonstration
from tagi_lightning.inference.answers import answer
from tagi_lightning.inference.instructed import InstructedAdapter, InstructedModel
from tagi_lightning.peft_io import Exporter
from tagi_lightning.ui.known import KnownTasks
from tagi_lightning.updates import update_norms

WITH, LORA_ALONE = "With the adapter", "Its LoRA alone, as PEFT holds it"
PROMPTED, WITHOUT = "Without: instruction in the prompt", "Without: the input alone"


@dataclass(frozen=True)
class Limits:
    """What one user may ask of a model that others wait for."""

    instruction_tokens: int = 1024
    """Tokens of an instruction with its examples; the model's own limit holds besides."""
    input_characters: int = 4000
    """Characters of an input, and of either side of an example."""
    inputs: int = 8
    """Inputs answered at once."""
    waiting: int = 8
    """Users whose requests are under way or wait."""

    def __post_init__(self) -> None:
        check_range({f"--max_{name}": value for name, value in vars(self).items()}, least=1)

    @property
    def instruction_characters(self) -> int:
        """Characters of an instruction, so that nothing huge is split into tokens only to be counted."""
        return 16 * self.instruction_tokens


class LimitError(ValueError):
    """A request that is not served; the message tells what is allowed."""


@dataclass(frozen=True)
class MadeAdapter:
    """What the page shows of an adapter.

    Attributes:
        adapter: The adapter.
        tokens: Tokens of the instruction that were read.
        seconds: Time that reading it and writing the adapter took.
        norms: Frobenius norm of the update at every block, by stack and projection, e.g. `encoder_self q`.
        nearest: Names of the known tasks whose updates are nearest, with the cosines.
    """

    adapter: InstructedAdapter
    tokens: int
    seconds: float
    norms: dict[str, list[float]]
    nearest: tuple[tuple[str, float], ...]

    @property
    def norm(self) -> float:
        """Norm of the whole update."""
        return math.hypot(*chain(*self.norms.values()))


@dataclass(frozen=True)
class Comparison:
    """Answers side by side.

    Attributes:
        inputs: The inputs.
        cut: Whether each was too long to be read whole.
        answers: The answer to each input, by what gave it.
    """

    inputs: tuple[str, ...]
    cut: tuple[bool, ...]
    answers: dict[str, list[str]]


class Workbench:
    """One model for all who have the page open: one request at a time, and a bounded number of them waiting."""

    def __init__(
        self,
        loaded: InstructedModel,
        known: Sequence[Instruction] = (),
        limits: Limits = Limits(),
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  (frozen)
    ) -> None:
        """Takes the model.

        Args:
            loaded: The model.
            known: Instructions of known tasks to compare adapters with.
            limits: What one user may ask.
            generation: How to decode.

        Raises:
            ValueError: If its adapters cannot be PEFT folders, or a known instruction is too long.
        """
        self.loaded, self.limits, self.generation = loaded, limits, generation
        self.exporter = Exporter(loaded)
        self.known = KnownTasks.read(loaded, known) if known else None
        self._places = threading.BoundedSemaphore(limits.waiting)

    def instruction(self, text: str, demonstrations: Sequence[tuple[str, str]] = ()) -> Instruction:
        """Returns an instruction as it was typed; examples that were left empty are left out.

        Raises:
            LimitError: If it is empty or too long, or half of an example is missing.
        """
        if not text.strip():
            raise LimitError("Say in words what the task is.")
        shown = []
        for number, (given, wanted) in enumerate(demonstrations, start=1):
            if bool(given.strip()) != bool(wanted.strip()):
                raise LimitError(f"Example {number} has one side alone; fill both or neither.")
            if given.strip():
                self._check_characters(f"Example {number}", max(given, wanted, key=len))
                shown.append(Demonstration(given, wanted))
        length = len(text) + sum(len(each.input) + len(each.output) for each in shown)
        if length > (most := self.limits.instruction_characters):
            raise LimitError(f"The instruction has {length} characters with its examples; at most {most} are read.")
        return Instruction(text, tuple(shown))

    def adapt(self, instruction: Instruction) -> MadeAdapter:
        """Turns an instruction into its adapter.

        Raises:
            LimitError: If it is too long, or too many users wait.
            ValueError: If it leaves the model no room for an input.
        """
        tokens = len(self.loaded.prompts.tokenize(self.loaded.tokenizer, instruction).ids)
        if tokens > (most := self.limits.instruction_tokens):
            raise LimitError(f"The instruction has {tokens} tokens with its examples; at most {most} are allowed here.")
        with self._turn():
            start = time.perf_counter()
            adapter = next(self.loaded.adapt_all([instruction]))
            seconds = time.perf_counter() - start
            assert adapter.lora is not None
            nearest = self.known.nearest(adapter.lora) if self.known is not None else ()
            return MadeAdapter(adapter, tokens, seconds, self._norms(adapter), nearest)

    def compare(self, made: MadeAdapter, inputs: Sequence[str]) -> Comparison:
        """Answers inputs with the adapter and without; empty ones are left out.

        Raises:
            LimitError: If there are none or too many, one is too long, or too many users wait.
        """
        texts = [text for text in inputs if text.strip()]
        if not texts:
            raise LimitError("Write at least one input.")
        if len(texts) > (most := self.limits.inputs):
            raise LimitError(f"There are {len(texts)} inputs; at most {most} are answered at once.")
        for number, text in enumerate(inputs, start=1):
            self._check_characters(f"Input {number}", text)
        loaded, instruction = self.loaded, made.adapter.instruction
        read = instruction if loaded.model.config.reads == "prompt" else None
        cut = tuple(loaded.prompts.cuts(loaded.tokenizer, text, read) for text in texts)
        with self._turn():
            answers = {WITH: loaded.generate(made.adapter, texts, self.generation)}
            if self.exporter.loses:
                alone = replace(made.adapter, prepared=_lora_alone(made.adapter.prepared))
                answers[LORA_ALONE] = loaded.generate(alone, texts, self.generation)
            if loaded.prompts.texts == "definition":  # P3's inputs are whole prompts
                answers[PROMPTED] = self._backbone(texts, instruction)
            answers[WITHOUT] = self._backbone(texts, None)
        return Comparison(tuple(texts), cut, answers)

    def archive(self, made: MadeAdapter) -> bytes:
        """Returns the PEFT folder as a zip file; it was loaded through PEFT and compared, and is no longer on the disk.

        Raises:
            LimitError: If too many users wait.
            AdapterFolderError: If PEFT does not load it to the same logits.
        """
        name = made.adapter.instruction.folder_name
        packed = io.BytesIO()
        with self._turn(), TemporaryDirectory(prefix="tagi-ui-") as temporary:
            self.exporter.write(made.adapter, Path(temporary, name))
            with zipfile.ZipFile(packed, "w") as file:  # weights do not shrink
                for path in sorted(Path(temporary, name).iterdir()):
                    file.write(path, f"{name}/{path.name}")
        return packed.getvalue()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Waits until no one else's request is computed: a merged adapter would be part of what others read."""
        if not self._places.acquire(blocking=False):
            raise LimitError(f"{self.limits.waiting} others are waiting for this model; try again in a moment.")
        try:
            with self.loaded.model.backbone.lock:
                yield
        finally:
            self._places.release()

    def _check_characters(self, what: str, text: str) -> None:
        if len(text) > (most := self.limits.input_characters):
            raise LimitError(f"{what} has {len(text)} characters; at most {most} are allowed here.")

    def _norms(self, adapter: InstructedAdapter) -> dict[str, list[float]]:
        assert adapter.lora is not None
        sites = self.loaded.model.sites
        norms: dict[str, list[float]] = {}
        for site, norm in zip(sites, update_norms(adapter.lora, sites)[0].tolist(), strict=True):
            norms.setdefault(f"{site.stack} {site.target}", []).append(norm)
        return norms

    def _backbone(self, texts: Sequence[str], instruction: Instruction | None) -> list[str]:
        """Returns the answers of the backbone alone, which reads the instruction before each input, or not."""
        loaded = self.loaded
        pad_id = loaded.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        rows = [loaded.prompts.inputs(loaded.tokenizer, [text], instruction)[0] for text in texts]
        batch = TaskBatch(
            instruction=Tokens.pad([[]], pad_id),
            input=Tokens.pad(rows, pad_id),
            labels=pad_labels([[]] * len(texts)),
            task_index=torch.zeros(len(texts), dtype=torch.long),
            category=torch.tensor([-1]),
        ).to(loaded.model.backbone.model.device)
        return list(answer(loaded.model, batch, batch.input, TaskAdapter(), self.generation, loaded.tokenizer).texts)


def _lora_alone(adapter: PreparedAdapter) -> PreparedAdapter:
    return replace(adapter, fusion=None, memory=None, prefix=None)
