from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from tagi_lightning.data.batch import Tokens
from tagi_lightning.data.collate import TaskCollator
from tagi_lightning.data.prompts import Frame, PromptAssembler
from tagi_lightning.data.report import DataError, DataReport
from tagi_lightning.data.splits import demonstrations_as_instances
from tagi_lightning.data.task import Demonstration, Instance, Task
from tagi_lightning.data.tokenized import Example, ExampleIndex, TokenizedTask, TokenizedTasks, check_lengths

ASSEMBLER = PromptAssembler(Frame.encoder_decoder((50,), (52,), eos_id=1), max_demonstrations=0, max_input_length=16)
POOL = tuple([20 + n] * (1 + n % 3) for n in range(8))
TASKS = [
    TokenizedTask("a", "fruit", ([10, 11],), (*POOL, [9] * 40), 0, 9),
    TokenizedTask("b", "fruit", ([12],), ([18], [19, 19]), 9, 2),
]


def example(task, instance, epoch, text=(30, 31), prompt=()):
    index = ExampleIndex(task, instance, epoch)
    return Example(index, TASKS[task], f"{task}/{instance}", "text", ("yes",), list(text), [[40]], prompt)


def batch(*examples, **options):
    count = options.pop("demonstrations", 4)
    joined = replace(ASSEMBLER, max_demonstrations=count, max_input_length=options.pop("room", 16)) if count else None
    options = {"demonstrated": joined, "with_prompt": True, **options}
    return TaskCollator(ASSEMBLER, ("fruit",), pad_id=0, **options)(examples)


def pieces(batch, task):
    """Returns the demonstrations of a task, without what ends each."""
    assert batch.demonstrations.segments == batch.demonstrations.apart().ids.shape[0] // len(batch.tasks)
    apart = zip(batch.demonstrations.ids[task].chunk(batch.demonstrations.segments), strict=True)
    rows = [[token for token in row.tolist() if token] for (row,) in apart]
    assert all(row[-1] == 1 for row in rows if row)
    return [row[:-1] for row in rows if row]


def test_evaluation_shows_the_first_demonstrations_that_fit_alone():
    found = batch(example(0, 2, None), example(0, 5, None), example(1, 0, None))
    assert pieces(found, 0) == list(POOL[:4])
    assert pieces(found, 1) == [[18], [19, 19]]
    assert found.demonstrations.segments == 4
    assert found.demonstrations.mask.sum(1).tolist() == [sum(map(len, POOL[:4])) + 4, 5]


def test_training_draws_demonstrations_by_seed_epoch_task_and_first_example():
    def drawn(first, epoch=0, **options):
        return pieces(batch(example(0, first, epoch), example(1, 0, epoch), **options), 0)

    assert drawn(3) == drawn(3)
    seen = [drawn(0), drawn(1), drawn(0, epoch=1), drawn(0, seed=1)]
    assert len({str(each) for each in seen}) == 4
    for each in seen:
        assert len({piece[0] for piece in each}) == 4
        assert all(piece in POOL for piece in each)


def test_the_prompt_holds_in_order_the_demonstrations_that_fit_beside_it():
    found = batch(example(0, 0, None, prompt=[33, 34]), example(0, 1, None, prompt=[35] * 12))
    whole, cut = ([token for token in row.tolist() if token] for row in found.demonstrated_prompt.ids)
    assert whole == [20, 21, 21, 22, 22, 22, 23, 33, 34, 52, 1]
    assert cut == [20, *[35] * 12, 52, 1]
    assert [token for token in found.prompt.ids[0].tolist() if token] == [33, 34, 52, 1]
    longer = batch(example(0, 1, None, prompt=[35] * 20), room=40).demonstrated_prompt.ids[0].tolist()
    assert longer == [20, 21, 21, 22, 22, 22, 23, *[35] * 14, 52, 1]
    joined = batch(example(1, 0, None))
    assert joined.demonstrated_prompt.ids[0].tolist() == [12, 18, 19, 19, 50, 30, 31, 52, 1]


def test_a_member_of_an_ensemble_shows_one_demonstration():
    for place in range(4):
        alone = batch(example(0, 0, None, prompt=[33]), member=place)
        assert pieces(alone, 0) == [POOL[place]]
        assert alone.demonstrated_prompt.ids[0].tolist() == [*POOL[place], 33, 52, 1]
    one = batch(example(0, 0, None, prompt=[33]), demonstrations=1)
    first = batch(example(0, 0, None, prompt=[33]), member=0)
    assert torch.equal(one.demonstrated_prompt.ids, first.demonstrated_prompt.ids)


def test_without_them_batches_are_as_before():
    found = batch(example(0, 0, None), demonstrations=0)
    assert (found.demonstrations, found.demonstrated_prompt) == (None, None)
    assert batch(example(0, 0, None), with_prompt=False).demonstrated_prompt is None


def test_segments_are_read_apart_and_move_together():
    tokens = Tokens.pad_segments([[[5, 6, 1], [7, 1]], [[8, 1]]], 0)
    assert tokens.ids.tolist() == [[5, 6, 1, 7, 1, 0], [8, 1, 0, 0, 0, 0]]
    apart = tokens.apart()
    assert apart.ids.tolist() == [[5, 6, 1], [7, 1, 0], [8, 1, 0], [0, 0, 0]]
    assert apart.mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert tokens.to("cpu").segments == tokens.map(lambda rows: rows[1:]).segments == 2
    assert Tokens.pad_segments([[], []], 0).ids.shape == (2, 1)
    plain = Tokens.pad([[3, 1]], 0)
    assert plain.apart() is plain


def test_what_does_not_fit_is_noted():
    columns = {"text_length": [3, 3], "prompt_length": [2, 12], "target_length": [1, 1]}
    task = TokenizedTask("a", "fruit", ([10, 11],), (*POOL, [9] * 40), 0, 2)
    report = DataReport("made")
    check_lengths(
        TokenizedTasks([task], Dataset.from_dict(columns)),
        ASSEMBLER,
        True,
        report,
        replace(ASSEMBLER, max_demonstrations=4),
    )
    assert report.notes == {
        "demonstrations longer than the limit, left out": ["a (1)"],
        "prompt that not all demonstrations fit in front of": ["a (1 of 2)"],
    }


def test_demonstrations_become_instances_to_train_on():
    shots = (Demonstration("one ?", "yes"), Demonstration("two ?", "no"))
    task = Task("t", "c", ("Say.",), shots, (Instance("0", "three", ("yes",)),))
    trained = demonstrations_as_instances(task)
    assert trained.demonstrations == ()  # the prompt would show the answer
    assert [(row.input, row.references, row.prompt) for row in trained.instances] == [
        ("one ?", ("yes",), ""),
        ("two ?", ("no",), ""),
    ]
    with pytest.raises(DataError, match=r"task t .*data\.shots"):
        demonstrations_as_instances(Task("t", "c", ("Say.",), (), task.instances))
