import csv

import pytest
import torch
from commands import command, copy_stages, record_of, same_tensors, tagi, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tagi_lightning.callbacks import InspectModel
from tagi_lightning.callbacks.inspection import evaluating

STARTS = ("pretrain-backbone", "teachers", "pretrain", "align")


def events(run, stage):
    found = EventAccumulator(str(run / stage / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def steps(run):
    """Returns the steps that the norms of the distilled adapters were drawn at."""
    found = events(run, "distill")
    return [event.step for event in found.Images("inspection/lora-norms")] if drawn(found) else []


def drawn(found):
    return {tag.removeprefix("inspection/") for tag in found.Tags()["images"] if tag.startswith("inspection/")}


@pytest.mark.parametrize("stage", ["align", "distill"])
def test_a_stage_shows_what_its_hypernetwork_does(chain, stage):
    found = events(chain, stage)
    lora = {"lora-points", "lora-cosines", "lora-distributions", "lora-teachers", "lora-norms"}
    fusion = {"fusion-gates", "fusion-attention-1", "fusion-attention-2", "fusion-attention-3"}
    assert lora | fusion <= drawn(found) <= lora | fusion | {"scores-validation"}
    for name in lora | fusion:
        [image] = found.Images(f"inspection/{name}")
        assert (image.step, image.width) == (3, 1200)
        assert image.encoded_image_string.startswith(b"\x89PNG")
    [table] = found.Tensors("inspection/samples/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text.startswith("| task")
    assert 2 < len(text.splitlines()) <= 14
    assert " test " not in text
    histograms = {tag for tag in found.Tags()["histograms"] if tag.startswith("inspection/")}
    assert {tag.rpartition("/")[2] for tag in histograms} == {
        *("train", "test", "same_category", "different_categories", "own_category's_teacher", "other_teachers")
    }


def test_the_projector_has_a_point_for_each_task_with_name_category_and_split(chain):
    folder = chain / "distill" / "tensorboard" / "00003" / "adapters-lora"
    with (folder / "metadata.tsv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len((folder / "tensors.tsv").read_text().splitlines()) == len(rows) == 64
    assert {row["split"] for row in rows} == {"train", "test"}
    assert all(row["category"] in row["task"] for row in rows)
    config = (chain / "distill" / "tensorboard" / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1


@pytest.mark.parametrize("stage", ["pretrain-backbone", "teachers", "pretrain"])
def test_stages_without_instruction_tasks_or_hypernetwork_show_nothing(chain, stage):
    assert drawn(events(chain, stage)) == set()


def test_how_often_is_an_option_that_changes_nothing_else(chain, task_set, tmp_path):
    # both draw random numbers: training must not see that pictures did
    random = ["--model.init_args.generation.do_sample=true", "--model.init_args.tagi.hypernetwork.dropout=0.5"]
    options, weighed = ["--trainer.max_steps=3", *random], []
    for every, expected in ((0, []), (2, [2, 3])):
        run = tmp_path / str(every)
        copy_stages(chain, run, *STARTS)
        assert tagi(command("distill", run, task_set, *options, f"--inspect_every={every}")) == 0
        assert steps(run) == expected
        weighed.append(weights(run, "distill"))
    assert same_tensors(*weighed)
    # a finished run is the same run, whatever was drawn of it
    assert tagi(command("distill", run, task_set, *options, "--inspect_every=null")) == 0
    assert record_of(run, "distill")["starts"] == 1


def test_modes_are_put_back():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2).eval())
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_pictures_of_validations_have_a_least_distance(monkeypatch):
    callback, made = InspectModel(), []
    monkeypatch.setattr(callback, "_inspect", lambda trainer, stage: made.append(stage))
    trainer = type("Trainer", (), {"sanity_checking": False, "global_step": 4})()
    callback.on_validation_end(trainer, "first")
    callback._last = 0.0
    monkeypatch.setattr("tagi_lightning.callbacks.inspection.time.monotonic", lambda: 299.0)
    callback.on_validation_end(trainer, "too early")
    monkeypatch.setattr("tagi_lightning.callbacks.inspection.time.monotonic", lambda: 301.0)
    callback.on_validation_end(trainer, "later")
    callback.on_train_batch_end(trainer, "no interval", None, None, 0)
    callback.on_train_end(trainer, "end")
    assert made == ["first", "later", "end"]
