"""Self-supervised examples lose no token, and depend on their key alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.data.pretraining import (
    TEXT,
    DenoisingCollator,
    MixedSampler,
    SegmentCollator,
    abc_split,
    prefix_lm,
    sentinel_ids,
    span_corruption,
)
from tagi_lightning.data.sampler import TaskBatchSampler, TaskLengths
from tagi_lightning.data.text import TextBatchSampler
from tagi_lightning.data.tokenized import ExampleIndex
from tagi_lightning.data.vocabulary import train_vocabulary

SENTINELS = tuple(range(1000, 1100))
rows = st.integers(3, 700).map(lambda length: list(range(10, 10 + length)))
generators = st.integers(0, 2**32).map(np.random.default_rng)


@given(ids=rows, rng=generators, density=st.floats(0.05, 0.6), mean_span=st.floats(1, 6))
def test_span_corruption_hides_spans_behind_sentinels(
    ids: list[int], rng: np.random.Generator, density: float, mean_span: float
):
    source, target = span_corruption(ids, rng, SENTINELS, density, mean_span)
    used = [token for token in source if token >= 1000]
    assert used == [token for token in target if token >= 1000] == list(SENTINELS[: len(used)])
    spans = dict.fromkeys(used, ())
    for token in target:
        if token >= 1000:
            current = token
        else:
            spans[current] += (token,)
    assert all(spans.values())
    filled = [part for token in source for part in (spans[token] if token >= 1000 else (token,))]
    assert filled == ids
    hidden = len(target) - len(used)
    assert hidden == min(max(round(len(ids) * density), 1), len(ids) - 1)
    assert not any(first >= 1000 and second >= 1000 for first, second in itertools.pairwise(source))


def test_spans_have_t5s_density_and_length():
    ids = list(range(512))
    used = sum(len(span_corruption(ids, np.random.default_rng(seed), SENTINELS)[1]) for seed in range(20)) / 20
    assert used == 77 + 26


@given(ids=rows, rng=generators)
def test_prefix_lm_partitions(ids: list[int], rng: np.random.Generator):
    source, target = prefix_lm(ids, rng)
    assert source
    assert target
    assert source + target == ids


@given(ids=rows, rng=generators)
def test_abc_partitions_without_empty_segments(ids: list[int], rng: np.random.Generator):
    a, b, c = abc_split(ids, rng)
    assert a
    assert b
    assert c
    assert a + b + c == ids


def test_abc_cuts_are_uniform_as_defined():
    rng = np.random.default_rng(0)
    cuts = np.array([[len(part) for part in abc_split(range(5), rng)] for _ in range(6000)])
    assert np.bincount(cuts[:, 0])[1:] / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)
    second = cuts[cuts[:, 0] == 1, 1]
    assert np.bincount(second)[1:] / len(second) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_sentinels_are_found_by_name(tmp_path):
    train_vocabulary(["a b c"], tmp_path / "with", vocab_size=20, sentinels=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "with")
    assert tokenizer.convert_ids_to_tokens(sentinel_ids(tokenizer)) == ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    train_vocabulary(["a b c"], tmp_path / "without", vocab_size=20, sentinels=0)
    with pytest.raises(ValueError, match="extra_id_0"):
        sentinel_ids(AutoTokenizer.from_pretrained(tmp_path / "without"))


def batch_rows(epoch: int | None) -> list[tuple[ExampleIndex, list[int]]]:
    return [(ExampleIndex(0, place, epoch), list(range(10, 20 + place))) for place in range(6)]


def test_segment_batches_hold_one_task_an_example():
    batch = SegmentCollator(pad_id=0, eos_id=1)(batch_rows(0))
    assert batch.task_index.tolist() == list(range(6))
    assert batch.category.tolist() == [-1] * 6
    for row, (_, ids) in enumerate(batch_rows(0)):
        parts = [batch.instruction.ids[row], batch.input.ids[row], batch.labels[row]]
        kept = [part[(part != 0) & (part != IGNORE_INDEX)].tolist() for part in parts]
        assert all(part[-1] == 1 and len(part) > 1 for part in kept)
        assert [token for part in kept for token in part[:-1]] == ids


def test_draws_depend_on_seed_epoch_and_sequence_alone():
    collate = SegmentCollator(pad_id=0, eos_id=1)
    whole, part = collate(batch_rows(0)), collate(batch_rows(0)[3:4])
    length = int(part.labels.shape[1])
    assert torch.equal(part.labels[0], whole.labels[3, :length])
    assert not torch.equal(whole.input.mask.sum(1), collate(batch_rows(1)).input.mask.sum(1))
    other = SegmentCollator(pad_id=0, eos_id=1, seed=1)(batch_rows(0))
    assert not torch.equal(whole.input.mask.sum(1), other.input.mask.sum(1))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_denoising_mixes_by_share(share: float):
    collate = DenoisingCollator(0, 1, SENTINELS, share)
    batch = collate([(ExampleIndex(0, place, 0), list(range(10, 40))) for place in range(200)])
    corrupted = (batch.source.ids >= 1000).any(dim=1).float().mean()
    assert float(corrupted) == pytest.approx(share, abs=0.12)
    assert ((batch.labels == 1).sum(dim=1) == 1).all()
    assert ((batch.source.ids == 1).sum(dim=1) == 1).all()


@given(ratio=st.floats(0, 5), epochs=st.integers(1, 4))
def test_a_mix_holds_every_task_batch_and_goes_on_through_the_text(ratio: float, epochs: int):
    tasks = TaskBatchSampler([TaskLengths(f"t{n}", 5, np.full(6, 4), np.full(6, 2)) for n in range(4)], 2, 2, seed=0)
    text = TextBatchSampler(np.full(30, 9), 4, 0)
    mix = MixedSampler(tasks, text, ratio, seed=0)
    shown = []
    for epoch in range(epochs):
        plan = mix.plan(epoch)
        assert len(plan) == len(mix)
        of_text = [batch for batch in plan if batch[0].task == TEXT]
        assert sorted(batch for batch in plan if batch[0].task != TEXT) == sorted(tasks.plan(epoch))
        assert len(of_text) == round(ratio * len(tasks))
        shown += [(index.epoch, index.instance) for batch in of_text for index in batch]
    endless = [(index.epoch, index.instance) for each in range(20) for batch in text.plan(each) for index in batch]
    assert sorted(shown) == sorted(endless[: len(shown)])
