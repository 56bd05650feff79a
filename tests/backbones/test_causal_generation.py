import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch, Tokens
from tagi_lightning.evaluation.systems import SYSTEMS, measure_flops
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.inference.answers import answer
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel

INSTRUCTIONS = [5, 9, 3]
LENGTHS, TARGETS = [4, 7, 2, 6, 5, 3], [3, 2, 5, 4, 2, 6]
MIXED, RUNS = torch.tensor([0, 2, 1, 1, 0, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
NOTHING = TaskAdapter()
PREFIX = TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False))
AGAIN = TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False), memory_lora=True)
LORA = TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False), decoder_memory=False)
DECODING = {
    "greedy": GenerationConfig(max_new_tokens=8),
    "beams": GenerationConfig(max_new_tokens=8, num_beams=3),
    "sampling": GenerationConfig(max_new_tokens=8, do_sample=True, temperature=1.3, top_p=0.9),
}


@pytest.fixture
def instructions(tokens):
    return tokens(INSTRUCTIONS, seed=2)


@pytest.fixture
def inputs(tokens):
    return tokens(LENGTHS)


def row(tokens, number, length):
    """Returns one row alone, without padding."""
    return tokens.map(lambda tensor: tensor[number : number + 1, :length])


def prompt(instructions, inputs, n, task, bos=()):
    before = [] if task is None else instructions.ids[task, : INSTRUCTIONS[task]].tolist()
    return torch.tensor([[*bos, *before, *inputs.ids[n, : LENGTHS[n]].tolist()]])


def continue_plainly(model, ids, config):
    """Returns what transformers generates after `ids`, a token that ends included."""
    found = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=1, **config.to_kwargs())
    return found[0, ids.shape[1] :]


@pytest.mark.parametrize("memory", [True, False], ids=["prefix", "bare"])
@pytest.mark.parametrize("decoding", ["greedy", "beams"])
@pytest.mark.parametrize("order", [MIXED, RUNS], ids=["mixed", "runs"])
def test_a_batch_generates_what_transformers_does_row_by_row(
    any_causal, instructions, inputs, memory, decoding, order, plain_causal
):
    config, plain = DECODING[decoding], plain_causal(any_causal)
    with torch.no_grad():
        adapter = TaskAdapter(memory=any_causal.read(instructions, keys_values=True)) if memory else NOTHING
    found = any_causal.generate(inputs, adapter, order, config)
    assert found.shape[1] <= 8
    for n, answered in enumerate(found):
        task = int(order[n]) if memory else None
        expected = continue_plainly(plain, prompt(instructions, inputs, n, task), config)
        assert torch.equal(answered[: len(expected)], expected)
        assert (answered[len(expected) :] == 1).all()
    assert len({tuple(answered.tolist()) for answered in found}) > 3


@pytest.mark.parametrize("memory", [True, False], ids=["prefix", "bare"])
def test_sampling_draws_what_transformers_draws(any_causal, instructions, inputs, memory, plain_causal):
    config, plain = DECODING["sampling"], plain_causal(any_causal)
    drawn = set()
    for n, task in enumerate(MIXED.tolist()):
        own = row(instructions, task, INSTRUCTIONS[task])
        adapter = TaskAdapter(memory=any_causal.read(own, keys_values=True)) if memory else NOTHING
        for seed in range(2):
            torch.manual_seed(seed)
            found = any_causal.generate(row(inputs, n, LENGTHS[n]), adapter, torch.tensor([0]), config)[0]
            torch.manual_seed(seed)
            ids = prompt(instructions, inputs, n, task if memory else None)
            assert torch.equal(found, continue_plainly(plain, ids, config))
            drawn.add(tuple(found.tolist()))
    assert len(drawn) > 6


def test_generation_starts_with_bos_once(build_causal, instructions, inputs, plain_causal):
    backbone, config = build_causal("llama", bos_id=2), DECODING["greedy"]
    plain = plain_causal(backbone)
    with torch.no_grad():
        adapter = TaskAdapter(memory=backbone.read(instructions, keys_values=True))
    for given, memory in ((adapter, True), (NOTHING, False)):
        found = backbone.generate(inputs, given, MIXED, config)
        for n, answered in enumerate(found):
            ids = prompt(instructions, inputs, n, int(MIXED[n]) if memory else None, bos=[2])
            expected = continue_plainly(plain, ids, config)
            assert torch.equal(answered[: len(expected)], expected)


@pytest.mark.parametrize("decoding", ["greedy", "beams"])
@pytest.mark.parametrize("piece", [PREFIX, AGAIN, LORA], ids=["prefix", "read-again", "lora"])
def test_the_whole_adapter_generates_alike_in_company_and_alone(
    any_causal, instructions, inputs, piece, decoding, trained
):
    model, config = trained(any_causal, piece), DECODING[decoding]
    together = model.generate(inputs, model.prepare(instructions), MIXED, config)
    for n, task in enumerate(MIXED.tolist()):
        own = model.prepare(row(instructions, task, INSTRUCTIONS[task]))
        alone = model.generate(row(inputs, n, LENGTHS[n]), own, torch.tensor([0]), config)[0]
        assert torch.equal(together[n, : len(alone)], alone)


@torch.no_grad()
@pytest.mark.parametrize("piece", [PREFIX, LORA], ids=["prefix", "lora"])
@pytest.mark.parametrize("order", [MIXED, RUNS], ids=["mixed", "runs"])
def test_greedy_generation_takes_the_likeliest_token_of_the_teacher_forced_logits(
    any_causal, instructions, inputs, piece, order, trained
):
    """The cache of keys and values sees the same adapter as one pass over the whole answer."""
    model = trained(any_causal, piece)
    adapter = model.prepare(instructions)
    answers = model.generate(inputs, adapter, order, DECODING["greedy"])
    logits = model(inputs, answers, adapter, order)
    ended = (answers == 1).cumsum(1) - (answers == 1).long() > 0
    assert torch.equal(answers.masked_fill(ended, 0), logits.argmax(-1).masked_fill(ended, 0))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("piece", [PREFIX, AGAIN, LORA], ids=["prefix", "read-again", "lora"])
def test_scores_are_those_of_one_forward_pass_a_choice(
    any_causal, instructions, inputs, tokens, piece, gradients, trained
):
    model, targets = trained(any_causal, piece), tokens([3, 2, 5, 1, 4, 2, 6, 1], seed=1)
    choices = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    choice_index = torch.tensor([0, 0, 1, 2, 2, 2, 4, 5])
    with torch.set_grad_enabled(gradients):
        adapter = model.adapt(instructions)
        sums, counts = model.score(inputs, choices, choice_index, adapter, MIXED)
    assert counts.tolist() == [3, 2, 5, 1, 4, 2, 6, 1]
    with torch.no_grad():
        for place, n in enumerate(choice_index.tolist()):
            one, label = row(inputs, n, LENGTHS[n]), choices[place : place + 1]
            logits = model(one, label, adapter, MIXED[n : n + 1])[0, : counts[place]]
            expected = logits.log_softmax(-1).gather(1, label[0, : counts[place], None]).sum()
            assert sums[place].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)


@torch.no_grad()
def test_choices_of_one_token_are_scored(causal, inputs):
    choices = torch.tensor([[5], [9]])
    sums, counts = causal.score(inputs, choices, torch.tensor([1, 3]), NOTHING, MIXED)
    assert counts.tolist() == [1, 1]
    logits = causal(inputs, torch.tensor([[5]] * 6), NOTHING, MIXED).log_softmax(-1)
    assert torch.allclose(sums, torch.stack([logits[1, 0, 5], logits[3, 0, 9]]), atol=1e-5)


def test_it_stops_at_the_models_ends_and_at_those_asked_for(causal, inputs):
    free = causal.generate(inputs, NOTHING, MIXED, GenerationConfig(max_new_tokens=8))
    stop = int(free[0, 2])
    found = causal.generate(inputs, NOTHING, MIXED, GenerationConfig(max_new_tokens=8, stop_ids=(stop,)))
    for answered, longer in zip(found.tolist(), free.tolist(), strict=True):
        ends = [place for place, token in enumerate(longer) if token in (stop, 1)]
        length = ends[0] + 1 if ends else len(longer)
        assert answered[:length] == longer[:length]
        assert set(answered[length:]) <= {1}
    assert found[0].tolist().index(stop) == free[0].tolist().index(stop)


def test_how_to_decode_is_not_the_checkpoints_to_say(build_causal, inputs):
    model = build_causal().model
    expected = CausalBackbone(model, "before").generate(inputs, NOTHING, MIXED, DECODING["greedy"])
    model.generation_config.update(do_sample=True, repetition_penalty=9.0, eos_token_id=1, bos_token_id=2)
    found = CausalBackbone(model, "after").generate(inputs, NOTHING, MIXED, DECODING["greedy"])
    assert torch.equal(found, expected)


def test_an_empty_input_and_a_full_context_are_refused(causal, inputs, tokens):
    empty = Tokens(inputs.ids, inputs.mask.clone().index_fill_(0, torch.tensor([2]), 0))
    with pytest.raises(ValueError, match="without any token"):
        causal.generate(empty, NOTHING, MIXED, GenerationConfig(max_new_tokens=2))
    memory = TaskAdapter(memory=causal.read(tokens([60]), keys_values=True))
    zeros = torch.zeros(6, dtype=torch.long)
    for call in (
        lambda: causal.generate(inputs, memory, zeros, GenerationConfig(max_new_tokens=2)),
        lambda: causal.score(inputs, torch.tensor([[3, 4, 5]]), torch.tensor([1]), memory, zeros),
    ):
        with pytest.raises(ValueError, match=r"64 positions, and an example needs \d+ \(an instruction of 60 tokens"):
            call()


def build_tokenizer():
    """Returns a byte-level tokenizer some of whose tokens hold line breaks; model ids are below 64."""
    letters = ["a", "b", "c", "Ċ", "ĊĊ", "Ġ", "aĊ"]
    vocabulary = {f"x{number}": number for number in range(64)}
    for place, letter in enumerate(letters):
        vocabulary.pop(f"x{place + 10}")
        vocabulary[letter] = place + 10
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_newlines_are_every_token_that_holds_one_and_blanks_those_of_white_space_alone():
    tokenizer = build_tokenizer()
    assert GenerationConfig().with_newlines(tokenizer) == GenerationConfig()
    found = GenerationConfig(stop_at_newline=True, stop_ids=(3,)).with_newlines(tokenizer)
    assert (found.stop_ids, found.newline_ids, found.blank_ids) == ((3,), (13, 14, 16), (13, 14, 15))
    assert found.with_newlines(tokenizer) == found


@pytest.mark.parametrize("num_beams", [1, 3])
def test_decoding_stops_after_the_first_line_that_is_not_blank(causal, inputs, num_beams):
    newlines, blanks = tuple(range(32)), tuple(range(16))
    plain = GenerationConfig(max_new_tokens=12, num_beams=num_beams)
    # with beams a line's end changes which beam wins, so only where they end is told
    free = causal.generate(inputs, NOTHING, MIXED, plain).tolist()
    lines = causal.generate(inputs, NOTHING, MIXED, replace(plain, newline_ids=newlines, blank_ids=blanks)).tolist()
    ended = 0
    for one, other in zip(lines, free, strict=True):
        end = next(
            (at for at, token in enumerate(one) if token in newlines and any(t not in blanks for t in one[: at + 1])),
            None,
        )
        ended += end is not None
        kept = one if end is None else one[: end + 1]
        assert num_beams > 1 or kept == other[: len(kept)]
        assert len(set(one[len(kept) :])) <= 1
    assert ended


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_answer_of_one_line_ends_before_it_says_something(causal, inputs, num_beams):
    free = causal.generate(inputs, NOTHING, MIXED, GenerationConfig(max_new_tokens=12)).tolist()
    ends = tuple({row[0] for row in free})
    plain = GenerationConfig(max_new_tokens=12, num_beams=num_beams, stop_ids=ends)
    assert causal.generate(inputs, NOTHING, MIXED, replace(plain, num_beams=1)).shape[1] == 1
    # an end is no white space, yet says nothing either
    blanks = tuple({*range(0, 64, 2), *ends})
    lines = causal.generate(inputs, NOTHING, MIXED, replace(plain, newline_ids=(3,), blank_ids=blanks)).tolist()
    for row in lines:
        first = next((at for at, token in enumerate(row) if token in ends), len(row))
        assert first == len(row) or any(token not in blanks for token in row[:first])
    assert any(token not in blanks for row in lines for token in row)


def test_only_the_text_before_the_newline_counts(causal, inputs, instructions, monkeypatch):
    tokenizer, model = build_tokenizer(), TagiModel(causal, LORA)
    batch = TaskBatch(instructions, inputs, inputs.ids, MIXED, torch.full((3,), -1))
    said = torch.tensor([[13, 15, 11, 12, 15, 16, 12, 10]] * 6)
    seen = []

    def generate(inputs, adapter, task_index, config):
        seen.append(config.newline_ids)
        return said

    monkeypatch.setattr(causal, "generate", generate)
    for stop, text in ((True, "bc a"), (False, "bc a\nca")):  # a blank line in front never counts
        config = GenerationConfig(stop_at_newline=stop)
        assert answer(model, batch, inputs, NOTHING, config, tokenizer).texts == (text,) * 6
    assert seen == [(13, 14, 16), ()]


@pytest.mark.parametrize("piece", [PREFIX, LORA], ids=["prefix", "lora"])
def test_operations_are_counted_by_shapes_alone(causal, instructions, inputs, piece):
    """A task's instruction is read once, whatever the number of its inputs."""
    model = TagiModel(causal, piece)

    def cost(batches, spec):
        return measure_flops(SYSTEMS[spec], model, batches)

    def batch(rows):
        given = inputs.map(lambda tensor: tensor[rows])
        own, prompts = row(instructions, 0, 5), Tokens(*(torch.ones(len(given), 12, dtype=torch.long),) * 2)
        zeros = torch.zeros(len(given), dtype=torch.long)
        return TaskBatch(own, given, given.ids, zeros, torch.tensor([-1]), prompt=prompts, tasks=("t",))

    one, two = cost([batch([0])], "tagi"), cost([batch([0]), batch([1])], "tagi")
    assert one < two < 2 * one
    assert cost([batch([0, 1])], "no_instruction") == 2 * cost([batch([0])], "no_instruction")
    assert cost([batch([0])], "concatenated") > cost([batch([0])], "no_instruction")
    mixed = TaskBatch(instructions, inputs, inputs.ids, MIXED, torch.full((3,), -1))
    assert cost([mixed], "tagi") > cost([mixed], "no_instruction")


def test_it_is_the_same_under_a_copy(causal, instructions, inputs, trained):
    """Nothing of a call is left on the modules: a copy made after one generates alike."""
    model = trained(causal, PREFIX)
    found = model.generate(inputs, model.prepare(instructions), MIXED, DECODING["beams"])
    other = copy.deepcopy(model)
    assert torch.equal(other.generate(inputs, other.prepare(instructions), MIXED, DECODING["beams"]), found)


def test_the_output_layer_is_given_contiguous_rows(causal, inputs):
    """Of a slice of positions, PyTorch copies the layer's weights to every row, which takes longer than the model."""
    seen = []
    hook = causal.model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    causal.generate(inputs, TaskAdapter(), torch.zeros(len(inputs), dtype=torch.long), DECODING["greedy"])
    hook.remove()
    assert seen
    assert all(seen)
