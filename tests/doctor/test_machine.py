import pytest

from tagi_lightning.doctor.limits import available_memory, cores
from tagi_lightning.doctor.machine import (
    GIB,
    check_devices,
    check_disk,
    check_memory,
    check_processor,
    check_threads,
    existing,
)


@pytest.fixture
def system(tmp_path):
    """Writes a system's files: control groups in `cgroups`, processes in `proc`."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n", encoding="ascii")
        return tmp_path / "cgroups", tmp_path / "proc"

    return write


MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB"


def test_without_limits_all_that_is_free_may_be_taken(system):
    cgroups, proc = system({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/"})
    assert available_memory(cgroups, proc) == 8 * GIB
    assert cores(cgroups, proc) >= 1
    assert available_memory(cgroups, proc / "none") is None


def test_the_tightest_group_of_version_2_counts_whose_file_cache_is_free(system):
    cgroups, proc = system(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/job/step",
            "cgroups/job/cpu.max": "50000 100000",
            "cgroups/job/step/cpu.max": "max 100000",
            "cgroups/job/memory.max": str(3 * GIB),
            "cgroups/job/memory.current": str(2 * GIB),
            "cgroups/job/memory.stat": f"anon 1\ninactive_file {GIB}",
            "cgroups/job/step/memory.max": "max",
        }
    )
    assert cores(cgroups, proc) == 0.5
    assert available_memory(cgroups, proc) == 2 * GIB


def test_a_group_of_version_1_counts_also_under_the_path_it_has_outside(system):
    cgroups, proc = system(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:memory:/outside/1\n4:cpu,cpuacct:/outside/1\n0::/",
            "cgroups/cpu/cpu.cfs_quota_us": "25000",
            "cgroups/cpu/cpu.cfs_period_us": "100000",
            "cgroups/memory/memory.limit_in_bytes": str(GIB),
            "cgroups/memory/memory.usage_in_bytes": str(2 * GIB),
        }
    )
    assert cores(cgroups, proc) == 0.25
    assert available_memory(cgroups, proc) == 0


@pytest.mark.parametrize(("free", "state"), [(0, "problem"), (2 * GIB, "warning"), (64 * GIB, "ok"), (None, "ok")])
def test_memory(free, state):
    assert check_memory(free).state == state


@pytest.mark.parametrize(("free", "state"), [(0, "problem"), (5 * GIB, "warning"), (64 * GIB, "ok")])
def test_disk(free, state, tmp_path):
    assert check_disk("runs", tmp_path / "not" / "yet", free).state == state
    assert existing(tmp_path / "not" / "yet") == tmp_path


def test_a_file_in_the_folders_place_is_a_problem(tmp_path):
    (tmp_path / "runs").write_text("", encoding="ascii")
    assert "cannot be written to" in check_disk("runs", tmp_path / "runs" / "a").text


@pytest.mark.parametrize(
    ("asked", "available", "used", "state"),
    [("8", 4, 8, "warning"), (None, 0.5, 2, "warning"), ("1", 1, 1, "ok"), (None, 4, 4, "ok"), ("3", 4, 3, "ok")],
)
def test_more_threads_than_cores_are_told(asked, available, used, state):
    finding = check_threads({} if asked is None else {"OMP_NUM_THREADS": asked}, available, used)
    assert finding.state == state
    assert ("export OMP_NUM_THREADS=" in finding.advice) == (state == "warning")


def test_a_processor_tells_whether_it_knows_bfloat16():
    assert "bf16-mixed is faster" in check_processor("flags\t: sse avx512_bf16 amx_bf16\n").text
    assert "stay with" in check_processor("flags\t: sse\n").text


def test_a_driver_without_a_gpu_that_torch_sees_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [finding.state for finding in check_devices(tmp_path)] == ["ok", "ok"]
    (tmp_path / "driver" / "nvidia").mkdir(parents=True)
    assert next(check_devices(tmp_path)).state == "problem"
