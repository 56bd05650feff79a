import pytest
from inspection_tasks import tasks_for
from instructed_models import build_instructed

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.inspection.answers import answer_tasks, on_one_line, one_a_task, sample_lines
from tagi_lightning.inspection.tasks import TASKS_AT_ONCE, evenly_spaced


def test_some_of_many_are_spread_evenly_and_few_stay():
    assert evenly_spaced(range(10), 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced(range(3), 5) == evenly_spaced(range(3), None) == [0, 1, 2]


def test_tasks_of_all_splits_stand_by_category_and_batches_hold_them_in_that_order():
    loaded = build_instructed("t5")
    count = TASKS_AT_ONCE + 3
    tasks = tasks_for(loaded, count, 4, instances=2)
    assert len(tasks) == count + 4
    assert list(tasks.tasks) == sorted(tasks.tasks)
    assert [name for batch in tasks.batches for name in batch.tasks] == [task.name for task in tasks.tasks]
    assert [len(batch) for batch in tasks.batches] == [2 * TASKS_AT_ONCE, 2 * 7]
    alone = {task.split: [] for task in tasks.tasks}
    for task in tasks.tasks:
        alone[task.split].append(task.name)
    assert {split: len(names) for split, names in alone.items()} == {"train": count, "test": 4}


@pytest.mark.parametrize("name", ["t5", "t5-prompt", "llama"])
def test_answers_are_those_of_each_task_alone(name):
    loaded = build_instructed(name)
    generation = GenerationConfig(max_new_tokens=4)
    tasks = tasks_for(loaded, 3, instances=2)
    samples = answer_tasks(loaded.model, tasks, loaded.tokenizer, generation)
    assert [sample.task for sample in samples] == [task for task in tasks.tasks for _ in range(2)]
    for sample in samples:
        number = int(sample.task.name[-3:])
        adapter = loaded.adapt(f"Say the {number}. letter of $train$ and stop.")
        assert loaded.generate(adapter, [sample.input], generation) == [sample.answer]
        assert sample.references == ("b", "B")
    first = one_a_task(samples)
    assert [sample.task for sample in first] == list(tasks.tasks)
    heading, *lines = sample_lines(first)
    assert len(heading) == len(lines[0])
    assert {line[-1] for line in lines} <= {"yes", "no"}


def test_long_texts_lose_their_middle():
    assert on_one_line("a\n b", 10) == "a b"
    assert on_one_line("0123456789", 10) == "0123456789"
    assert on_one_line("0123456789ab", 10) == "0123...9ab"
