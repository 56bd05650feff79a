from dataclasses import replace

import pytest
import torch

from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.data.collate import InstructionDataset, TaskCollator, draw
from tagi_lightning.data.prompts import Frame, PromptAssembler
from tagi_lightning.data.tokenized import Example, ExampleIndex, TokenizedTask, TokenizedTasks

ASSEMBLER = PromptAssembler(Frame.encoder_decoder((50, 51), (52,), eos_id=1), max_demonstrations=1, max_input_length=20)
TASKS = [
    TokenizedTask("a", "fruit", ([10, 11], [12], [13]), ([20, 21],), 0, 3),
    TokenizedTask("b", "unseen", ([14, 15, 16, 17],), (), 3, 2),
]


def example(task, instance, epoch, text, references):
    index = ExampleIndex(task, instance, epoch)
    words = tuple(map(str, references))
    return Example(index, TASKS[task], f"{task}/{instance}", str(text), words, text, references)


def examples(epoch):
    return [
        example(0, 2, epoch, [30, 31, 32], [[40], [41, 42]]),
        example(0, 0, epoch, [33], [[43, 44, 45]]),
        example(1, 1, epoch, [34, 35], [[46]]),
    ]


def collator(**options):
    return TaskCollator(ASSEMBLER, ("animal", "fruit"), pad_id=0, **options)


def rows(tokens):
    return [ids[mask.bool()].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def test_evaluation_batch_takes_first_phrasing_and_reference_and_keeps_texts():
    batch = collator(with_prompt=True)(examples(None))
    assert rows(batch.instruction) == [[10, 11, 20, 21, 1], [14, 15, 16, 17, 1]]
    assert rows(batch.input) == [[30, 31, 32, 52, 1], [33, 52, 1], [34, 35, 52, 1]]
    assert rows(batch.prompt) == [
        [10, 11, 20, 21, 50, 51, 30, 31, 32, 52, 1],
        [10, 11, 20, 21, 50, 51, 33, 52, 1],
        [14, 15, 16, 17, 50, 51, 34, 35, 52, 1],
    ]
    assert batch.labels.tolist() == [
        [40, 1, IGNORE_INDEX, IGNORE_INDEX],
        [43, 44, 45, 1],
        [46, 1, IGNORE_INDEX, IGNORE_INDEX],
    ]
    assert batch.task_index.tolist() == [0, 0, 1]
    assert batch.category.tolist() == [1, -1]
    assert batch.tasks == ("a", "b")
    assert batch.ids == ("0/2", "0/0", "1/1")
    assert batch.references[0] == ("[40]", "[41, 42]")
    assert batch.inputs == ("[30, 31, 32]", "[33]", "[34, 35]")


def test_bare_prompt_is_the_input_alone_and_changes_nothing_else():
    given = examples(None)
    given[2] = replace(given[2], prompt_ids=[60, 61])
    batch, plain = (collator(with_prompt=True, bare_prompt=bare)(given) for bare in (True, False))
    assert torch.equal(batch.prompt.ids, batch.input.ids)
    assert rows(plain.prompt)[2] == [60, 61, 52, 1]
    for name in ("instruction", "input"):
        assert rows(getattr(batch, name)) == rows(getattr(plain, name))
    assert torch.equal(batch.labels, plain.labels)
    assert collator(bare_prompt=True)(given).prompt is None


def test_training_batch_has_no_prompt_unless_asked_and_no_input_texts():
    batch = collator()(examples(0))
    assert batch.prompt is None
    assert batch.inputs == ()
    assert all((tokens.ids[tokens.mask == 0] == 0).all() for tokens in (batch.instruction, batch.input))


def test_training_draws_every_phrasing_and_reference_by_seed_and_epoch():
    def first_rows(seed, epoch):
        batch = collator(seed=seed)(examples(epoch))
        return rows(batch.instruction)[0][0], batch.labels[0, 0].item()

    drawn = [first_rows(0, epoch) for epoch in range(40)]
    assert {phrasing for phrasing, _ in drawn} == {10, 12, 13}
    assert {reference for _, reference in drawn} == {40, 41}
    assert drawn == [first_rows(0, epoch) for epoch in range(40)]
    assert drawn != [first_rows(1, epoch) for epoch in range(40)]


def test_prompt_shows_the_phrasing_of_the_instruction():
    for epoch in range(8):
        batch = collator(with_prompt=True)(examples(epoch))
        assert rows(batch.prompt)[0][:1] == rows(batch.instruction)[0][:1]


def test_examples_out_of_task_order_are_refused():
    first, second, third = examples(None)
    with pytest.raises(ValueError, match="grouped by task"):
        collator()([first, third, second])


def test_instruction_batch_has_no_examples_and_cycles_all_phrasings():
    dataset = InstructionDataset(TokenizedTasks(TASKS, instances=None))
    assert len(dataset) == 2
    batches = [
        collator().instructions([dataset[ExampleIndex(task, -1, epoch)] for task in (1, 0)]) for epoch in range(3)
    ]
    assert {rows(batch.instruction)[1][0] for batch in batches} == {10, 12, 13}
    for batch in batches:
        assert len(batch) == 0
        assert batch.labels.shape[0] == 0
        assert batch.category.tolist() == [-1, 1]
        assert batch.tasks == ("b", "a")


def test_draw_is_even_and_a_function_of_its_key():
    counts = torch.tensor([draw(3, 0, epoch) for epoch in range(600)]).bincount()
    assert counts.min() > 150
    assert draw(5, 0, 1, "x") == draw(5, 0, 1, "x")
