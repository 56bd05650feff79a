"""Instructions on their own: as users give them, and as the tokens that a model was trained to read."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.causal_prompts import PromptKind, prompt_form
from tagi_lightning.data.prompts import Form, PlainForm, PromptAssembler, PromptForm
from tagi_lightning.data.report import DataReport, shortened
from tagi_lightning.data.task import Demonstration
from tagi_lightning.data.task_file import parse_object, parse_task, read_document, read_text

ADVICE = (
    "Give a task file in the Super-NaturalInstructions schema (Definition, Positive Examples), or JSON lines "
    '{"instruction": "...", "demonstrations": [{"input": "...", "output": "..."}], "task": "name"}, of which '
    "demonstrations and task may be left out."
)
INSTANCE = {"input": "", "output": "-"}
"""Stands in for the instances that a task file must have and an instruction has not."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        text: The definition of the task.
        demonstrations: Worked examples, in order.
        name: Name of the task, empty where it has none.
    """

    text: str
    demonstrations: tuple[Demonstration, ...] = ()
    name: str = ""

    @classmethod
    def of(cls, text: object, demonstrations: Iterable[object] = ()) -> Self:
        """Returns the instruction that a caller gives, refusing what would silently become another one.

        Args:
            text: The definition of the task.
            demonstrations: Pairs of input and output, or mappings with these two keys.

        Raises:
            TypeError: If the definition is no text, or an example neither such a pair nor such a mapping.
            ValueError: If the definition is empty.
        """
        if not isinstance(text, str):
            raise TypeError(f"an instruction is one text, got {shortened(repr(text))}")
        if not text.strip():
            raise ValueError("the instruction is empty; say in words what the task is")
        return cls(text, tuple(map(_demonstration, demonstrations)))

    @property
    def folder_name(self) -> str:
        """A folder's name that is safe on every system and differs where instructions differ."""
        ascii_text = unicodedata.normalize("NFKD", self.name or self.text).encode("ascii", "ignore").decode().lower()
        slug = re.sub(r"[^a-z0-9]+", "-", ascii_text)[:40].strip("-")
        shown = [[each.input, each.output] for each in self.demonstrations]
        digest = hashlib.sha256(json.dumps([self.name, self.text, shown]).encode()).hexdigest()[:12]
        return f"{slug or 'instruction'}-{digest}"


def instruction_row(instruction: Instruction) -> dict[str, Any]:
    """Returns an instruction as a line of a file that `tagi adapt --file` takes, with its adapter's name."""
    return {
        "name": instruction.folder_name,
        "task": instruction.name,
        "instruction": instruction.text,
        "demonstrations": [asdict(each) for each in instruction.demonstrations],
    }


def instruction_of_row(row: Any) -> Instruction:
    """Returns the instruction that `instruction_row` wrote.

    Raises:
        ValueError: If the row holds none, or another one than its name was made of.
    """
    try:
        shown = tuple(Demonstration(each["input"], each["output"]) for each in row["demonstrations"])
        found = Instruction(row["instruction"], shown, row["task"])
        same = found.folder_name == row["name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(shortened(repr(error))) from error
    if not same:
        raise ValueError(f"{shortened(repr(row['name']))} is the name of another instruction")
    return found


def _demonstration(given: object) -> Demonstration:
    match given:
        case Demonstration():
            return given
        case {"input": str(shown), "output": str(answer), **others} if not others:
            return Demonstration(shown, answer)
        case (str(shown), str(answer)):
            return Demonstration(shown, answer)
    raise TypeError(
        'a demonstration is a pair of texts, ("2 3", "5"), or {"input": "2 3", "output": "5"}; '
        f"got {shortened(repr(given))}"
    )


def read_task_instruction(path: Path) -> Instruction:
    """Reads the instruction of a task file in the official schema; its instances play no part.

    Raises:
        DataError: If the file is not such a task.
    """
    report = DataReport(str(path))
    document = read_document(path, report)
    found = _parse(document, path.stem, path.name, report) if document is not None else None
    report.raise_if_errors(ADVICE)
    assert found is not None
    return found


def read_instructions(path: Path) -> list[Instruction]:
    """Reads JSON lines, each an instruction; those given twice are taken once.

    Raises:
        DataError: If any line is no instruction; one message names every problem by line.
    """
    report = DataReport(str(path))
    found: dict[Instruction, None] = {}
    for number, line in enumerate((read_text(path, report) or "").split("\n"), start=1):
        where = f"{path.name}:{number}"
        row = parse_object(line, where, report) if line.strip() else None
        if row is None:
            continue
        name = row.get("task") or ""
        if not isinstance(name, str):
            report.error("task's name that is not text", where)
            continue
        document = {"Definition": row.get("instruction"), "Positive Examples": row.get("demonstrations") or []}
        if (instruction := _parse(document, name, where, report)) is not None:
            found[instruction] = None
    if not found and not report.errors:
        report.error("no rows", path.name)
    report.raise_if_errors(ADVICE)
    return list(found)


def _parse(document: dict[str, Any], name: str, where: str, report: DataReport) -> Instruction | None:
    task = parse_task(document | {"Categories": [], "Instances": [INSTANCE]}, name, report, where, lambda row: where)
    return Instruction(task.definitions[0], task.demonstrations, name) if task is not None else None


class InstructionTokens(NamedTuple):
    """An instruction as a model reads it.

    Attributes:
        ids: Its tokens.
        shown: How many of its demonstrations are among them.
    """

    ids: list[int]
    shown: int


@dataclass(frozen=True)
class InstructionPrompts:
    """How a model's instructions were written in training; kept with its weights."""

    prompt: PromptKind = "t5"
    """Whom prompts are for: t5, causal or chat."""
    texts: Literal["definition", "plain"] = "definition"
    """definition: Tk-Instruct's words around the texts; plain: the texts as they are (P3)."""
    demonstrations: int = 0
    """Demonstrations an instruction shows at most."""
    max_input_length: int = 1024
    """Tokens of an instruction at most."""

    @property
    def form(self) -> Form:
        """The prompt form."""
        return prompt_form(self.prompt, self._texts)

    @property
    def _texts(self) -> PromptForm:
        return PlainForm() if self.texts == "plain" else PromptForm()

    def tokenize(self, tokenizer: PreTrainedTokenizerFast, instruction: Instruction) -> InstructionTokens:
        """Returns the tokens of `instruction`, with the demonstrations that fit.

        Raises:
            ValueError: If its definition leaves no room for any input.
        """
        form, assembler = self.form, self._assembler(tokenizer)
        pieces = [form.definition(instruction.text)]
        pieces += [form.demonstration(number, each) for number, each in enumerate(instruction.demonstrations, start=1)]
        definition, *demonstrations = form.tokenize(tokenizer, pieces)
        if assembler.input_room(len(definition)) < 1:
            raise ValueError(
                f"an instruction of {len(definition)} tokens ({instruction.text[:40]!r} ...) leaves no room for an "
                f"input in the {self.max_input_length} tokens that the model was trained with; shorten it"
            )
        lengths = [len(each) for each in demonstrations]
        shown = assembler.demonstrations_that_fit(lengths, assembler.instruction_room(len(definition)))
        return InstructionTokens(assembler.instruction(definition, demonstrations), shown)

    def inputs(
        self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], instruction: Instruction | None = None
    ) -> list[list[int]]:
        """Returns the tokens of each input as the backbone reads it, cut where it is too long.

        Args:
            tokenizer: The model's tokenizer.
            texts: The inputs; of P3, whose prompts are filled-in templates, what the backbone reads as it is.
            instruction: Given where the backbone reads it together with the input.
        """
        form, assembler = self.form, self._assembler(tokenizer)
        rows = form.tokenize(tokenizer, [form.input(text) for text in texts])
        if instruction is None or self.texts == "plain":
            return [assembler.input(row) for row in rows]
        pieces = [form.definition(instruction.text)]
        pieces += [form.demonstration(number, each) for number, each in enumerate(instruction.demonstrations, start=1)]
        definition, *demonstrations = form.tokenize(tokenizer, pieces)
        return [assembler.prompt(definition, demonstrations, row) for row in rows]

    def cuts(self, tokenizer: PreTrainedTokenizerFast, text: str, instruction: Instruction | None = None) -> bool:
        """Tells whether an input is too long to be read whole; see `inputs`."""
        form = self.form
        alone = instruction is None or self.texts == "plain"
        if alone and len(text.encode()) <= self.max_input_length // 2:
            return False
        pieces = [form.input(text)] if alone else [form.input(text), form.definition(instruction.text)]  # type: ignore[union-attr]
        own, *definition = form.tokenize(tokenizer, pieces)
        return len(own) > self._assembler(tokenizer).input_room(sum(map(len, definition)))

    def targets(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each answer with its end token, cut where it is too long."""
        rows = self.form.tokenize(tokenizer, [self.form.target(text) for text in texts])
        return [self._assembler(tokenizer).target(row) for row in rows]

    def _assembler(self, tokenizer: PreTrainedTokenizerFast) -> PromptAssembler:
        return _assembler(self, tokenizer)


@lru_cache(maxsize=4)
def _assembler(prompts: InstructionPrompts, tokenizer: PreTrainedTokenizerFast) -> PromptAssembler:
    return PromptAssembler.from_tokenizer(
        tokenizer, prompts.demonstrations, prompts.max_input_length, form=prompts.form
    )
