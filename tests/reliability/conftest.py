"""What the reliability tests share: a chain made in a process of its own, uninterrupted runs, and the record."""

import json
import os
import random
import time

import pytest
from commands import STAGES, STEPS, command, copy_stages, write_task_set
from fuzzing import EXAMPLES
from reliability_runs import OPTIONS, POINTS, RECORD, STEPS_OF_RUN, run_alone

STARTED = time.monotonic()


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """A synthetic task set of a few instances; not to be changed."""
    folder = tmp_path_factory.mktemp("tasks") / "data"
    write_task_set(folder)
    return folder


@pytest.fixture(scope="session")
def made(tasks, tmp_path_factory):
    """The run folder of the whole chain, a few steps a stage; not to be changed."""
    run = tmp_path_factory.mktemp("made") / "run"
    for stage in STAGES:
        log = run.parent / f"{stage}.log"
        assert run_alone(command(stage, run, tasks, f"--trainer.max_steps={STEPS}"), log) == 0, log.read_text()
    return run


@pytest.fixture(scope="session")
def start(made, tasks):
    """A function that makes a run folder in which a stage can start, and returns the command that trains it."""

    def start(stage, run, *options, steps=STEPS_OF_RUN):
        copy_stages(made, run, *STAGES[: STAGES.index(stage)])
        own = [f"--trainer.max_steps={steps}", "--trainer.log_every_n_steps=1", *OPTIONS[stage]]
        return command(stage, run, tasks, *own, *options)

    return start


@pytest.fixture(scope="session")
def whole(start, tmp_path_factory):
    """A function that trains a stage without a stop, once, and returns its run folder and its log."""
    runs = {}

    def whole(stage, *options):
        if (stage, options) not in runs:
            folder = tmp_path_factory.mktemp(f"whole-{stage}")
            run, log = folder / "run", folder / "log"
            assert run_alone(start(stage, run, *options), log) == 0, log.read_text()
            runs[stage, options] = run, log
        return runs[stage, options]

    return whole


@pytest.fixture
def draw(request):
    """Random numbers that depend on the test alone."""
    return random.Random(request.node.name)


@pytest.fixture
def record():
    """A function that adds what was tried to the record: what, how often, and what came out."""

    def record(what, tried, outcome, **details):
        write_record("rows", {what: {"tried": tried, "outcome": outcome, **details}})

    return record


def write_record(part, values):
    """Adds to a part of the record."""
    parts = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    parts[part] = parts.get(part, {}) | values
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(parts, indent=2) + "\n")


def pytest_sessionfinish(session):
    """Adds to the record what kind of run it is of."""
    if "RECORD" in os.environ:
        reports = session.config.pluginmanager.get_plugin("terminalreporter").stats
        counts = {"tests": session.testscollected, "skipped": len(reports.get("skipped", ()))}
        minutes = round((time.monotonic() - STARTED) / 60, 1)
        write_record("run", {"points": POINTS, "examples": EXAMPLES, **counts, "minutes": minutes})
