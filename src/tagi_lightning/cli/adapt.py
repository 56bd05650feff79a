"""`tagi adapt`: turns instructions into adapters, each a folder that PEFT loads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagi_lightning.cli.command import options_of, say
from tagi_lightning.cli.instructions import one_instruction
from tagi_lightning.data.ranges import check_range

if TYPE_CHECKING:
    import torch

    from tagi_lightning.data.instruction import Instruction
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.peft_io import Exporter

REPORT = "finetuning.json"


def adapt(
    model: str,
    output: str,
    instruction: str | None = None,
    definition: str | None = None,
    positive: list[dict[str, str]] | None = None,
    task: str | None = None,
    file: str | None = None,
    stack: str | None = None,
    name: str | None = None,
    backbone: str | None = None,
    merge: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    stacked: bool = False,
    finetune: str | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> None:
    """Write one PEFT adapter folder for each instruction; give one of instruction, definition, task, file and stack.

    Args:
        model: Folder of a trained hypernetwork, e.g. runs/demo/model, or id on the Hugging Face hub.
        output: Where the folders go, each named after its instruction; with --stacked, the folder itself.
        instruction: What the task is, in words.
        definition: The same under Super-NaturalInstructions' name.
        positive: Worked examples beside it: '[{"input": "2 3", "output": "5"}]'.
        task: A task file in Super-NaturalInstructions' schema.
        file: JSON lines, each with an instruction and optionally demonstrations and task (a name).
        stack: A folder of --stacked, of which --name becomes a PEFT folder.
        name: Name of the adapter in --stack, as its index tells.
        backbone: Where the backbone lies; null for where it lay in training.
        merge: Write whole models too, the adapter in their weights, as NAME-merged.
        dtype: Type of merged models' weights.
        stacked: Write all adapters into one folder of sharded safetensors with an index, for thousands of them.
        finetune: JSON lines of input and output: train the one LoRA further on them, without fusion and memory, and
            report that beside training from scratch. A quarter of the lines is held out.
        steps: Steps of --finetune; null for 100.
        lr: Learning rate of --finetune; null for 0.001.
        seed: Draws what --finetune holds out and the order of the others; null for 0.
        device: Where to compute, e.g. cuda.
        overwrite: Replace folders that are already there.
    """
    if (stack is None) != (name is None):
        raise ValueError("--stack FOLDER and --name NAME go together: which adapter of a folder of --stacked is wanted")
    if sum([merge, stacked, finetune is not None]) > 1:
        raise ValueError("give one of --merge, --stacked and --finetune: they write different things")
    options = {"steps": steps, "lr": lr, "seed": seed}
    given_options = {name: value for name, value in options.items() if value is not None}
    if given_options and finetune is None:
        raise ValueError(f"--{next(iter(given_options))} goes with --finetune FILE, which says what to train on")
    check_range({"--steps": steps}, least=1)
    check_range({"--lr": lr}, above=0)
    instructions = gather(instruction, definition, positive, task, file, stack)
    if finetune is not None and len(instructions) != 1:
        raise ValueError("--finetune trains the adapter of one instruction: --instruction, --definition or --task")

    import torch

    from tagi_lightning.cli.quiet import without_loading_bars
    from tagi_lightning.cli.runs import git_state
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.peft_io import Exporter

    without_loading_bars()
    loaded = InstructedModel.load(model, backbone, device=device)
    exporter = Exporter(loaded, overwrite, {"commit": git_state()["commit"] or "unknown"})
    if exporter.loses and finetune is None:
        say("adapt", exporter.loses)
    tell_shown(loaded, instructions)
    # what is not read stands in no name and no record
    instructions = list(dict.fromkeys(map(loaded.shown, instructions)))
    if stack is not None and name is not None:
        written = write_from_stack(exporter, Path(stack), name, Path(output))
    elif stacked:
        written = write_stack(exporter, instructions, Path(output))
    elif finetune is not None:
        written = write_finetuned(exporter, instructions[0], Path(finetune), Path(output), given_options)
    else:
        written = write_folders(exporter, instructions, Path(output), getattr(torch, dtype) if merge else None)
    for folder in written:
        print(folder, flush=True)


def gather(
    instruction: str | None,
    definition: str | None,
    positive: Sequence[dict[str, str]] | None,
    task: str | None,
    file: str | None,
    stack: str | None = None,
) -> list[Instruction]:
    """Returns the instructions that the options give; none where adapters are taken from a stack.

    Raises:
        ValueError: If not exactly one option gives them, or an example is none.
        DataError: If a file holds none.
    """
    from tagi_lightning.data.instruction import read_instructions

    given = {"instruction": instruction, "definition": definition, "task": task, "file": file, "stack": stack}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"give one of --{', --'.join(given)}, which say what the adapters are for; "
            f"got {' and '.join(named) or 'none'}"
        )
    one = one_instruction(instruction, definition, positive, task)
    if one is not None:
        return [one]
    return read_instructions(Path(file)) if file is not None else []


def write_folders(
    exporter: Exporter, instructions: Sequence[Instruction], output: Path, dtype: torch.dtype | None
) -> Iterator[Path]:
    """Writes and yields a PEFT folder for each instruction, and a merged model where a type is given for it."""
    for given, adapter in zip(instructions, exporter.loaded.adapt_all(instructions), strict=True):
        folder = output / given.folder_name
        exporter.write(adapter, folder)
        yield folder
        if dtype is not None:
            folder = folder.with_name(f"{folder.name}-merged")
            exporter.write_merged(adapter, folder, dtype)
            yield folder


def write_stack(exporter: Exporter, instructions: Sequence[Instruction], output: Path) -> Iterator[Path]:
    """Writes and yields one folder of all adapters."""
    from tagi_lightning.peft_io.stacked import StackWriter

    start = time.monotonic()
    for done in StackWriter(exporter).write(instructions, output):
        say("adapt", f"{done} of {len(instructions)} adapters in {time.monotonic() - start:.0f} s")
    yield output


def write_from_stack(exporter: Exporter, stack: Path, name: str, output: Path) -> Iterator[Path]:
    """Writes and yields the PEFT folder of one adapter of a stack."""
    from tagi_lightning.peft_io.stacked import StackedAdapters

    adapter = StackedAdapters(stack, exporter.loaded).adapter(name)
    exporter.write(adapter, output / name)
    yield output / name


def write_finetuned(
    exporter: Exporter, instruction: Instruction, data: Path, output: Path, options: Mapping[str, Any]
) -> Iterator[Path]:
    """Writes and yields the PEFT folder of an adapter that was trained further, with the report beside it."""
    from tagi_lightning.data.labelled import read_labelled
    from tagi_lightning.inference.finetuning import FinetuneConfig, Finetuner

    config = FinetuneConfig(**options)
    tuner = Finetuner(exporter.loaded, config)
    [adapter] = exporter.loaded.adapt_all([instruction])
    lora, report = tuner.run(adapter, read_labelled(data))
    say("adapt", f"{report.trained_on} examples trained on, {report.held_out} held out\n{report.table()}")
    folder = output / f"{instruction.folder_name}-finetuned"
    trained = f"{config.steps} steps on {report.trained_on} examples, learning rate {config.lr:g}"
    exporter.write_lora(lora, adapter.instruction, folder, {"trained further": trained}, report.table())
    (folder / REPORT).write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    yield folder


def tell_shown(loaded: InstructedModel, instructions: Sequence[Instruction]) -> None:
    """Says which adapters are made of other examples than those that their model was trained with; each reason once."""
    names: dict[str, list[str]] = {}
    for given in instructions:
        if reason := loaded.unlike_training(given):
            names.setdefault(reason, []).append(loaded.shown(given).folder_name)
    for reason, (first, *others) in names.items():
        more = f" and {len(others)} more" if others else ""
        say("adapt", f"{first}{more}: {reason}")


main = options_of(adapt, texts=("instruction", "definition"))
