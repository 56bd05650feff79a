import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from tagi_lightning.reproduce.jobs import Job, read_record
from tagi_lightning.reproduce.runner import Runner, last_words

FINE = "print('working'); open(result, 'w').close()"
WRONG = "print('reading'); raise SystemExit('it went wrong')"
SLEEPY = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: exit(143))
open(result + '.up', 'w')
time.sleep(60)
"""


def job(folder, name, *needs, script=FINE, digest="d"):
    """Returns a job whose command is Python code that may leave `result`."""
    result = folder / name / "result"
    return Job(name, "distill", folder / name, (f"result = {str(result)!r}\n{script}",), digest, needs, (result,))


def launch(job):
    with job.log.open("wb") as log:
        return subprocess.Popen([sys.executable, "-c", job.command[0]], stdout=log, stderr=log, start_new_session=True)


def run(jobs, workers=2, **options):
    lines = []
    outcome = Runner(jobs, options.get("launch", launch), workers, options.get("seconds"), lines.append).run()
    return outcome, lines


def names(jobs):
    return [job.name for job in jobs]


def test_jobs_run_after_those_they_need_and_leave_a_log_and_a_record(tmp_path):
    check = "import os; assert os.path.exists(result.replace('second', 'first')); "
    jobs = [job(tmp_path, "first"), job(tmp_path, "second", "first", script=check + FINE)]
    outcome, lines = run(jobs)
    assert names(outcome.done) == ["first", "second"]
    assert (outcome.failed, outcome.blocked, outcome.interrupted) == ({}, {}, None)
    assert jobs[0].log.read_text(encoding="utf-8") == "working\n"
    assert read_record(jobs[0].record)["digest"] == "d"
    assert "2 done, 0 running, 0 left" in lines[-1]
    assert sum("finished first" in line for line in lines) == 1


def test_what_is_done_is_left_alone_and_what_follows_new_work_is_looked_at_again(tmp_path):
    chain = [job(tmp_path, "first"), job(tmp_path, "second", "first"), job(tmp_path, "other")]
    run(chain)
    assert names(run(chain)[0].skipped) == ["first", "second", "other"]
    chain[0].results[0].unlink()
    again, _ = run(chain)
    assert names(again.skipped) == ["other"]
    assert names(again.done) == ["first", "second"]


def test_another_configuration_is_another_job(tmp_path):
    run([job(tmp_path, "first")])
    assert names(run([job(tmp_path, "first", digest="e")])[0].done) == ["first"]


def test_a_failed_job_stops_what_needs_it_and_nothing_else(tmp_path):
    jobs = [
        job(tmp_path, "bad", script=WRONG),
        job(tmp_path, "child", "bad"),
        job(tmp_path, "grandchild", "child"),
        job(tmp_path, "good"),
    ]
    outcome, lines = run(jobs, workers=1)
    assert outcome.failed == {"bad": 1}
    assert outcome.blocked == {"child": "bad", "grandchild": "bad"}
    assert names(outcome.done) == ["good"]
    assert last_words(jobs[0]) == "it went wrong"
    assert any("FAILED bad" in line and str(jobs[0].log) in line for line in lines)
    assert not jobs[0].is_done()


def test_a_job_that_failed_is_tried_again(tmp_path):
    run([job(tmp_path, "first", script=WRONG)])
    outcome, _ = run([job(tmp_path, "first")])
    assert names(outcome.done) == ["first"]


def test_only_so_many_jobs_run_at_a_time(tmp_path):
    running, most = set(), []

    def count(job):
        running.difference_update([name for name in running if (tmp_path / name / "result").exists()])
        running.add(job.name)
        most.append(len(running))
        return launch(job)

    run([job(tmp_path, f"job{n}") for n in range(5)], workers=2, launch=count)
    assert len(most) == 5
    assert max(most) <= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_what_it_ended_is_told(tmp_path, number):
    sleepy = job(tmp_path, "sleepy", script=SLEEPY.replace("SIGTERM", signal.Signals(number).name))

    def interrupt():
        while not (tmp_path / "sleepy" / "result.up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    handlers = signal.getsignal(number)
    outcome, lines = run([sleepy, job(tmp_path, "after", "sleepy")], workers=1)
    thread.join()
    assert outcome.interrupted == number
    assert names(outcome.stopped) == ["sleepy"]
    assert outcome.failed == {}
    assert "1 left" in lines[-1]
    assert signal.getsignal(number) is handlers
    assert not sleepy.record.exists()


def test_an_error_of_the_runner_leaves_no_process_behind(tmp_path):
    started = []

    def fail_second(job):
        if started:
            raise OSError("no space left")
        started.append(launch(job))
        return started[0]

    with pytest.raises(OSError, match="no space left"):
        run([job(tmp_path, "one", script=SLEEPY), job(tmp_path, "two")], launch=fail_second)
    assert started[0].wait(timeout=10) != 0


def test_time_to_go_is_told_by_jobs_of_the_same_kind(tmp_path):
    jobs = [job(tmp_path, "first"), job(tmp_path, "second", "first")]
    runner = Runner(jobs, launch, 1, {"distill": [100.0, 140.0]})
    runner._waiting = {job.name: job for job in jobs}
    assert runner.left() == "about 4 min 00 s to go"
    for known in ({}, {"evaluate": [100.0]}):
        runner = Runner(jobs, launch, 1, known)
        runner._waiting = {job.name: job for job in jobs}
        assert runner.left() == "time to go not known yet"
    runner._waiting["other"] = replace(jobs[0], kind="evaluate")
    assert runner.left() == "more than 1 min 40 s to go"


def test_files_are_written_before_a_job_starts(tmp_path):
    made = Job(
        "a", "distill", tmp_path, (f"open({str(tmp_path / 'part.yaml')!r})",), "d", files={tmp_path / "part.yaml": "x"}
    )
    assert names(run([made])[0].done) == ["a"]
