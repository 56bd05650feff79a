"""`tagi doctor`: looks whether everything is as it should be, one line a check, and trains two steps to see."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from tagi_lightning.cli.command import finish, options_of
from tagi_lightning.doctor import Finding
from tagi_lightning.doctor.versions import check_python, check_versions, compromised

DATA, RUNS = "data", "runs"

TASKS = {"train_instances": 4, "test_instances": 1, "documents_per_task": 1}
"""The smallest synthetic task set."""

LORA = {"rank": 4}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain-backbone": {"class_path": "BackbonePretraining"},
    "teachers": {"class_path": "TeacherTraining", "init_args": {"lora": LORA, "report_instances": 0}},
    "pretrain": {"class_path": "HypernetworkPretraining", "init_args": {"tagi": {"lora": LORA}}},
    "align": {"class_path": "Alignment", "init_args": {"tagi": {"lora": LORA}}},
    "distill": {"class_path": "Distillation", "init_args": {"tagi": {"lora": LORA}}},
    "evaluate": {"class_path": "Evaluation", "init_args": {"systems": ["tagi"], "flops": False}},
}
"""The stages as the doctor trains them, each for two steps."""

LIMITS = {"max_steps": 2, "limit_test_batches": 1, "logger": False, "enable_progress_bar": False}


def stage_config(stage: str, folder: Path) -> dict[str, Any]:
    """Returns the configuration of one stage, all in `folder`."""
    tasks: dict[str, Any] = {"folder": str(folder / "data"), "synthetic": TASKS, "with_prompt": True}
    text = {"corpora": [str(folder / "data" / "corpus")], "max_length": 64, "cache_dir": str(folder / "cache")}
    data: dict[str, Any] = {"class_path": "SyntheticDataModule", "init_args": tasks | {"tasks_per_batch": 2}}
    if stage == "pretrain-backbone":
        data = {"class_path": "BackboneDataModule", "init_args": text}
    elif stage == "pretrain":
        data = {"class_path": "PlainTextDataModule", "init_args": text}
    return {
        "run": str(folder / "run"),
        "backbone": {"name": "tiny"},
        "tokenizer": str(folder / "data" / "tokenizer"),
        "trainer": {"accelerator": "auto", "devices": 1, "enable_model_summary": False, **LIMITS},
        "model": STAGES[stage],
        "data": data,
    }


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Leaves out the lines that Lightning logs inside the block, errors excepted."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train_stages() -> Iterator[Finding]:
    """Trains every stage for two steps on a synthetic task set, and decodes with the result, in a temporary folder."""
    from tagi_lightning.cli import evaluate, fit
    from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tagi-doctor-") as name:
        write_synthetic(Path(name) / "data", SyntheticConfig(**TASKS))
        for stage in STAGES:
            verb, main = ("evaluate", evaluate.main) if stage == "evaluate" else ("fit", fit.main)
            told = io.StringIO()
            failure = None
            try:
                with hushed(), contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                    if code := finish(verb, main, ["--config", dumps(stage_config(stage, Path(name)))]):
                        failure = f"exit code {code}"
            except (Exception, SystemExit) as error:  # whatever does not work is what is looked for
                failure = f"{type(error).__name__}: {error}"
            if failure:
                last = " ".join(told.getvalue().splitlines()[-5:])
                advice = f"see whether a line above explains it, or ask with these words: {last}"
                yield Finding("training", "problem", f"two steps of {stage} ended with {failure}", advice)
                return
    yield Finding("training", "ok", f"two steps of {', '.join(STAGES)} in {time.monotonic() - start:.0f} s")


def findings(data: Path, runs: Path, corpora: list[Path], train: bool) -> Iterator[Finding]:
    """Yields all findings; nothing that imports Lightning is touched where a compromised release is installed."""
    yield check_python()
    yield from check_versions()
    if compromised():
        yield Finding("training", "problem", "not tried: it would import a compromised release", "see above")
        return
    from tagi_lightning.doctor.folders import check_caches, check_data, check_hub
    from tagi_lightning.doctor.machine import check_machine

    yield from check_machine({"runs": runs, "data": data})
    yield from check_caches([data, Path(".")])
    yield from check_hub(os.environ)
    yield from check_data(data, corpora, named=data != Path(DATA))
    if train:
        yield from train_stages()


def doctor(
    data: str = DATA, runs: str = RUNS, corpora: list[str] | None = None, train: bool = True, json: bool = False
) -> int:
    """Tell whether versions, machine, caches and data are as they should be, and whether training works.

    Args:
        data: Folder of the data: synthetic/, sni/, p3/ with p3_templates/, corpora/.
        runs: Folder of the runs.
        corpora: Further files and folders of plain text.
        train: Train every stage for two steps on a synthetic task set in a temporary folder, within a minute.
        json: Print JSON instead of lines.
    """
    found = []
    for finding in findings(Path(data), Path(runs), [Path(path) for path in corpora or []], train):
        found.append(finding)
        if not json:
            print(finding.line(), flush=True)
    states = [finding.state for finding in found]
    if json:
        print(dumps({"well": "problem" not in states, "findings": [asdict(each) for each in found]}, indent=2))
    else:
        print(f"{states.count('problem')} problems, {states.count('warning')} warnings, {states.count('ok')} ok")
    return int("problem" in states)


main = options_of(doctor)
