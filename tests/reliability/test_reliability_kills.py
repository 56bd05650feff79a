"""Runs ended at any moment, and resumed: the bits of one that was never stopped."""

import time

import pytest
from commands import STAGES
from reliability_runs import POINTS, STEPS_OF_RUN, Process, assert_same_run, last_step, run_alone

from tagi_lightning.stages.base import Stage

pytestmark = pytest.mark.reliability


@pytest.mark.parametrize("stage", ["distill", "pretrain"])
def test_killed_runs_go_on_to_the_same_bits(start, whole, tmp_path, draw, record, stage):
    expected, expected_log = whole(stage)
    duration = time_of_training(start, tmp_path, stage)
    steps = []
    for point in range(POINTS):
        run, logs = tmp_path / f"{point}" / "run", [tmp_path / f"{point}-{part}.log" for part in range(2)]
        workers = f"--data.init_args.num_workers={2 * (point % 2)}"
        arguments = start(stage, run, workers)
        process = Process(arguments, logs[0])
        process.wait_for(f"{stage}: starting in")
        code = process.kill_after(draw.uniform(0.0, 1.5 * duration if workers.endswith("2") else duration))
        steps.append(last_step(run, stage))
        assert code in (-9, 0), process.printed()
        assert run_alone(arguments, logs[1]) == 0, logs[1].read_text()
        assert_same_run(run, expected, stage, logs, expected_log)
    started = [step for step in steps if step is not None and step < STEPS_OF_RUN]
    assert len(started) >= POINTS // 2, steps
    record(
        f"SIGKILL of a process in {stage}", POINTS, f"{POINTS} resumed to the same bits", steps_on_disk=sorted(started)
    )


def time_of_training(start, tmp_path, stage):
    """Returns the seconds from the line that says that a run starts to its end."""
    process = Process(start(stage, tmp_path / "timed" / "run"), tmp_path / "timed.log")
    process.wait_for(f"{stage}: starting in")
    since = time.monotonic()
    assert process.wait() == 0
    return time.monotonic() - since


class Stop(Exception):
    pass


def stop_at(places):
    """Makes training end with an exception at some batches, counted over all batches of a process; before logging."""
    log_loss, seen = Stage.log_loss, [0]

    def stopped(self, name, *args, **kwargs):
        if name == "loss":
            seen[0] += 1
            if seen[0] in places:
                raise Stop
        log_loss(self, name, *args, **kwargs)

    Stage.log_loss = stopped


@pytest.mark.parametrize("stage", STAGES)
def test_runs_ended_by_exceptions_go_on_to_the_same_bits(start, whole, tmp_path, draw, record, stage):
    expected, expected_log = whole(stage)
    count = max(3, POINTS // 4)
    for point in range(count):
        run, logs = tmp_path / f"{point}" / "run", []
        arguments = start(stage, run)
        # twice, the second time in the resumed run
        for place in (draw.randrange(1, 40), draw.randrange(1, 20), None):
            logs.append(tmp_path / f"{point}-{len(logs)}.log")
            code = run_alone(arguments, logs[-1], (lambda at=place: stop_at([at])) if place else None)
            assert code in ((0, 70) if place else (0,)), logs[-1].read_text()
        assert_same_run(run, expected, stage, logs, expected_log)
    record(f"Two exceptions in a run of {stage}", count, f"{count} resumed to the same bits")
