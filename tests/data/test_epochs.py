import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagi_lightning.data.epochs import EpochSampler


class Planned(EpochSampler):
    """Batches of numbers, of given sizes."""

    def __init__(self, sizes, rank=0, world_size=1, together=1):
        super().__init__(rank, world_size)
        self.sizes, self.together = sizes, together

    def __len__(self):
        return len(self.sizes)

    def plan(self, epoch):
        return [[(place, number) for number in range(size)] for place, size in enumerate(self.sizes)]


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=7)
DEVICES = st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4), (6, 2)])


@given(SIZES, DEVICES)
def test_weighted_means_over_ranks_are_the_means_over_the_batches_of_a_turn(sizes, devices):
    world, together = devices
    ranks = [Planned(sizes, rank, world, together) for rank in range(world)]
    plan = ranks[0].plan(0)
    for turn, parts in enumerate(zip(*ranks, strict=True)):
        total = {}
        for sampler, part in zip(ranks, parts, strict=True):
            sampler.position = turn + 1
            for example in part:
                total[example] = total.get(example, 0) + sampler.weight / len(part) / world
        present = plan[turn * together : (turn + 1) * together]
        expected = {example: 1 / len(batch) / together for batch in present for example in batch}
        assert {example: share for example, share in total.items() if share} == pytest.approx(expected)
    assert turn + 1 == ranks[0].turns


@given(SIZES, st.integers(1, 5))
def test_rows_of_all_ranks_join_to_those_of_one(sizes, world):
    ranks = [Planned(sizes, rank, world) for rank in range(world)]
    rows = [[example for part in sampler for example in part] for sampler in ranks]
    assert ranks[0].join(rows) == [example for batch in ranks[0].plan(0) for example in batch]


def test_rows_of_the_first_turns_join_too_and_missing_ones_are_told():
    ranks = [Planned([4, 3, 1], rank, 2) for rank in range(2)]
    parts = [list(sampler) for sampler in ranks]
    first = [[example for part in own[:2] for example in part] for own in parts]
    assert ranks[0].join(first) == [example for batch in ranks[0].plan(0)[:2] for example in batch]
    with pytest.raises(ValueError, match="rows"):
        ranks[0].join([first[0], first[1][:-1]])


def test_a_rank_that_takes_the_whole_reads_every_example():
    sampler = Planned([4, 3, 1], 1, 2, 2)
    sampler.take_whole()
    assert list(sampler) == sampler.plan(0)
