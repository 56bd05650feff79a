import torch

from tagi_lightning.bench import teachers
from tagi_lightning.bench.shapes import backbone, random_tokens
from tagi_lightning.costs.lengths import OUTPUT


def test_the_cases_yield_their_figures(monkeypatch):
    monkeypatch.setattr(teachers, "TEACHERS", 3)
    monkeypatch.setattr(teachers, "CASES", {"one": (1, 5, 0.5), "several": (2, 4, None)})
    monkeypatch.setattr(teachers, "AT_ONCE", 4)
    monkeypatch.setattr(teachers, "has_compiler", lambda: False)  # compiling takes a minute
    results = teachers.teachers_together("tiny", repeats=1)
    assert [(result.case, result.at_most) for result in results] == [("one", 0.5), ("several", None)]
    assert all(result.ratio > 0 and result.details["seconds"].keys() == {"together", "in_turn"} for result in results)


def test_both_sides_train_the_same_teachers(monkeypatch):
    monkeypatch.setattr(teachers, "TEACHERS", 3)
    model = backbone("tiny")
    prompt = random_tokens(6, 5, model.vocabulary_size, seed=0)
    examples = prompt, random_tokens(6, OUTPUT, model.vocabulary_size, seed=1).ids
    together, in_turn = teachers.Together(model, examples, 2), teachers.InTurn(model, examples, 2)
    for _ in range(2):
        together.step()
        in_turn.step()
    weights = together.bank()
    for teacher, (run, trained, _) in enumerate(in_turn.runs):
        assert sum(parameter.numel() for parameter in trained) == sum(p[0].numel() for p in together.bank.parameters())
        layers = {site: run.base_model.model.get_submodule(site) for site in weights.b}
        ours = torch.cat([weights.b[site][teacher].flatten() for site in layers])
        theirs = torch.cat([layer.lora_B["default"].weight.flatten() for layer in layers.values()])
        assert theirs.abs().max() > teachers.RATE
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()
