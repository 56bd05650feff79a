import functools
from dataclasses import replace

import pytest
import torch
from commands import built_stage, command, copy_stages, interrupt_in_batch, same_tensors, tagi, weights

from tagi_lightning.data.batch import Tokens
from tagi_lightning.losses import distillation_loss, prediction_loss
from tagi_lightning.stages.distill import Distillation

built = functools.partial(built_stage, "distill")


def examples(batch, rows):
    """Returns the batch with some of its examples."""

    def take(tokens):
        return Tokens(tokens.ids[rows], tokens.mask[rows])

    return replace(
        batch,
        input=take(batch.input),
        prompt=take(batch.prompt) if batch.prompt is not None else None,
        labels=batch.labels[rows],
        task_index=batch.task_index[rows],
    )


@pytest.fixture
def run(chain, tmp_path):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone", "teachers", "pretrain", "align")
    return tmp_path / "run"


def uneven(batch):
    """Returns a batch whose tasks have different numbers of examples: the first loses all but one."""
    first = (batch.task_index == 0).nonzero().squeeze(1)
    rows = torch.cat([first[:1], (batch.task_index != 0).nonzero().squeeze(1)])
    return examples(batch, rows)


def test_the_terms_are_those_of_eq_6_computed_by_hand(run, task_set, monkeypatch):
    options = [
        "--data.init_args.tasks_per_batch=3",
        "--model.init_args.loss.lambda1=5",
        "--model.init_args.alignment.scale=100",
    ]
    stage, batch = built(run, task_set, monkeypatch, *options, "--model.init_args.loss.lambda2=sigmoid")
    batch = uneven(batch)
    counts = torch.bincount(batch.task_index)
    assert len(set(counts.tolist())) > 1
    with torch.no_grad():
        adapter = stage.model.adapt(batch.instruction)
        terms = stage.loss_terms(batch, adapter)
        student = stage.model(batch.input, batch.labels, adapter, batch.task_index)
        teacher = stage.teacher_logits(batch, stage.bank().index(batch.category))
    assert terms.keys() == {"pred", "kl", "ins"}
    torch.testing.assert_close(terms["pred"], prediction_loss(student, batch.labels).mean())
    torch.testing.assert_close(terms["kl"], 5 * distillation_loss(student, teacher, batch.labels).mean())
    bank, expected = stage.bank(), 0.0
    for task in batch.task_index.tolist():
        squares, elements = 0.0, 0
        for site in adapter.lora.a:
            for mine, theirs in ((adapter.lora.a, bank.a), (adapter.lora.b, bank.b)):
                difference = mine[site][task] - theirs[site][batch.category[task]]
                squares += difference.square().sum().item()
                elements += difference.numel()
        loss = 100 * squares / elements
        expected += loss / (1 + torch.tensor(-loss).exp().item()) / len(batch)
    assert terms["ins"].item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0


def test_the_logits_teacher_reads_the_prompt_under_its_categorys_adapter(run, task_set, monkeypatch):
    stage, batch = built(run, task_set, monkeypatch, "--data.init_args.tasks_per_batch=3")
    taught = stage.bank().index(batch.category)
    right = stage.teacher_logits(batch, taught)
    assert not right.requires_grad
    assert not torch.equal(right, stage.teacher_logits(batch, None))
    other = stage.bank().index((batch.category + 1) % len(stage.bank.names))
    assert not torch.equal(right, stage.teacher_logits(batch, other))


def test_a_weight_of_zero_leaves_its_term_out(run, task_set, monkeypatch):
    def names(*options):
        stage, batch = built(run, task_set, monkeypatch, "--data.init_args.tasks_per_batch=3", *options)
        return set(stage.loss_terms(batch, stage.model.adapt(batch.instruction)))

    loss = "--model.init_args.loss."
    assert names(f"{loss}weight_pred=0") == {"kl", "ins"}
    assert names(f"{loss}lambda1=0") == {"pred", "ins"}
    assert names(f"{loss}lambda2=0") == {"pred", "kl"}
    assert names("--model.init_args.teachers=none") == {"pred", "kl"}
    assert names("--model.init_args.tagi.hypernetwork.enabled=false", "--model.init_args.init_from=none") == {
        "pred",
        "kl",
    }


def test_prediction_alone_needs_neither_teachers_nor_prompts(chain, task_set, tmp_path, monkeypatch):
    copy_stages(chain, tmp_path, "pretrain-backbone", "pretrain")
    alone = [
        "--model.init_args.loss.lambda1=0",
        "--model.init_args.loss.lambda2=0",
        "--data.init_args.with_prompt=false",
    ]
    stage, batch = built(tmp_path, task_set, monkeypatch, *alone)
    assert batch.prompt is None
    assert stage.bank is None
    assert set(stage.loss_terms(batch, stage.model.adapt(batch.instruction))) == {"pred"}
    assert tagi(command("distill", tmp_path, task_set, *alone, "--trainer.fast_dev_run=true")) == 0


def test_distillation_without_prompts_is_an_error_that_says_so(run, task_set, capsys):
    assert tagi(command("distill", run, task_set, "--data.init_args.with_prompt=false")) == 1
    assert "set data.with_prompt=true" in capsys.readouterr().err


def test_teachers_of_another_rank_are_refused(run, task_set, capsys):
    options = ["--model.init_args.tagi.lora.rank=4", "--model.init_args.init_from=none"]
    assert tagi(command("distill", run, task_set, *options)) == 1
    message = capsys.readouterr().err
    assert "rank is 16 there and 4 here" in message
    assert "make teachers" in message


def test_teachers_of_other_categories_are_refused(run, task_set, capsys):
    options = "--data.init_args.val_split=categories"
    assert tagi(command("distill", run, task_set, options, "--data.init_args.val_share=0.2")) == 1
    message = capsys.readouterr().err
    assert "do not fit the training categories" in message
    assert "make teachers" in message


def test_a_halved_batch_gives_the_mean_of_its_halves(run, task_set, monkeypatch):
    options = ["--data.init_args.tasks_per_batch=4", "--data.init_args.instances_per_task=2"]
    stage, batch = built(run, task_set, monkeypatch, *options)
    stage.double()
    half = len(batch) // 2
    parts = [batch, examples(batch, slice(0, half)), examples(batch, slice(half, len(batch)))]
    whole, first, second = (stage.loss_terms(part, stage.model.adapt(part.instruction)) for part in parts)
    for name in whole:
        torch.testing.assert_close(whole[name], (first[name] * half + second[name] * (len(batch) - half)) / len(batch))


CACHED = "--model.init_args.loss.teacher_cache.enabled=true"


def asked(stage, monkeypatch):
    """Returns a list that grows by the number of examples of every forward pass of the logits teacher."""
    plain, calls = stage.teacher_logits, []

    def teacher_logits(batch, taught, rows=None):
        calls.append(len(batch) if rows is None else len(rows))
        return plain(batch, taught, rows)

    monkeypatch.setattr(stage, "teacher_logits", teacher_logits)
    return calls


def test_a_cached_teacher_runs_once_an_example_and_its_loss_stays_bit_for_bit(run, task_set, monkeypatch, tmp_path):
    options = [CACHED, f"--model.init_args.loss.teacher_cache.folder={tmp_path / 'cache'}"]
    stage, batch = built(run, task_set, monkeypatch, *options)
    calls, adapter = asked(stage, monkeypatch), stage.model.adapt(batch.instruction)
    first, second = (stage.loss_terms(batch, adapter) for _ in range(2))
    assert calls == [len(batch)]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # another run with the same teachers asks nothing, with other teachers everything
    other, batch = built(run, task_set, monkeypatch, *options, "--model.init_args.loss.lambda1=1")
    calls = asked(other, monkeypatch)
    other.loss_terms(batch, adapter)
    assert calls == []
    bare, batch = built(run, task_set, monkeypatch, *options, "--model.init_args.teachers=none")
    calls = asked(bare, monkeypatch)
    bare.loss_terms(batch, adapter)
    assert calls == [len(batch)]


def test_the_cache_over_the_whole_vocabulary_gives_the_exact_terms(run, task_set, monkeypatch, tmp_path):
    cache = "--model.init_args.loss.teacher_cache."
    options = [CACHED, f"{cache}folder={tmp_path / 'cache'}", f"{cache}top_k=100000"]
    for temperature in (1.0, 2.0):
        loss = f"--model.init_args.loss.temperature={temperature}"
        exact, batch = built(run, task_set, monkeypatch, loss)
        cached, _ = built(run, task_set, monkeypatch, loss, *options)
        adapter = exact.model.adapt(batch.instruction)
        expected, found = exact.loss_terms(batch, adapter), cached.loss_terms(batch, adapter)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_a_run_with_the_cache_over_the_whole_vocabulary_trains_the_exact_student(chain, task_set, tmp_path, capsys):
    cache = "--model.init_args.loss.teacher_cache."
    gentle = ["--trainer.max_steps=20", "--model.init_args.optimizer.lr=3e-4"]  # rounding grows with every large step
    options = {"exact": [], "cached": [CACHED, f"{cache}folder={tmp_path / 'cache'}", f"{cache}top_k=100000"]}
    for name, own in options.items():
        copy_stages(chain, tmp_path / name, "pretrain-backbone", "teachers", "pretrain", "align")
        assert tagi(command("distill", tmp_path / name, task_set, *gentle, *own)) == 0
    assert f"teacher cache {tmp_path / 'cache'}" in capsys.readouterr().out
    start, exact, cached = weights(chain, "align"), *(weights(tmp_path / name, "distill") for name in options)

    def distance(left, right):
        return torch.stack([(left[name] - right[name]).norm() for name in left]).norm()

    assert distance(cached, exact) < 1e-3 * distance(exact, start)


def test_an_interrupted_run_with_both_caches_goes_on_to_the_same_bits(chain, task_set, tmp_path, monkeypatch):
    def distill(name, *more):
        cache = f"--model.init_args.loss.teacher_cache.folder={tmp_path / f'cache-{name}'}"
        return tagi(command("distill", tmp_path / name, task_set, "--trainer.max_steps=8", CACHED, cache, *more))

    for name in ("whole", "halves"):
        copy_stages(chain, tmp_path / name, "pretrain-backbone", "teachers", "pretrain", "align")
    assert distill("whole") == 0
    interrupt_in_batch(monkeypatch, Distillation, 5)
    assert distill("halves") == 130
    monkeypatch.undo()
    assert distill("halves") == 0
    assert same_tensors(weights(tmp_path / "whole", "distill"), weights(tmp_path / "halves", "distill"))


def test_an_instruction_is_read_once_in_all_epochs(run, task_set, monkeypatch):
    stage, batch = built(run, task_set, monkeypatch)
    calls, plain = [], stage.backbone.read
    monkeypatch.setattr(
        stage.backbone, "read", lambda tokens, **kwargs: calls.append(len(tokens)) or plain(tokens, **kwargs)
    )
    first, second = (stage.read_instructions(batch.instruction) for _ in range(2))
    assert sum(calls) == len(batch.instruction)
    assert torch.equal(first.states, second.states)
    without, batch = built(run, task_set, monkeypatch, "--model.init_args.instruction_cache_mb=0")
    assert without.instruction_cache is None
    torch.testing.assert_close(
        without.read_instructions(batch.instruction).states[batch.instruction.mask == 1],
        first.states[batch.instruction.mask == 1],
    )
