from dataclasses import replace

import pytest
import torch
from instructed_models import build_instructed

from tagi_lightning.data.labelled import LabelledInput, read_labelled
from tagi_lightning.data.report import DataError
from tagi_lightning.inference.finetuning import FinetuneConfig, Finetuner, split_examples

CONFIG = FinetuneConfig(steps=12, lr=0.02, batch_size=4)
EXAMPLES = [LabelledInput(f"{letter} x", (letter,)) for letter in "abcdefgh"]


@pytest.fixture(scope="module")
def loaded():
    """A model with fusion and memory; not to be changed."""
    return build_instructed("t5")


def test_training_lowers_the_loss_of_what_it_trains_on_and_leaves_the_model(loaded):
    tuner = Finetuner(loaded, CONFIG)
    adapter = loaded.adapt("Say the first word.")
    digests = loaded.model.digest(), loaded.model.backbone.digest()
    trained = tuner.train(adapter.lora, adapter.instruction, EXAMPLES)
    before, after = (
        tuner.score(replace(adapter.prepared, lora=lora, fusion=None, memory=None), adapter.instruction, EXAMPLES)
        for lora in (adapter.lora, trained)
    )
    assert after.loss < 0.9 * before.loss
    assert (loaded.model.digest(), loaded.model.backbone.digest()) == digests
    again = tuner.train(adapter.lora, adapter.instruction, EXAMPLES)
    assert all(torch.equal(again.a[site], trained.a[site]) for site in trained.a)
    assert not any(factor.requires_grad for factor in trained.b.values())


def test_the_report_scores_every_start_on_the_same_held_out_examples(loaded):
    adapter = loaded.adapt("Say the first word.")
    _, report = Finetuner(loaded, replace(CONFIG, steps=0)).run(adapter, EXAMPLES)
    rows = list(report.rows.values())
    assert (report.trained_on, report.held_out) == (6, 2)
    assert [name.split(",")[0] for name in report.rows] == [
        "backbone",
        "generated",
        "generated LoRA",
        "generated LoRA",
        "from scratch",
    ]
    none, whole, start, after_none, scratch = rows
    assert start == after_none
    assert scratch == none
    assert len({whole.loss, start.loss, none.loss}) == 3


def test_no_example_is_trained_on_and_held_out_and_the_seed_draws():
    for share, expected in ((0.25, 2), (0.01, 1), (0.99, 7)):
        train, held_out = split_examples(EXAMPLES, replace(CONFIG, held_out=share))
        assert len(held_out) == expected
        assert sorted([*train, *held_out], key=lambda each: each.input) == EXAMPLES
    assert split_examples(EXAMPLES, CONFIG) == split_examples(EXAMPLES, CONFIG)
    assert split_examples(EXAMPLES, CONFIG) != split_examples(EXAMPLES, replace(CONFIG, seed=1))
    with pytest.raises(ValueError, match="two examples at least"):
        split_examples(EXAMPLES[:1], CONFIG)


@pytest.mark.parametrize("values", [{"steps": -1}, {"lr": 0.0}, {"batch_size": 0}, {"held_out": 1.0}])
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match=rf"^{next(iter(values))} must be"):
        FinetuneConfig(**values)


def test_examples_are_read_and_every_bad_line_is_named(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"input": "a", "output": "b", "id": 1}\n\n{"input": "c", "output": ["d", "e"]}\n')
    assert read_labelled(path) == [LabelledInput("a", ("b",)), LabelledInput("c", ("d", "e"))]
    path.write_text('{"input": 1, "output": "b"}\n{"input": "a"}\n{"input": "a", "output": []}\nx\n')
    with pytest.raises(DataError) as error:
        read_labelled(path)
    for line, told in enumerate(("input that is not text", "output that is neither", "output that is", "not valid"), 1):
        assert told in str(error.value)
        assert f"few.jsonl:{line}" in str(error.value)
    path.write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_labelled(path)
