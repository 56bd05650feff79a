"""A trained model with its tokenizer and the prompts it was trained on: strings in, adapters and strings out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedTokenizerFast

from tagi_lightning.adapter import PreparedAdapter, TaskAdapter
from tagi_lightning.backbones.base import GenerationConfig
from tagi_lightning.backbones.loading import Dtype
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.data.instruction import Instruction, InstructionPrompts
from tagi_lightning.data.report import shortened
from tagi_lightning.data.task import Demonstration
from tagi_lightning.data.tokenizer import load_tokenizer
from tagi_lightning.inference.answers import Answers, answer
from tagi_lightning.inference.model_record import ModelRecord
from tagi_lightning.lora import LoraWeights
from tagi_lightning.model import TagiModel
from tagi_lightning.storage.hub import HubOptions
from tagi_lightning.storage.serialization import ModelFolderError

BATCH = 16
"""Instructions read at once."""
INPUTS = 32
"""Inputs answered at once."""


@dataclass(frozen=True)
class InstructedAdapter:
    """What an instruction became.

    Attributes:
        instruction: The instruction, with the demonstrations that the model read.
        prepared: Its adapter, ready for any number of inputs.
    """

    instruction: Instruction
    prepared: PreparedAdapter

    @property
    def lora(self) -> LoraWeights | None:
        """The generated LoRA, the part that PEFT holds."""
        return self.prepared.lora


@dataclass(frozen=True)
class InstructedModel:
    """A trained hypernetwork on its backbone, ready for instructions in words.

    Attributes:
        model: The model, frozen.
        tokenizer: The backbone's tokenizer.
        prompts: How instructions and inputs are written for it.
        generation: How its run decodes, as far as that is recorded.
    """

    model: TagiModel
    tokenizer: PreTrainedTokenizerFast
    prompts: InstructionPrompts
    generation: GenerationConfig = GenerationConfig()  # noqa: RUF009  (frozen)

    @classmethod
    def load(
        cls,
        name: str | Path,
        backbone: str | None = None,
        dtype: Dtype = "float32",
        device: str = "cpu",
        hub: HubOptions = HubOptions(),  # noqa: B008  (frozen)
    ) -> Self:
        """Loads what a training stage left.

        Args:
            name: RUN/model, RUN/<stage>/model, or an id on the Hugging Face hub.
            backbone: Where the backbone lies; None for where it lay in training.
            dtype: Type the backbone is stored in; adapters are saved from float32 alone.
            device: Where to compute.
            hub: Where on the hub to look.

        Raises:
            ModelFolderError: If there is no such model, it is damaged, tells no prompts or reads demonstrations apart,
                or its backbone is another one or not there.
            ValueError: If what its run recorded is damaged.
        """
        model = TagiModel.from_pretrained(name, backbone, dtype=dtype, hub=hub)
        if model.prompts is None:
            raise ModelFolderError(
                f"{name} does not tell how its instructions were written, nor does the run it lies in; take the model "
                "of a stage that trains on instructions: make distill"
            )
        if model.config.memory_of == "demonstrations" or model.config.reads == "demonstrations":
            apart = model.config.memory_of == "demonstrations"
            option = "tagi.memory_of" if apart else "tagi.reads"
            raise ModelFolderError(
                f"{name} reads a task's demonstrations themselves ({option}=demonstrations) and makes no adapter of an "
                "instruction; supported: tagi.memory_of=instruction with tagi.reads=input or prompt"
            )
        model.requires_grad_(False).to(device)
        record = ModelRecord.of(model.source)
        generation = record.generation if record else GenerationConfig()
        return cls(model, load_tokenizer(model.backbone.name), model.prompts, generation)

    def adapt(
        self,
        instruction: str | Instruction,
        demonstrations: Sequence[tuple[str, str] | Mapping[str, str] | Demonstration] = (),
    ) -> InstructedAdapter:
        """Turns one instruction into its adapter; warns where it shows other examples than those of training.

        Args:
            instruction: What the task is, in words.
            demonstrations: Worked examples: pairs of input and output, or mappings with these two keys.

        Raises:
            TypeError: If the instruction is no text, or a demonstration no such example.
            ValueError: If the instruction is empty or too long, or brings demonstrations of its own besides these.
        """
        if not isinstance(instruction, Instruction):
            instruction = Instruction.of(instruction, demonstrations)
        elif demonstrations:
            raise ValueError("an Instruction brings its own demonstrations; give them with it alone")
        if reason := self.unlike_training(instruction):
            warnings.warn(reason, stacklevel=2)
        return next(self.adapt_all([instruction]))

    def adapt_all(self, instructions: Sequence[Instruction]) -> Iterator[InstructedAdapter]:
        """Yields the adapter of each instruction, reading several at once.

        Raises:
            ValueError: If an instruction is too long.
        """
        for start in range(0, len(instructions), BATCH):
            some = instructions[start : start + BATCH]
            prepared = self.model.prepare(self.read(some))
            for row, each in enumerate(some):
                yield InstructedAdapter(self.shown(each), prepared.select(row))

    def read(self, instructions: Sequence[Instruction]) -> Tokens:
        """Returns instructions as the model reads them [T, I].

        Raises:
            ValueError: If one is too long.
        """
        return self._pad([self.prompts.tokenize(self.tokenizer, each).ids for each in instructions])

    def shown(self, instruction: Instruction) -> Instruction:
        """Returns `instruction` with the demonstrations alone that the model reads."""
        if not instruction.demonstrations:
            return instruction
        count = self.prompts.tokenize(self.tokenizer, instruction).shown
        return replace(instruction, demonstrations=instruction.demonstrations[:count])

    def unlike_training(self, instruction: Instruction) -> str:
        """Returns how the examples that are read of an instruction differ from those of training; empty where not."""
        prompts, count, shown = (
            self.prompts,
            len(instruction.demonstrations),
            len(self.shown(instruction).demonstrations),
        )
        if shown < count and prompts.demonstrations == 0:
            return "the model was trained on definitions alone; it reads no examples"
        if shown < min(count, prompts.demonstrations):
            return f"{shown} of {count} examples fit into {prompts.max_input_length} tokens"
        if count < prompts.demonstrations:
            return (
                f"the model was trained on instructions with {prompts.demonstrations} "
                f"examples and this one has {count}; give them: demonstrations, or --positive"
            )
        return ""

    def decoding(
        self, max_new_tokens: int | None = None, stop_at_newline: bool | None = None, num_beams: int = 1
    ) -> GenerationConfig:
        """Returns how the model's run decodes, with what is given in the place of its own."""
        own = self.generation
        return replace(
            own,
            max_new_tokens=own.max_new_tokens if max_new_tokens is None else max_new_tokens,
            stop_at_newline=own.stop_at_newline if stop_at_newline is None else stop_at_newline,
            num_beams=num_beams,
        )

    def generate(
        self, adapter: InstructedAdapter, inputs: Sequence[str], generation: GenerationConfig | None = None
    ) -> list[str]:
        """Returns the answer to each input, in their order.

        Args:
            adapter: What the task's instruction became.
            inputs: The inputs as they are; the prompt around them is added.
            generation: How to decode; None for as the model's run does.

        Raises:
            TypeError: If the inputs are no list of texts.
        """
        if isinstance(inputs, str) or not all(isinstance(text, str) for text in inputs):
            raise TypeError(f'inputs are a list of texts, ["..."] for a single one, got {shortened(repr(inputs))}')
        generation = generation or self.generation
        texts: list[str] = []
        for start in range(0, len(inputs), INPUTS):
            some = inputs[start : start + INPUTS]
            tasks = [0] * len(some)
            texts += self.answer(adapter.prepared, [adapter.instruction], tasks, some, generation).texts
        return texts

    def answer(
        self,
        adapter: TaskAdapter,
        instructions: Sequence[Instruction],
        tasks: Sequence[int],
        inputs: Sequence[str],
        generation: GenerationConfig,
        choices: Sequence[Sequence[str]] = (),
    ) -> Answers:
        """Answers one batch of T tasks; of one task, its LoRA is merged for as long as that takes.

        Args:
            adapter: Adapters of the T tasks.
            instructions: Their instructions.
            tasks: Task of each input, B long.
            inputs: The inputs, B long.
            generation: How to decode.
            choices: Answers to choose from, B rows, one of none to generate; empty to generate all.
        """
        device = self.model.backbone.model.device
        batch = self._batch(instructions, tasks, inputs, choices).to(device)
        merged = adapter.lora is not None and len(instructions) == 1
        with self.model.merged(adapter) if merged else nullcontext(adapter) as rest:  # type: ignore[arg-type]
            return answer(self.model, batch, batch.input, rest, generation, self.tokenizer)

    def _batch(
        self,
        instructions: Sequence[Instruction],
        tasks: Sequence[int],
        inputs: Sequence[str],
        choices: Sequence[Sequence[str]],
    ) -> TaskBatch:
        ranked = {}
        if any(choices):
            targets = [row for some in choices for row in self.prompts.targets(self.tokenizer, some)]
            counts = torch.tensor([len(some) for some in choices])
            ranked = {
                "choices": self._pad(targets),
                "choice_index": torch.arange(len(choices)).repeat_interleave(counts),
            }
        return TaskBatch(
            instruction=self._pad([[]] * len(instructions)),
            input=self._pad(self.input_rows([instructions[task] for task in tasks], inputs)),
            labels=torch.empty(len(inputs), 0, dtype=torch.long),
            task_index=torch.tensor(tasks, dtype=torch.long),
            category=torch.full((len(instructions),), -1),
            choice_texts=tuple(tuple(some) for some in choices),
            **ranked,  # type: ignore[arg-type]
        )

    def input_rows(self, instructions: Sequence[Instruction], inputs: Sequence[str]) -> list[list[int]]:
        """Returns the tokens that the backbone reads of each input, whose instruction has the same place."""
        if self.model.config.reads == "input":
            return self.prompts.inputs(self.tokenizer, inputs)
        pairs = zip(instructions, inputs, strict=True)
        return [self.prompts.inputs(self.tokenizer, [text], instruction)[0] for instruction, text in pairs]

    def save_peft(
        self,
        adapter: InstructedAdapter,
        folder: str | Path,
        overwrite: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Writes the adapter as a folder that PEFT loads, after loading it back and comparing.

        What PEFT cannot hold, fusion and memory, lies beside it; `load_peft` reads the folder whole.

        Args:
            adapter: What an instruction became.
            folder: The folder to make.
            overwrite: Whether to replace a folder that is already there.
            facts: More rows of the card's table.

        Raises:
            AdapterFolderError: If the folder is there, or PEFT does not load it to the same logits.
            ValueError: If what the model generates cannot be an adapter on the backbone as it lies there.
        """
        from tagi_lightning.peft_io.exporting import Exporter

        Exporter(self, overwrite=overwrite, facts=facts or {}).write(adapter, Path(folder))

    def load_peft(self, folder: str | Path, instruction: str | Instruction | None = None) -> InstructedAdapter:
        """Loads what `save_peft` or `tagi adapt` wrote, whole; of PEFT's own folders the LoRA.

        Args:
            folder: The folder.
            instruction: What the adapter was made from, for folders that do not tell; where given, it is taken in the
                place of what the folder tells.

        Raises:
            AdapterFolderError: If it is damaged, is not of this backbone, another model made its fusion or memory, or
                neither it nor the caller tells its instruction.
            TypeError: If the given instruction is no text.
            ValueError: If it is empty or too long.
        """
        from tagi_lightning.peft_io.folders import AdapterFolderError
        from tagi_lightning.peft_io.reading import load_adapter, read_instruction

        prepared = load_adapter(Path(folder), self.model)
        if instruction is not None and not isinstance(instruction, Instruction):
            instruction = Instruction.of(instruction)
        if (known := instruction or read_instruction(Path(folder))) is None:
            raise AdapterFolderError(
                f"{folder} does not tell its instruction, as folders of other tools and of earlier versions do not; "
                "give it: load_peft(folder, instruction=...)"
            )
        return InstructedAdapter(self.shown(known), prepared)

    def _pad(self, rows: Sequence[Sequence[int]]) -> Tokens:
        pad_id = self.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        return Tokens.pad(rows, pad_id).to(self.model.backbone.model.device)
