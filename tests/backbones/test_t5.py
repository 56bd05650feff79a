import copy

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import T5ForConditionalGeneration

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.backbones import GenerationConfig, t5
from tagi_lightning.data.batch import IGNORE_INDEX, Tokens
from tagi_lightning.lora import LoraConfig

LENGTHS, TARGETS = [4, 7, 2, 6, 5, 3], [3, 2, 5, 4, 2, 6]
TASK_INDEX = torch.tensor([0, 2, 1, 1, 0, 2])
NOTHING = TaskAdapter()
SITES = [
    LoraConfig(rank=4),
    LoraConfig(rank=4, targets=("k", "o")),
    LoraConfig(rank=4, targets=("q", "k", "v", "o"), alpha=3),
    LoraConfig(rank=4, stacks=("encoder_self",)),
    LoraConfig(rank=4, stacks=("decoder_self",)),
    LoraConfig(rank=4, stacks=("decoder_cross",)),
]


@pytest.fixture
def inputs(tokens):
    return tokens(LENGTHS)


@pytest.fixture
def labels(tokens):
    targets = tokens(TARGETS, seed=1)
    return targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)


def row(inputs, number):
    """Returns one example alone, without padding."""
    return inputs.map(lambda tensor: tensor[number : number + 1, : LENGTHS[number]])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_adapter_it_is_transformers_t5_bit_for_bit(any_backbone, inputs, labels, attention, plain_t5):
    backbone, plain = copy.deepcopy(any_backbone), plain_t5(any_backbone)
    for model in (backbone.model, plain):
        model.set_attn_implementation(attention)
    # keys that went through a cache lie otherwise in memory, which some processors multiply in another order
    expected = plain(input_ids=inputs.ids, attention_mask=inputs.mask, labels=labels, use_cache=False).logits
    assert torch.equal(backbone(inputs, labels, NOTHING, TASK_INDEX), expected)
    assert torch.equal(
        backbone.encode(inputs), plain.encoder(input_ids=inputs.ids, attention_mask=inputs.mask).last_hidden_state
    )


@pytest.mark.parametrize("beams", [1, 4])
def test_without_adapter_it_generates_what_transformers_t5_does(any_backbone, inputs, beams, plain_t5):
    config = GenerationConfig(max_new_tokens=8, num_beams=beams)
    expected = plain_t5(any_backbone).generate(inputs.ids, attention_mask=inputs.mask, **config.to_kwargs())
    assert torch.equal(any_backbone.generate(inputs, NOTHING, TASK_INDEX, config), expected[:, 1:])


@torch.no_grad()
def test_decoding_in_stretches_gives_what_one_stretch_gives(any_backbone, inputs, plain_t5, monkeypatch):
    monkeypatch.setattr(t5, "STRETCH", 2)
    plain = plain_t5(any_backbone)
    free = plain.generate(input_ids=inputs.ids, attention_mask=inputs.mask, max_new_tokens=9, min_new_tokens=9)
    # tokens that end some rows early and others late
    stops = tuple(free[:, place].mode().values.item() for place in (2, 5))
    config = GenerationConfig(max_new_tokens=9, stop_ids=stops)
    arguments = {"max_new_tokens": 9, "eos_token_id": [plain.config.eos_token_id, *stops]}
    expected = plain.generate(input_ids=inputs.ids, attention_mask=inputs.mask, **arguments)[:, 1:]
    assert len(set((expected != 0).sum(1).tolist())) > 1
    assert torch.equal(any_backbone.generate(inputs, NOTHING, TASK_INDEX, config), expected)


@torch.no_grad()
def test_few_and_many_rows_of_a_task_are_answered_alike(backbone, trained, tokens, monkeypatch):
    model, config = trained(backbone), GenerationConfig(max_new_tokens=6)
    inputs, adapter = tokens([4, 7, 5]), model.prepare(tokens([6]))
    few = model.generate(inputs, adapter, torch.zeros(3, dtype=torch.long), config)
    monkeypatch.setattr(t5, "COPIED", -1)
    assert torch.equal(model.generate(inputs, adapter, torch.zeros(3, dtype=torch.long), config), few)


def test_names_and_shapes_of_the_weights_stay_hugging_faces(any_backbone):
    found = {name: tensor.shape for name, tensor in any_backbone.model.state_dict().items()}
    plain = T5ForConditionalGeneration(copy.deepcopy(any_backbone.model.config))
    assert found == {name: tensor.shape for name, tensor in plain.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("config", SITES, ids=lambda c: "".join(c.targets) + "-" + (c.stacks or ("all",))[0])
def test_lora_equals_merged_weights_for_every_task_of_a_mixed_batch(
    any_backbone, inputs, labels, config, lora, merge, distance
):
    weights = lora(any_backbone, 3, config)
    together = any_backbone(inputs, labels, TaskAdapter(lora=weights), TASK_INDEX)
    plain = any_backbone(inputs, labels, NOTHING, TASK_INDEX)
    for task in range(3):
        rows = task == TASK_INDEX
        merged = merge(any_backbone, weights, task)(
            inputs.map(lambda tensor, rows=rows: tensor[rows]), labels[rows], NOTHING, None
        )
        # float32, updates as large as the weights, six blocks deep
        assert distance(together[rows], merged) < 1e-5
        assert distance(together[rows], plain[rows]) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o")])
def test_lora_equals_pefts(any_backbone, inputs, labels, targets, lora, distance, plain_t5):
    """In float64: two ways of summing in float32 differ by up to 2e-5 here, PEFT's own rounding being the larger."""
    config = LoraConfig(rank=4, targets=targets, alpha=6)
    backbone = copy.deepcopy(any_backbone).double()
    weights = lora(any_backbone, 2, config)
    theirs = get_peft_model(plain_t5(any_backbone), PeftLoraConfig(r=4, lora_alpha=6, target_modules=list(targets)))
    theirs = theirs.double().eval()
    for task in range(2):
        for site in weights.a:
            module = theirs.base_model.model.get_submodule(site)
            module.lora_A["default"].weight.copy_(weights.a[site][task])
            module.lora_B["default"].weight.copy_(weights.b[site][task])
        expected = theirs(input_ids=inputs.ids, attention_mask=inputs.mask, labels=labels).logits
        found = backbone(inputs, labels, TaskAdapter(lora=weights), torch.full((6,), task))
        assert distance(found, expected) < 1e-10
    touched = [name for name, _ in theirs.named_parameters() if "lora_A" in name]
    assert len(touched) == len(any_backbone.sites(config))


@torch.no_grad()
def test_the_decoder_reads_instruction_then_input(any_backbone, inputs, labels, tokens, distance, plain_t5):
    """Memory alone is transformers' T5 given [I ; enc(b)] as its encoder's output, example by example."""
    instructions = tokens([5, 9, 3])
    memory = InstructionStates(any_backbone.encode(instructions), instructions.mask)
    found = any_backbone(inputs, labels, TaskAdapter(memory=memory), TASK_INDEX)
    plain = plain_t5(any_backbone)
    for n, task in enumerate(TASK_INDEX.tolist()):
        length = int(instructions.mask[task].sum())
        own = plain.encoder(input_ids=instructions.ids[task : task + 1, :length]).last_hidden_state
        read = plain.encoder(input_ids=inputs.ids[n : n + 1, : LENGTHS[n]]).last_hidden_state
        target = labels[n : n + 1, : TARGETS[n]]
        expected = plain(encoder_outputs=(torch.cat([own, read], dim=1),), labels=target).logits
        assert distance(found[n : n + 1, : TARGETS[n]], expected) < 1e-5


@pytest.mark.parametrize("beams", [1, 4])
def test_a_mixed_batch_generates_what_merged_weights_do(any_backbone, inputs, beams, lora, merge):
    weights = lora(any_backbone, 3)
    config = GenerationConfig(max_new_tokens=8, num_beams=beams)
    together = any_backbone.generate(inputs, TaskAdapter(lora=weights), TASK_INDEX, config)
    plain = any_backbone.generate(inputs, NOTHING, TASK_INDEX, config)
    assert not torch.equal(together, plain)
    for n, task in enumerate(TASK_INDEX.tolist()):
        alone = merge(any_backbone, weights, task).generate(row(inputs, n), NOTHING, None, config)[0]
        # a shorter answer than the batch's longest is padded with 0
        assert torch.equal(together[n, : len(alone)], alone)
        assert together[n, len(alone) :].abs().sum() == 0


def test_sampling_draws_what_merged_weights_draw(backbone, inputs, lora, merge):
    weights = lora(backbone, 3)
    config = GenerationConfig(max_new_tokens=8, do_sample=True, temperature=1.3, top_p=0.9)
    drawn = set()
    for n, task in enumerate(TASK_INDEX.tolist()):
        merged = merge(backbone, weights, task)
        one, index = row(inputs, n), TASK_INDEX[n : n + 1]
        for seed in range(2):
            torch.manual_seed(seed)
            found = backbone.generate(one, TaskAdapter(lora=weights), index, config)
            torch.manual_seed(seed)
            assert torch.equal(found, merged.generate(one, NOTHING, None, config))
            drawn.add(tuple(found[0].tolist()))
    assert len(drawn) > 6


def test_the_whole_adapter_generates_alike_in_company_and_alone(backbone, inputs, tokens, trained):
    model, instructions = trained(backbone), tokens([5, 9, 3])
    for beams in (1, 4):
        config = GenerationConfig(max_new_tokens=6, num_beams=beams)
        together = model.generate(inputs, model.prepare(instructions), TASK_INDEX, config)
        for n, task in enumerate(TASK_INDEX.tolist()):
            own = instructions.map(lambda tensor, task=task: tensor[task : task + 1])
            alone = model.generate(row(inputs, n), model.prepare(own), torch.tensor([0]), config)[0]
            assert torch.equal(together[n, : len(alone)], alone)


def test_greedy_generation_takes_the_likeliest_token_of_the_teacher_forced_logits(backbone, inputs, tokens, trained):
    """The key-value cache sees the same adapter, memory and fusion as one pass over the whole answer."""
    model, adapter = trained(backbone), trained(backbone).prepare(tokens([5, 9, 3]))
    answers = model.generate(inputs, adapter, TASK_INDEX, GenerationConfig(max_new_tokens=6))
    with torch.no_grad():
        logits = model(inputs, answers, adapter, TASK_INDEX)
    ended = (answers == 1).cumsum(1) - (answers == 1).long() > 0
    assert torch.equal(answers.masked_fill(ended, 0), logits.argmax(-1).masked_fill(ended, 0))


@torch.no_grad()
def test_several_tasks_need_a_task_index(backbone, inputs, labels, tokens, trained):
    adapter = trained(backbone).adapt(tokens([5, 6]))
    with pytest.raises(ValueError, match="task_index"):
        backbone(inputs, labels, TaskAdapter(fusion=adapter.fusion), None)


def test_sites_are_named_as_in_the_model_and_ordered_by_stack(any_backbone):
    sites = any_backbone.sites(LoraConfig(targets=("q", "o")))
    assert len(sites) == 2 * 2 * 3
    for site in sites:
        linear = any_backbone.model.get_submodule(site.name)
        assert (site.in_features, site.out_features) == (linear.in_features, linear.out_features)
        assert f".block.{site.block}." in site.name
        assert site.name.endswith(f".{site.target}")
    assert [site.stack for site in sites][:4] == ["encoder_self"] * 4
    assert [site.stack for site in sites][4:8] == ["decoder_self"] * 2 + ["decoder_cross"] * 2
    only = any_backbone.sites(LoraConfig(targets=("v",), stacks=("decoder_cross",)))
    assert [site.name for site in only] == [f"decoder.block.{n}.layer.1.EncDecAttention.v" for n in range(2)]


@pytest.mark.parametrize(
    ("config", "named"),
    [(LoraConfig(targets=("wi",)), r"wi.*choose from q, k, v, o"), (LoraConfig(stacks=("cross",)), "encoder_self")],
)
def test_a_site_that_t5_does_not_have_is_refused(backbone, config, named):
    with pytest.raises(ValueError, match=named):
        backbone.sites(config)


def test_no_adapter_is_left_behind(backbone, inputs, labels, tokens, trained):
    before = backbone(inputs, labels, NOTHING, TASK_INDEX)
    model = trained(backbone)
    model(inputs, labels, model.adapt(tokens([5, 9, 3])), TASK_INDEX)
    assert torch.equal(backbone(inputs, labels, NOTHING, TASK_INDEX), before)


def test_width_and_vocabulary_are_the_models(any_backbone):
    config = any_backbone.model.config
    assert any_backbone.width == config.d_model
    assert any_backbone.vocabulary_size == any_backbone(
        Tokens(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long)),
        torch.ones(1, 1, dtype=torch.long),
        NOTHING,
        None,
    ).size(-1)
    assert any_backbone.fusion_shape["inner"] == any_backbone.model.encoder.block[0].layer[0].SelfAttention.inner_dim


def test_the_digest_follows_every_weight(build):
    backbone = build("v1.1")
    before = backbone.digest()
    assert build("v1.1").digest() == before
    assert build("v1.1", seed=1).digest() != before
    with torch.no_grad():
        backbone.model.decoder.block[1].layer[2].DenseReluDense.wo.weight[3, 5] += 1e-3
    assert backbone.digest() != before


@torch.no_grad()
@pytest.mark.parametrize("copied", [-1, t5.COPIED])
def test_a_prepared_adapter_of_another_type_answers(backbone, trained, tokens, monkeypatch, copied):
    monkeypatch.setattr(t5, "COPIED", copied)
    model, stored = trained(copy.deepcopy(backbone).bfloat16()), torch.float32
    answers = model.generate(
        tokens([4, 7]), model.prepare(tokens([6]), stored), torch.zeros(2, dtype=torch.long), GenerationConfig(4)
    )
    assert answers.shape[0] == 2
