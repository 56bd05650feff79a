"""`tagi inspect`: pictures of what a trained hypernetwork does with a set of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from tagi_lightning.cli.command import options_of, say
from tagi_lightning.data.ranges import check_range
from tagi_lightning.storage.run_layout import model_folder, runs_of

if TYPE_CHECKING:
    from tagi_lightning.data.task import Task
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.inspection.tasks import InspectedTasks
    from tagi_lightning.lora import LoraBank

Split = Literal["train", "test"]


def inspect(
    model: str,
    tasks: str,
    output: str = "runs/inspection",
    splits: list[Split] = ["train", "test"],  # noqa: B006  (jsonargparse reads it)
    count: int | None = 120,
    instances: int = 2,
    teachers: str = "auto",
    backbone: str | None = None,
    max_new_tokens: int | None = None,
    stop_at_newline: bool | None = None,
    device: str = "cpu",
) -> None:
    """Draw a model's adapters, fusion gates, attention, answers and scores as PNG and one HTML page.

    Args:
        model: Folder of a trained hypernetwork, e.g. runs/demo/model, or id on the Hugging Face hub.
        tasks: Folder of a task set (Super-NaturalInstructions' form, or P3 with its templates in TASKS_templates), or
            tasks of your own: a folder of task files or of JSON lines, or one file of JSON lines.
        output: Where pictures and page go; files of the same names are replaced.
        splits: Which tasks to look at.
        count: Tasks at most, evenly spread over the categories; null for all.
        instances: Inputs of each task that are answered; 0 for none, which is quicker.
        teachers: Folder of taught adapters to compare with; auto for those of the model's run, none for none.
        backbone: Where the backbone lies; null for where it lay in training.
        max_new_tokens: Longest answer in tokens; null for as the model's run decodes.
        stop_at_newline: Answers end at the first line break; null for as the model's run decodes.
        device: Where to compute, e.g. cuda.
    """
    check_range({"--count": count}, least=1, otherwise="null for all tasks")
    check_range({"--instances": instances}, least=0)
    check_range({"--max_new_tokens": max_new_tokens}, least=1)
    by_split = read_tasks(Path(tasks), splits, max(1, instances))

    from tagi_lightning.cli.quiet import without_loading_bars
    from tagi_lightning.inference.instructed import InstructedModel
    from tagi_lightning.inspection.answers import answer_tasks, one_a_task, sample_lines
    from tagi_lightning.inspection.page import write_page
    from tagi_lightning.inspection.pictures import inspect_model, sample_pictures

    without_loading_bars()
    loaded = InstructedModel.load(model, backbone, device=device)
    chosen = tokenize(loaded, by_split, count, max(1, instances))
    say("inspect", f"{len(chosen)} of {sum(map(len, by_split.values()))} tasks")
    inspection = inspect_model(loaded.model, chosen, loaded.tokenizer, find_teachers(loaded, teachers))
    samples = []
    if instances:
        generation = loaded.decoding(max_new_tokens=max_new_tokens, stop_at_newline=stop_at_newline)
        samples = answer_tasks(loaded.model, chosen, loaded.tokenizer, generation)
        inspection.pictures.extend(sample_pictures(samples))
    else:
        inspection.left_out["answers and scores"] = "--instances 0"
    facts = facts_of(loaded, model, tasks, chosen)
    lines = sample_lines(one_a_task(samples)) if samples else ()
    page = write_page(Path(output), f"What {model} does", facts, inspection, lines)
    for what, why in inspection.left_out.items():
        say("inspect", f"left out: {what}: {why}")
    print(page, flush=True)


def read_tasks(path: Path, splits: Sequence[Split], instances: int) -> dict[str, list[Task]]:
    """Returns the tasks of each split, with their first instances.

    Raises:
        DataError: If there is no task set.
        ValueError: If the splits that are asked for hold no task.
    """
    from tagi_lightning.data.custom import read_custom
    from tagi_lightning.data.p3 import read_p3
    from tagi_lightning.data.report import DataReport
    from tagi_lightning.data.sni import read_sni

    report, counts = DataReport(str(path)), {"max_train_instances": instances, "max_test_instances": instances}
    templates = path.with_name(f"{path.name}_templates")
    if (path / "splits").is_dir():
        found = read_sni(path, allow_missing=True, report=report, **counts)  # type: ignore[arg-type]
    elif templates.is_dir():
        found = read_p3(path, templates, allow_missing=True, report=report, **counts)  # type: ignore[arg-type]
    else:
        found = read_custom(path, report=report, **counts)  # type: ignore[arg-type]
    by_split: dict[str, list[Task]] = {split: list(getattr(found, split)) for split in splits if getattr(found, split)}
    if not by_split:
        raise ValueError(f"{path} has no {' or '.join(splits)} tasks; choose others: --splits '[train,test]'")
    return by_split


def tokenize(
    loaded: InstructedModel, by_split: Mapping[str, Sequence[Task]], count: int | None, instances: int
) -> InspectedTasks:
    """Returns tasks as the model reads them.

    Raises:
        DataError: If an instruction is too long for the model.
    """
    from tagi_lightning.data.collate import TaskCollator
    from tagi_lightning.data.prompts import PromptAssembler
    from tagi_lightning.data.report import DataReport
    from tagi_lightning.data.token_cache import load_or_tokenize
    from tagi_lightning.data.tokenized import check_lengths
    from tagi_lightning.inspection.tasks import collate_tasks, evenly_spaced

    tokenizer, prompts = loaded.tokenizer, loaded.prompts
    assembler = PromptAssembler.from_tokenizer(
        tokenizer, prompts.demonstrations, prompts.max_input_length, form=prompts.form
    )
    with_prompt = loaded.model.config.reads == "prompt"
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    collator = TaskCollator(assembler, (), pad_id, with_prompt=with_prompt)
    pairs = [(task.category, split, task.name, task) for split, tasks in by_split.items() for task in tasks]
    chosen = evenly_spaced(sorted(pairs, key=lambda pair: pair[:3]), count)
    with TemporaryDirectory() as cache:
        report, tokenized = DataReport("the tasks"), {}
        for split in by_split:
            tasks = [replace(task, instances=task.instances[:instances]) for _, own, _, task in chosen if own == split]
            if tasks:
                tokenized[split] = load_or_tokenize(tasks, tokenizer, Path(cache), prompts.form)
                check_lengths(tokenized[split], assembler, with_prompt, report)
        report.raise_if_errors("Leave these tasks out.")
        return collate_tasks(tokenized, collator, instances)


def find_teachers(loaded: InstructedModel, teachers: str) -> LoraBank | None:
    """Returns the teachers of a folder or of the model's run; None where they are not wanted or there are none.

    Raises:
        ModelFolderError: If the folder that was named holds none that fit the model.
    """
    from tagi_lightning.storage.serialization import ModelFolderError, load_bank

    if teachers == "none":
        return None
    model = loaded.model
    named = [] if teachers == "auto" else [Path(teachers)]
    assert model.source is not None
    own = [model_folder(run, "teachers") for run in runs_of(model.source)]
    for folder in named or [folder for folder in own if folder.is_dir()]:
        try:
            return load_bank(folder, model.backbone, model.config.lora).to(model.backbone.model.device)
        except ModelFolderError as error:
            if named:
                raise
            say("inspect", f"the run's teachers cannot be compared with: {error}")
    return None


def facts_of(loaded: InstructedModel, name: str, tasks: str, chosen: InspectedTasks) -> dict[str, str]:
    """Returns what the page tells of model and tasks."""
    model = loaded.model
    categories = len({task.category for task in chosen.tasks})
    splits = [task.split for task in chosen.tasks]
    counts = ", ".join(f"{splits.count(split)} {split}" for split in sorted(set(splits), reverse=True))
    return {
        "model": f"{name}, weights {model.digest()[:12]}",
        "backbone": f"{model.backbone.name}, weights {model.backbone.digest()[:12]}",
        "trained by": ", ".join(model.stages) or "unknown",
        "rank": f"{model.config.lora.rank}, updates scaled by {model.config.lora.scale:g}",
        "tasks": f"{len(chosen)} of {tasks}: {counts}; {categories} categories",
    }


main = options_of(inspect)
