import json
import shutil

import pytest
from report_runs import write_evaluation, write_stage

from tagi_lightning.report.files import ReportError, read_options
from tagi_lightning.report.results import LeftOut, digest, read_answers, read_result, read_results, told


def test_an_evaluation_is_read_with_its_training(tmp_path):
    run = tmp_path / "run"
    start = write_stage(run, "pretrain", steps=3, batch=2)
    start = write_stage(run, "align", steps=5, batch=2, start=start)
    weights = write_stage(run, "distill", start=start)
    result = read_result(write_evaluation(run, seed=4, weights=weights))
    assert (result.system, result.seed, result.backbone, result.setting) == ("tagi", 4, "tiny", "def")
    assert [(t.stage, t.examples) for t in result.trainings] == [("pretrain", 6), ("align", 10), ("distill", 40)]
    assert result.examples == 40


def test_weights_that_start_fresh_have_no_stage_before(tmp_path):
    write_stage(tmp_path, "pretrain")
    weights = write_stage(tmp_path)
    assert [t.stage for t in read_result(write_evaluation(tmp_path, weights=weights)).trainings] == ["distill"]


def test_training_that_does_not_tell_its_start_is_not_guessed(tmp_path):
    weights = write_stage(tmp_path)
    record = tmp_path / "distill" / "run.json"
    values = json.loads(record.read_text())
    del values["init_from"]
    record.write_text(json.dumps(values))
    with pytest.raises(ReportError, match="older layout, without init_from: train again"):
        read_result(write_evaluation(tmp_path, weights=weights))


def test_a_row_starts_from_what_its_run_shares(tmp_path):
    row = tmp_path / "runs" / "x-s0" / "systems" / "row"
    start = write_stage(row.parent.parent / "pretrain" / "a1b2", "pretrain")
    weights = write_stage(row, start=start)
    assert [t.stage for t in read_result(write_evaluation(row, weights=weights)).trainings] == ["pretrain", "distill"]


def test_what_was_not_trained_saw_nothing(tmp_path):
    write_stage(tmp_path)
    assert read_result(write_evaluation(tmp_path, "concatenated")).trainings == ()


def test_a_run_that_was_moved_still_tells_its_training(tmp_path):
    old = tmp_path / "old"
    write_evaluation(old, weights=write_stage(old))
    shutil.move(old, tmp_path / "new")
    assert read_result(tmp_path / "new" / "evaluate" / "tagi").examples == 40


def test_the_runs_own_backbone_is_named_without_the_seed(tmp_path):
    run = tmp_path / "sni-tiny-s3"
    options = {"backbone": {"name": f"{run}/pretrain-backbone/model", "dtype": "bfloat16"}}
    assert read_result(write_evaluation(run, options=options)).backbone == "sni-tiny from scratch in bfloat16"


def test_folders_are_read_once_and_with_their_rows(tmp_path):
    write_evaluation(tmp_path, "concatenated")
    write_evaluation(tmp_path / "systems" / "row", description={"name": "hint"})
    results, left_out = read_results([tmp_path, str(tmp_path)])
    assert [result.description.get("name") for result in results] == [None, "hint"]
    assert left_out == []


def test_every_folder_without_results_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    write_evaluation(tmp_path / "good")
    with pytest.raises(ReportError) as raised:
        read_results([tmp_path / "good", tmp_path / "empty", tmp_path / "nowhere"])
    assert f"{tmp_path / 'empty'} holds no evaluate/<system>/metrics.json" in str(raised.value)
    assert f"{tmp_path / 'nowhere'} is not there" in str(raised.value)
    assert "good" not in str(raised.value)


def truncate(folder):
    path = folder / "metrics.json"
    path.write_text(path.read_text()[:40])


def without(*keys):
    def change(folder):
        values = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({k: v for k, v in values.items() if k not in keys}))

    return change


def cut_predictions(folder):
    path = folder / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "metrics.json is damaged"),
        (lambda folder: (folder / "metrics.json").write_text("[1]"), "no mapping but list"),
        (without("seed", "by_task"), "older layout, without by_task, seed: evaluate again"),
        (without("backbone_digest"), "older layout, without backbone_digest"),
        (lambda folder: (folder / "metrics.json").unlink(), "there is no"),
        (lambda folder: (folder / "config.yaml").unlink(), "there is no"),
        (lambda folder: (folder / "config.yaml").write_text("a: [1"), "config.yaml is damaged"),
        (lambda folder: (folder / "predictions.jsonl").unlink(), "there is no"),
        (lambda folder: (folder / "predictions.jsonl").write_text("{}\n"), "predictions.jsonl:1 is damaged"),
        (cut_predictions, "tells of 12 answers, predictions.jsonl of 11"),
    ],
)
def test_what_cannot_be_read_is_left_out_and_told(tmp_path, damage, message):
    write_evaluation(tmp_path, "concatenated")
    damage(write_evaluation(tmp_path, "tagi"))
    results, left_out = read_results([tmp_path])
    assert [result.system for result in results] == ["concatenated"]
    assert left_out[0].where == str(tmp_path / "evaluate" / "tagi")
    assert message in left_out[0].reason


def test_a_damaged_record_of_training_is_told(tmp_path):
    folder = write_evaluation(tmp_path, weights=write_stage(tmp_path))
    (tmp_path / "distill" / "run.json").write_text("{")
    with pytest.raises(ReportError, match=r"run.json is damaged"):
        read_result(folder)


def test_data_are_their_instances_and_references_in_any_order(tmp_path):
    path = write_evaluation(tmp_path / "a") / "predictions.jsonl"
    keys, _ = read_answers(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    turned, _ = read_answers(path)
    assert turned != keys
    assert digest(turned) == digest(keys)
    assert len(keys) == 12
    other = write_evaluation(tmp_path / "b", references="something else") / "predictions.jsonl"
    assert digest(read_answers(other)[0]) != digest(keys)


def test_unicode_line_ends_in_an_answer_end_no_row(tmp_path):
    path = write_evaluation(tmp_path) / "predictions.jsonl"
    row = {"task": "task0", "id": "x", "references": ["a\u2028b"]}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(read_answers(path)[0]) == 1


def test_held_out_instances_are_known_by_their_numbers(tmp_path):
    seeds = [write_evaluation(tmp_path / str(seed), "teachers", seed, references=str(seed)) for seed in range(2)]
    assert len({read_result(folder).data for folder in seeds}) == 2
    assert len({read_result(folder, {"teachers"}).data for folder in seeds}) == 1


def test_reasons_are_told_once_with_the_first_places():
    left_out = [LeftOut(f"place{number}", "of no row") for number in range(5)] + [LeftOut("other", "damaged")]
    assert told(left_out) == ["place0, place1, place2 and 2 more: of no row", "other: damaged"]


@pytest.mark.parametrize("part", ["systems/hint", "pretrain/1a2b3c4d", "teachers/1a2b3c4d"])
def test_what_a_grid_shares_is_named_without_the_seed(tmp_path, part):
    shared = tmp_path / "sni-tiny-s3"
    options = {"run": f"{shared}/{part}", "backbone": {"name": f"{shared}/pretrain-backbone/model"}}
    (tmp_path / "config.yaml").write_text(json.dumps(options))
    assert read_options(tmp_path / "config.yaml")["backbone.name"] == "RUN/pretrain-backbone/model"
