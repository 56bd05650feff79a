"""`tagi adapt`: turns instructions into adapters, each a folder that PEFT loads."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jsonargparse

if TYPE_CHECKING:
    import torch

    from tagi_lightning.adapter import PreparedAdapter
    from tagi_lightning.data.instruction import Instruction
    from tagi_lightning.instructed import InstructedModel


def adapt(
    model: str,
    output: str,
    instruction: str | None = None,
    definition: str | None = None,
    positive: list[dict[str, str]] | None = None,
    task: str | None = None,
    file: str | None = None,
    backbone: str | None = None,
    merge: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Write one PEFT adapter folder for each instruction; give one of instruction, definition, task and file.

    Args:
        model: Folder of a trained hypernetwork, e.g. runs/demo/model.
        output: Where the folders go, each named after its instruction.
        instruction: What the task is, in words.
        definition: The same under Super-NaturalInstructions' name.
        positive: Worked examples beside it: '[{"input": "2 3", "output": "5"}]'.
        task: A task file in Super-NaturalInstructions' schema.
        file: JSON lines, each with an instruction and optionally demonstrations and task (a name).
        backbone: Where the backbone lies; null for where it lay in training.
        merge: Write whole models too, the adapter in their weights, as NAME-merged.
        dtype: Type of merged models' weights.
        overwrite: Replace folders that are already there.
    """
    import torch
    import transformers

    from tagi_lightning.instructed import InstructedModel

    transformers.utils.logging.disable_progress_bar()
    instructions = gather(instruction, definition, positive, task, file)
    loaded = InstructedModel.load(Path(model), backbone)
    exporter = Exporter(loaded, Path(model), getattr(torch, dtype) if merge else None, overwrite)
    exporter.tell()
    for each, adapter in zip(instructions, loaded.adapt(instructions), strict=True):
        for folder in exporter.write(each, adapter, Path(output)):
            print(folder, flush=True)


def gather(
    instruction: str | None,
    definition: str | None,
    positive: Sequence[dict[str, str]] | None,
    task: str | None,
    file: str | None,
) -> list[Instruction]:
    """Returns the instructions that the options give.

    Raises:
        ValueError: If not exactly one option gives them, or an example is none.
        DataError: If a file holds none.
    """
    from tagi_lightning.data.instruction import Instruction, read_instructions, read_task_instruction
    from tagi_lightning.data.task import Demonstration

    given = {"instruction": instruction, "definition": definition, "task": task, "file": file}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"give one of --{', --'.join(given)}, which say what the adapters are for; "
            f"got {' and '.join(named) or 'none'}"
        )
    if positive and (task or file):
        raise ValueError(f"--positive goes with --instruction or --definition; {named[0]} brings its own examples")
    if task:
        return [read_task_instruction(Path(task))]
    if file:
        return read_instructions(Path(file))
    text = instruction if instruction is not None else definition
    if not text or not text.strip():
        raise ValueError(f"{named[0]} is empty; say in words what the task is")
    if wrong := [each for each in positive or () if each.keys() != {"input", "output"}]:
        raise ValueError(f'--positive takes examples such as {{"input": "2 3", "output": "5"}}, got {wrong[0]}')
    return [Instruction(text, tuple(Demonstration(each["input"], each["output"]) for each in positive or ()))]


class Exporter:
    """Writes the folders of one `tagi adapt`."""

    def __init__(self, loaded: InstructedModel, folder: Path, dtype: torch.dtype | None, overwrite: bool) -> None:
        """Takes the model.

        Args:
            loaded: The model.
            folder: Where it was loaded from.
            dtype: Type of merged models, or None to write none.
            overwrite: Whether to replace folders that are there.

        Raises:
            ValueError: If what the model generates cannot be an adapter on the backbone as it lies there.
        """
        from tagi_lightning.peft_io import PeftWriter

        config = loaded.model.config
        if config.trained_backbone != "none":
            raise ValueError(
                f"{folder} trained weights of the backbone itself (tagi.trained_backbone={config.trained_backbone}), "
                "which no adapter holds; supported: trained_backbone=none"
            )
        if not config.hypernetwork.enabled or config.hypernetwork.writes == "prefix":
            raise ValueError(
                f"{folder} generates no LoRA; supported: tagi.hypernetwork.enabled=true with writes=lora or both"
            )
        self.loaded, self.folder, self.dtype, self.overwrite = loaded, folder, dtype, overwrite
        self.writer = PeftWriter(loaded.model.backbone)

    @property
    def pieces(self) -> str:
        """What its adapters have besides LoRA, in words."""
        config = self.loaded.model.config
        has = {
            "fusion of the encoder with the instruction": config.fusion.enabled,
            "the instruction as memory of the decoder": config.decoder_memory,
            "a generated prefix": config.hypernetwork.writes == "both",
        }
        return ", ".join(piece for piece, there in has.items() if there)

    def tell(self) -> None:
        """Says on standard error what users of PEFT alone do without."""
        from tagi_lightning.peft_io.card import LOSES

        if self.pieces:
            say(LOSES.format(pieces=self.pieces))

    def write(self, instruction: Instruction, adapter: PreparedAdapter, output: Path) -> Iterator[Path]:
        """Writes and yields the folders of one adapter."""
        from tagi_lightning.peft_io import merge_to_folder

        assert adapter.lora is not None
        shown = self.shown(instruction)
        folder = output / instruction.folder_name
        rest = adapter if self.pieces else None
        self.writer.write(adapter.lora, folder, self.card(shown, "adapter"), rest, self.overwrite)
        yield folder
        if self.dtype is not None:
            folder = folder.with_name(f"{folder.name}-merged")
            merge_to_folder(
                self.loaded.model.backbone,
                adapter.lora,
                folder,
                self.dtype,
                self.loaded.tokenizer,
                self.card(shown, "merged"),
                self.overwrite,
            )
            yield folder

    def shown(self, instruction: Instruction) -> Instruction:
        """Returns the instruction with the examples that the model read, and says where it was trained on others."""
        prompts = self.loaded.prompts
        count = prompts.tokenize(self.loaded.tokenizer, instruction).shown
        given = len(instruction.demonstrations)
        if count < given and prompts.demonstrations == 0:
            say(f"{instruction.folder_name}: the model was trained on definitions alone; it reads no examples")
        elif count < min(given, prompts.demonstrations):
            say(f"{instruction.folder_name}: {count} of {given} examples fit into {prompts.max_input_length} tokens")
        elif given < prompts.demonstrations:
            say(
                f"{instruction.folder_name}: the model was trained on instructions with {prompts.demonstrations} "
                f"examples and this one has {given}; give them: --positive"
            )
        return replace(instruction, demonstrations=instruction.demonstrations[:count])

    def card(self, instruction: Instruction, kind: Literal["adapter", "merged"]) -> str:
        """Returns the text of the folder's README.md."""
        from tagi_lightning import __version__
        from tagi_lightning.cli.runs import git_state
        from tagi_lightning.peft_io.card import adapter_card

        model = self.loaded.model
        lora, backbone = model.config.lora, model.backbone
        stacks = sorted({site.stack for site in model.sites})
        facts = {
            "backbone": f"{backbone.name}, weights {self.writer.digest[:12]}",
            "hypernetwork": f"{self.folder}, weights {model.digest()[:12]}",
            "rank": f"{lora.rank}, updates scaled by {lora.scale:g}",
            "sites": f"{len(model.sites)}: {', '.join(lora.targets)} of {', '.join(stacks)}",
            "tagi-lightning": f"{__version__}, commit {git_state()['commit'] or 'unknown'}",
        }
        read = instruction if model.config.reads == "prompt" else None
        return adapter_card(
            instruction,
            self.loaded.prompts.template(self.loaded.tokenizer, read),
            backbone.name,
            backbone.model.config.is_encoder_decoder,
            facts,
            kind,
            self.pieces,
        )


def say(text: str) -> None:
    """Prints to standard error, since standard output lists folders."""
    print(f"tagi adapt: {text}", file=sys.stderr, flush=True)


def main(args: list[str]) -> int:
    """Runs `tagi adapt`; returns the exit code."""
    from tagi_lightning.data.report import DataError

    try:
        jsonargparse.auto_cli(adapt, args=args, as_positional=False, prog="tagi adapt", allow_abbrev=False)
    except (DataError, ValueError, OSError) as error:
        say(str(error))
        return 1
    return 0
