import hashlib
from dataclasses import replace

import pytest
import torch
from transformers import T5Config

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import GenerationConfig, build_backbone
from tagi_lightning.costs.flops import count_flops, eager_attention, token_formula
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch, Tokens
from tagi_lightning.data.task import Instance, Task
from tagi_lightning.evaluation.controls import Controls
from tagi_lightning.evaluation.systems import HEURISTICS, SYSTEMS, SystemRunner, measure_flops, to_predictions
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.inference.answers import Answers
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel

LORA = LoraConfig(rank=4)
GREEDY = GenerationConfig(max_new_tokens=3)


def make_batch(tokens, tasks, index, instruction=6, length=5, target=3, prompt=True, seed=0):
    """Returns a batch of the named tasks with rows of equal length."""
    count = len(index)
    targets = tokens([target] * count, seed=seed + 1)
    joined = tokens([instruction + length] * count, seed=seed + 2)
    return TaskBatch(
        instruction=tokens([instruction] * len(tasks), seed=seed),
        input=tokens([length] * count, seed=seed + 3),
        labels=targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX),
        task_index=torch.tensor(index),
        category=(torch.arange(len(tasks)) + 1) % 2,
        prompt=joined if prompt else None,
        tasks=tuple(tasks),
        ids=tuple(f"{n}" for n in range(count)),
        references=(("yes", "y"),) * count,
    )


@pytest.fixture
def model(backbone, trained):
    return trained(backbone)


@pytest.fixture
def bank(backbone):
    bank = LoraBank(backbone.sites(LORA), LORA, ["x", "y"])
    for number, parameter in enumerate(bank.parameters()):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return bank.eval()


class Instructions:
    """Those of a few tasks, the same for training and test."""

    def __init__(self, tokens):
        self.tokens = tokens

    def of_split(self, split):
        yield make_batch(self.tokens, "abc", [], seed=30)

    def wrong(self, tasks):
        return self.tokens([6] * len(tasks), seed=31)


@pytest.fixture
def instructions(tokens):
    return Instructions(tokens)


def test_systems_have_titles_of_their_own_and_names_that_differ_from_the_heuristics():
    titles = [spec.title for spec in SYSTEMS.values()] + list(HEURISTICS.values())
    assert len(set(titles)) == len(titles)
    assert not SYSTEMS.keys() & HEURISTICS.keys()


def test_instructions_are_encoded_once_for_a_run_of_batches_with_the_same_tasks(model, tokens):
    encoded = []

    def adapt(instruction):
        encoded.append(len(instruction))
        return model.prepare(instruction)

    runner = SystemRunner(SYSTEMS["tagi"], model, adapt=adapt)
    first, second = make_batch(tokens, "ab", [0, 0, 1]), make_batch(tokens, "c", [0, 0], seed=9)
    for batch in (first, first, first, second, second, first):
        runner.forward(batch)
    assert encoded == [2, 1, 2]


def test_the_second_batch_of_a_task_gets_what_a_fresh_adapter_gives(model, tokens):
    batch = make_batch(tokens, "ab", [0, 1, 1])
    runner = SystemRunner(SYSTEMS["tagi"], model)
    runner.forward(batch)
    with torch.no_grad():
        expected = model(batch.input, batch.labels, model.adapt(batch.instruction), batch.task_index)
    # prepared keys and values of the instruction are a product of their own, rounded for itself
    assert (runner.forward(batch) - expected).abs().max() <= 1e-5 * expected.abs().max()
    fresh = SystemRunner(SYSTEMS["tagi"], model)
    assert runner.answer(batch, GREEDY, Words()) == fresh.answer(batch, GREEDY, Words())


def test_batches_that_name_no_tasks_are_still_adapted(model, tokens):
    batch, other = make_batch(tokens, "ab", [0, 1, 1]), make_batch(tokens, "cd", [0, 1, 1], seed=9)
    runner = SystemRunner(SYSTEMS["tagi"], model)
    for named in (batch, other):
        nameless = TaskBatch(named.instruction, named.input, named.labels, named.task_index, named.category)
        assert torch.equal(runner.forward(nameless), SystemRunner(SYSTEMS["tagi"], model).forward(named))


def test_baselines_read_what_they_say_and_nothing_adapts_them(model, tokens):
    batch, alone = make_batch(tokens, "ab", [0, 1, 1]), model.backbone
    nothing = SystemRunner(SYSTEMS["no_instruction"], model).condition(batch)[1]
    assert (nothing.lora, nothing.fusion, nothing.memory) == (None, None, None)
    with torch.no_grad():
        for name, read in (("no_instruction", batch.input), ("concatenated", batch.prompt)):
            expected = alone(read, batch.labels, nothing, batch.task_index)
            assert torch.equal(SystemRunner(SYSTEMS[name], model).forward(batch), expected)


def test_every_example_is_read_by_the_teacher_of_its_tasks_category(model, bank, tokens, merge, distance):
    batch = make_batch(tokens, "abc", [0, 1, 1, 2])
    found = SystemRunner(SYSTEMS["teachers"], model, Controls(model, bank)).forward(batch)
    for n, category in enumerate([1, 0, 0, 1]):
        merged = merge(model.backbone, bank(), category)
        prompt = batch.prompt.map(lambda tensor, n=n: tensor[n : n + 1])
        with torch.no_grad():
            expected = merged(prompt, batch.labels[n : n + 1], TaskAdapter(), None)
        assert distance(found[n : n + 1], expected) < 1e-5


def test_what_a_system_lacks_is_named(model, tokens):
    batch = make_batch(tokens, "a", [0], prompt=False)
    with pytest.raises(ValueError, match=r"data\.with_prompt=true"):
        SystemRunner(SYSTEMS["concatenated"], model).forward(batch)
    with pytest.raises(ValueError, match="teachers"):
        SystemRunner(SYSTEMS["teachers"], model).forward(make_batch(tokens, "a", [0]))


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("generator", ["shared", "paper"])
def test_measured_flops_are_those_of_a_real_eager_run(backbone, trained, bank, tokens, instructions, name, generator):
    model = trained(backbone, TagiConfig(LORA, HypernetworkConfig(generator=generator)))
    batches = [
        make_batch(tokens, "ab", [0, 0, 1]),
        make_batch(tokens, "ab", [1, 1], seed=4),
        make_batch(tokens, "c", [0]),
    ]
    controls = Controls(model, bank, instructions)
    counted = measure_flops(SYSTEMS[name], model, batches, controls)
    runner = SystemRunner(SYSTEMS[name], model, controls)
    with torch.no_grad(), eager_attention(model.backbone.model):
        expected = sum(count_flops(lambda batch=batch: runner.forward(batch)) for batch in batches)
    assert counted == expected > 0


def test_measuring_changes_neither_weights_nor_the_attention_in_use(model, tokens):
    before, implementation = model.digest(), model.backbone.model.config._attn_implementation
    batch = make_batch(tokens, "a", [0, 0])
    expected = SystemRunner(SYSTEMS["tagi"], model).forward(batch)
    measure_flops(SYSTEMS["tagi"], model, [batch])
    assert model.digest() == before
    assert model.backbone.model.config._attn_implementation == implementation
    assert torch.equal(SystemRunner(SYSTEMS["tagi"], model).forward(batch), expected)


def flat_batch(instruction, length, target, count, chunk):
    """Returns batches of one task with `count` examples, `chunk` a batch, of the given lengths."""

    def rows(number, width):
        return Tokens(torch.full((number, width), 5), torch.ones(number, width, dtype=torch.long))

    return [
        TaskBatch(
            rows(1, instruction),
            rows(chunk, length),
            torch.full((chunk, target), 5),
            torch.zeros(chunk, dtype=torch.long),
            torch.tensor([0]),
            rows(chunk, instruction + length),
            ("task",),
        )
        for _ in range(count // chunk)
    ]


@pytest.mark.parametrize("instruction", [93, 347])
def test_reading_the_instruction_once_costs_less_than_reading_it_with_every_input(instruction):
    """The mean lengths of the official test tasks; a backbone of base's proportions, a quarter as wide and deep."""
    shape = {"d_model": 192, "d_kv": 16, "num_heads": 12, "d_ff": 512, "num_layers": 3}
    config = T5Config(
        vocab_size=8000, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, **shape
    )
    backbone = build_backbone(config, "quarter of base")
    backbone.freeze()
    model = TagiModel(backbone, TagiConfig()).eval()
    batches = flat_batch(instruction, 109, 10, count=100, chunk=50)
    cost = {name: measure_flops(SYSTEMS[name], model, batches) for name in ("no_instruction", "tagi", "concatenated")}
    assert cost["no_instruction"] < cost["tagi"] < cost["concatenated"]
    # the formula leaves out fusion, generator, output and the longer memory, so it is a lower bound
    assert cost["tagi"] / cost["concatenated"] > token_formula(instruction, 109, 100)


class Words:
    """The decoding half of a tokenizer whose tokens are letters."""

    def batch_decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return ["".join(chr(97 + token % 26) for token in row if token > 1) + " " for row in ids.tolist()]


def test_predictions_carry_task_instruction_digest_and_stripped_text(tokens):
    batch = make_batch(tokens, ["first", "second"], [0, 1, 1])
    tasks = {
        name: Task(name, f"category of {name}", ("do it",), (), (Instance("0", "in", ("yes",)),), "set", "template")
        for name in batch.tasks
    }
    rows = to_predictions(batch, Answers(("cd", "e", "fgh")), Words(), tasks.__getitem__)
    assert [row.prediction for row in rows] == ["cd", "e", "fgh"]
    assert [row.task for row in rows] == ["first", "second", "second"]
    assert [row.id for row in rows] == ["0", "1", "2"]
    texts = Words().batch_decode(batch.instruction.ids, True)
    for row, task in zip(rows, [0, 1, 1], strict=True):
        assert row.instruction_sha256 == hashlib.sha256(texts[task].encode()).hexdigest()
        assert (row.category, row.dataset, row.template) == (f"category of {row.task}", "set", "template")
        assert row.references == ("yes", "y")


def ranked_batch(tokens):
    """Returns three examples of two tasks with two, one and three choices."""
    batch = make_batch(tokens, "ab", [0, 0, 1])
    choices = Tokens.pad([[4, 5, 1], [6, 1], [7, 1], [8, 9, 10, 1], [6, 1], [5, 5, 1]], pad_id=0)
    index = torch.tensor([0, 0, 1, 2, 2, 2])
    texts = (("p", "q"), ("r",), ("s", "t", "u"))
    return replace(batch, choices=choices, choice_index=index, gold=torch.tensor([1, 0, 2]), choice_texts=texts)


@pytest.mark.parametrize("name", ["no_instruction", "concatenated", "tagi"])
def test_choices_scored_with_a_shared_encoding_equal_one_forward_each(model, tokens, name):
    batch = ranked_batch(tokens)
    runner = SystemRunner(SYSTEMS[name], model)
    answers = runner.answer(batch, GREEDY, Words())
    inputs, adapter = runner.condition(batch)
    for row, (sums, means) in enumerate(zip(answers.logprob_sum, answers.logprob_mean, strict=True)):
        own = (batch.choice_index == row).nonzero().flatten().tolist()
        assert len(sums) == len(means) == len(own)
        for place, choice in enumerate(own):
            ids = batch.choices.ids[choice][batch.choices.mask[choice] == 1][None]
            alone = Tokens(inputs.ids[row : row + 1], inputs.mask[row : row + 1])
            with torch.no_grad():
                logits = model(alone, ids, adapter, batch.task_index[row : row + 1])
            expected = logits.log_softmax(-1).gather(-1, ids[..., None]).sum().item()
            assert sums[place] == pytest.approx(expected, rel=1e-4)
            assert means[place] == pytest.approx(expected / ids.shape[1], rel=1e-4)


def test_a_ranked_row_answers_its_likeliest_choice_per_token(model, tokens):
    batch = ranked_batch(tokens)
    tasks = {name: Task(name, "c", ("do it",), (), (Instance("0", "in", ("yes",)),)) for name in batch.tasks}
    answers = SystemRunner(SYSTEMS["tagi"], model).answer(batch, GREEDY, Words())
    rows = to_predictions(batch, answers, Words(), tasks.__getitem__)
    for row, texts, gold in zip(rows, batch.choice_texts, [1, 0, 2], strict=True):
        assert row.choices == texts
        assert row.gold == gold
        assert row.prediction == texts[max(range(len(texts)), key=lambda place, row=row: row.logprob_mean[place])]


@pytest.mark.parametrize("name", ["no_instruction", "concatenated", "tagi"])
def test_examples_without_choices_are_generated_beside_ranked_ones(model, tokens, name):
    """Training templates of P3 rank some examples and leave others open, and a batch may hold both."""
    batch, places = ranked_batch(tokens), torch.tensor([0, 0, 2, 2, 2])
    choices = batch.choices.map(lambda tensor: tensor[[0, 1, 3, 4, 5]])
    texts = (("p", "q"), (), ("s", "t", "u"))
    mixed = replace(batch, choices=choices, choice_index=places, gold=torch.tensor([1, -1, 2]), choice_texts=texts)
    tasks = {task: Task(task, "c", ("do it",), (), (Instance("0", "in", ("yes",)),)) for task in batch.tasks}

    def predictions(batch):
        answers = SystemRunner(SYSTEMS[name], model).answer(batch, GREEDY, Words())
        return to_predictions(batch, answers, Words(), tasks.__getitem__)

    ranked, generated = predictions(batch), predictions(make_batch(tokens, "ab", [0, 0, 1]))
    for row, expected, text in zip(predictions(mixed), ranked, generated, strict=True):
        if row.id == "1":
            assert (row.prediction, row.ranked, row.gold) == (text.prediction, False, None)
        else:
            assert (row.prediction, row.choices) == (expected.prediction, expected.choices)
            assert row.logprob_mean == pytest.approx(expected.logprob_mean, rel=1e-5)
