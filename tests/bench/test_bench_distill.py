from tagi_lightning.bench.distill import INPUTS, TASKS, Distilling, Examples, distillation
from tagi_lightning.bench.shapes import backbone
from tagi_lightning.costs.lengths import DEFINITION, INPUT


def test_the_case_gives_both_figures():
    results = distillation("tiny", 1)
    assert [(result.case, result.at_most) for result in results] == [
        ("distill_with_teacher", 0.97),
        ("distill_cached", 0.58),
    ]
    assert all(result.ratio > 0 and result.details["size"] == "tiny" for result in results)


def test_the_cached_step_trains_everything_and_asks_the_teacher_once(tmp_path, monkeypatch):
    model = backbone("tiny")
    examples = Examples.draw(model.vocabulary_size)
    assert examples.prompt.ids.shape == (TASKS * INPUTS, DEFINITION + INPUT)
    distilling = Distilling(model, examples, tmp_path)
    plain, calls = distilling.teacher_logits, []
    monkeypatch.setattr(distilling, "teacher_logits", lambda *args: calls.append(1) or plain(*args))
    before = {name: weight.detach().clone() for name, weight in distilling.model.trained_parameters().items()}
    for _ in range(3):
        distilling.cached()
    assert len(calls) == 1
    assert all((weight != before[name]).any() for name, weight in distilling.model.trained_parameters().items())
