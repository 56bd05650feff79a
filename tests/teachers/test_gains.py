import pytest
import torch
from table_cells import table_rows

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch
from tagi_lightning.data.tokenized import ExampleIndex
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.teachers.gains import balanced_batches, gain_sums, gains, table, warning
from tagi_lightning.teachers.teaching import teacher_losses

NAMES = ("worse", "better", "absent", "noisy")


def sums_of(*gains_by_teacher):
    """Returns what `gain_sums` would give for teachers with these gains over a backbone's loss of 5 on each example."""
    rows = []
    for values in gains_by_teacher:
        gain = torch.tensor(values, dtype=torch.float64)
        rows.append(torch.stack([torch.ones_like(gain), 5 + 0 * gain, 5 - gain, gain, gain.square()]).sum(1))
    return torch.stack(rows)


@pytest.fixture
def rows():
    return gains(NAMES, sums_of([-1.0, -2.0], [2.0, 3.0, 4.0], [], [1.0, -0.9]))


def test_gains_are_means_with_their_standard_errors_from_the_largest(rows):
    assert [row.category for row in rows] == ["better", "noisy", "worse", "absent"]
    better = rows[0]
    assert (better.instances, better.backbone, better.teacher, better.gain) == (3, 5.0, 2.0, pytest.approx(3.0))
    # the standard deviation of 2, 3, 4 is 1, over the root of 3
    assert better.error == pytest.approx(3**-0.5)
    assert rows[-1].gain is None


def test_a_gain_is_shown_beyond_its_standard_error_only(rows):
    assert [row.shown for row in rows] == [True, False, False, False]
    [single] = gains(["one"], sums_of([0.1]))
    assert single.error is None
    assert single.shown


def test_teachers_that_gain_nothing_are_named_with_what_to_do(rows):
    told = warning(rows)
    assert "WARNING" in told
    assert "noisy, worse." in told
    assert "better" not in told
    assert "L_ins" in told
    assert "L_kl" in told
    assert "leaves no instances to measure absent on" in told
    assert warning(rows[:1]) == ""


def test_the_table_has_a_row_a_teacher(rows):
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert len({len(line) for line in lines}) == 1
    _, _, first, *_, last = table_rows("\n".join(lines))
    assert first == ["better", "3", "5.0000", "2.0000", "3.0000", "0.5774"]
    assert last == ["absent", "0", "-", "-", "-", "-"]


def test_examples_are_spread_evenly_over_the_tasks_of_a_category():
    examples = [[ExampleIndex(task, instance, None) for instance in (2, 0, 1)] for task in range(4)]
    batches = balanced_batches(examples, ["a", "b", "a", None], per_category=4, batch_size=5)
    kept = [(index.task, index.instance) for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [5, 2]
    assert kept == [(0, 0), (0, 1), (1, 2), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_sums_hold_both_losses_of_each_teachers_examples(backbone, tokens):
    bank = LoraBank(backbone.sites(LoraConfig(rank=2)), LoraConfig(rank=2), ["a", "b", "c"])
    with torch.no_grad():
        for parameter in bank.b.values():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    targets = tokens([3, 2, 4])
    batch = TaskBatch(
        instruction=tokens([4, 5]),
        input=tokens([3, 4, 5]),
        labels=targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX),
        task_index=torch.tensor([0, 0, 1]),
        category=torch.tensor([2, 0]),
        prompt=tokens([7, 8, 9]),
    )
    sums = gain_sums(backbone, bank, batch)
    with torch.no_grad():
        bare = prediction_loss(backbone(batch.prompt, batch.labels, TaskAdapter(), batch.task_index), batch.labels)
        taught = teacher_losses(backbone, bank, batch.prompt, batch.labels, batch.category, batch.task_index)
    assert sums[:, 0].tolist() == [1, 0, 2]
    torch.testing.assert_close(sums[2, 1], bare[:2].sum().double())
    torch.testing.assert_close(sums[2, 2], taught[:2].sum().double())
    torch.testing.assert_close(sums[0, 3], (bare - taught)[2].double())
    assert not sums[1].any()
    assert (bare - taught).abs().min() > 1e-3
