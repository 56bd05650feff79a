import json

import pytest
from commands import write_p3_set

from tagi_lightning.doctor.folders import check_caches, check_corpus, check_hub, check_p3, check_tasks, size


def write_sni(folder, train, test, files):
    for which, names in (("train", train), ("test", test)):
        path = folder / "splits" / "default" / f"{which}_tasks.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "tasks").mkdir()
    for name in files:
        (folder / "tasks" / f"{name}.json").write_text(json.dumps({}), encoding="utf-8")


@pytest.mark.parametrize(
    ("train", "test", "state"), [("ab", "c", "ok"), ("abx", "cy", "warning"), ("ab", "", "problem")]
)
def test_tasks_are_counted_against_the_split_lists(train, test, state, tmp_path):
    write_sni(tmp_path, train, test, "abc")
    finding = check_tasks(tmp_path, "sni")
    assert finding.state == state
    if state != "problem":
        assert finding.text.startswith(f"2 of {len(train)} train tasks and 1 of {len(test)} test tasks")
        assert ("x, y" in finding.text) == (state == "warning")


def test_p3_is_counted_by_data_sets(tmp_path):
    finding = check_p3(write_p3_set(tmp_path))
    assert finding.state == "warning"
    assert finding.text.startswith("2 of 36 training sets and 2 of 11 test sets")


@pytest.mark.parametrize(
    ("environment", "state", "text"),
    [
        ({}, "ok", "in the network"),
        ({"HF_HUB_OFFLINE": "1"}, "ok", "from the cache alone"),
        ({"HF_HUB_OFFLINE": "TRUE", "TRANSFORMERS_OFFLINE": "0"}, "ok", "from the cache alone"),
        ({"TRANSFORMERS_OFFLINE": "1"}, "warning", "HF_HUB_OFFLINE is not 1"),
        ({"HF_HUB_OFFLINE": "offline"}, "warning", "HF_HUB_OFFLINE is not 1"),
    ],
)
def test_offline_flags(environment, state, text, tmp_path):
    (tmp_path / "models--google--t5-small").mkdir()
    cache, offline = check_hub(environment, tmp_path)
    assert "1 models" in cache.text
    assert "google/t5-small" in cache.text
    assert (offline.state, text in offline.text) == (state, True)


def test_caches_are_measured_and_leftovers_told(tmp_path):
    assert [finding.text for finding in check_caches([tmp_path])] == ["none yet"]
    (tmp_path / "sni" / ".cache" / "writing-1").mkdir(parents=True)
    (tmp_path / "sni" / ".cache" / "file").write_bytes(b"12345")
    [finding] = check_caches([tmp_path])
    assert finding.state == "warning"
    assert "writing-1" in finding.text
    assert size(tmp_path) == 5


def test_a_corpus_is_measured_and_an_absent_one_told(tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    assert "1 files" in check_corpus(tmp_path).text
    assert check_corpus(tmp_path / "none").state == "problem"
