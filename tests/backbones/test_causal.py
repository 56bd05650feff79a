import copy
import json
import os

import pytest
import torch
from model_folders import load_onto
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.backbones import BackboneConfig, GenerationConfig, causal_modules, load_backbone
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.checkpointing import checkpoint_blocks
from tagi_lightning.backbones.loading import BackboneError
from tagi_lightning.caches.instructions import InstructionStatesCache
from tagi_lightning.data.batch import IGNORE_INDEX, Tokens, pad_labels
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.storage.serialization import save_tagi

INSTRUCTIONS = [5, 9, 3]
LENGTHS, TARGETS = [4, 7, 2, 6, 5, 3], [3, 2, 5, 4, 2, 6]
MIXED, RUNS, UNEVEN = (torch.tensor(order) for order in ([0, 2, 1, 1, 0, 2], [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]))
NOTHING = TaskAdapter()
NO_FUSION = FusionConfig(enabled=False)
PREFIX = TagiConfig(LoraConfig(rank=4), fusion=NO_FUSION)
PIECES = {
    "all": PREFIX,
    "all-read-again": TagiConfig(LoraConfig(rank=4), fusion=NO_FUSION, memory_lora=True),
    "lora": TagiConfig(LoraConfig(rank=4), fusion=NO_FUSION, decoder_memory=False),
    "qkvo-last": TagiConfig(
        LoraConfig(rank=2, targets=("q", "k", "v", "o")), HypernetworkConfig(pooling="last"), NO_FUSION
    ),
}


@pytest.fixture
def instructions(tokens):
    return tokens(INSTRUCTIONS, seed=2)


@pytest.fixture
def inputs(tokens):
    return tokens(LENGTHS)


@pytest.fixture
def labels(tokens):
    targets = tokens(TARGETS, seed=1)
    return targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)


def concatenated(model, instructions, inputs, labels, n, task, bos=()):
    """Returns the plain model's logits of example `n`'s labels after instruction `task` (None: none) and input."""
    before = [] if task is None else instructions.ids[task, : INSTRUCTIONS[task]].tolist()
    prompt = [*bos, *before, *inputs.ids[n, : LENGTHS[n]].tolist()]
    row = torch.tensor([prompt + labels[n, : TARGETS[n]].tolist()])
    return model(input_ids=row).logits[:, len(prompt) - 1 : -1]


def assert_rows_equal(found, expected, distance):
    """Asserts that the logits of every example equal those that `expected(n)` gives."""
    for n, length in enumerate(TARGETS):
        assert distance(found[n : n + 1, :length], expected(n)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_adapter_it_is_transformers_model(any_causal, instructions, inputs, labels, attention, plain_causal):
    backbone, plain = copy.deepcopy(any_causal), plain_causal(any_causal)
    for model in (backbone.model, plain):
        model.set_attn_implementation(attention)
    found = backbone(inputs, labels, NOTHING, MIXED)
    assert found.shape == (6, max(TARGETS), backbone.vocabulary_size)
    for n, length in enumerate(TARGETS):
        expected = concatenated(plain, instructions, inputs, labels, n, None)
        assert torch.allclose(found[n : n + 1, :length], expected, atol=2e-6 * expected.abs().max())
    row = inputs.ids[1:2, : LENGTHS[1]]
    alone = backbone.read(Tokens(row, torch.ones_like(row))).states
    assert torch.equal(alone, plain.model(input_ids=row).last_hidden_state)


def test_names_shapes_and_values_of_the_weights_stay_hugging_faces(any_causal):
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(any_causal.model.config))
    found = {name: tensor.shape for name, tensor in any_causal.model.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in plain.state_dict().items()}


@pytest.mark.parametrize("kernel", ["gradients", "scores", "fused"])
@pytest.mark.parametrize("order", [MIXED, RUNS, UNEVEN], ids=["mixed", "runs", "uneven"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_memory_is_the_instruction_in_front(
    any_causal, instructions, inputs, labels, attention, order, kernel, plain_causal, distance, monkeypatch
):
    """Positions, grouped heads, tied outputs and windows included; the examples' tasks differ, and their lengths."""
    gradients = kernel == "gradients"
    monkeypatch.setattr(causal_modules, "FUSED_QUERIES", 1 if kernel == "fused" else 10**6)
    scored, attend = [], causal_modules.attend
    monkeypatch.setattr(causal_modules, "attend", lambda *args: scored.append(1) or attend(*args))
    backbone, plain = copy.deepcopy(any_causal), plain_causal(any_causal)
    backbone.model.set_attn_implementation(attention)
    with torch.set_grad_enabled(gradients):
        memory = backbone.read(instructions, keys_values=True)
        found = backbone(inputs, labels, TaskAdapter(memory=memory), order)
    with torch.no_grad():
        assert_rows_equal(
            found.detach(), lambda n: concatenated(plain, instructions, inputs, labels, n, int(order[n])), distance
        )
    windows = [module.sliding_window for module in backbone.modules() if hasattr(module, "sliding_window")]
    assert bool(scored) == (kernel == "scores" and None in windows)


@torch.no_grad()
def test_a_sequence_starts_with_bos_once(build_causal, instructions, inputs, labels, plain_causal, distance):
    backbone = build_causal("llama", bos_id=2)
    plain = plain_causal(backbone)
    memory = backbone.read(instructions, keys_values=True)
    assert memory.mask.sum(1).tolist() == [length + 1 for length in INSTRUCTIONS]
    found = backbone(inputs, labels, TaskAdapter(memory=memory), MIXED)
    assert_rows_equal(
        found, lambda n: concatenated(plain, instructions, inputs, labels, n, int(MIXED[n]), bos=[2]), distance
    )
    bare = backbone(inputs, labels, NOTHING, MIXED)
    assert_rows_equal(bare, lambda n: concatenated(plain, instructions, inputs, labels, n, None, bos=[2]), distance)


@torch.no_grad()
@pytest.mark.parametrize("memory", [False, True])
def test_what_stands_in_the_padding_never_counts(any_causal, instructions, inputs, labels, memory, distance):
    """A model without padding token needs none."""

    def run(pad):
        read, given = (tokens.map(torch.clone) for tokens in (instructions, inputs))
        for tokens in (read, given):
            tokens.ids.masked_fill_(tokens.mask == 0, pad)
        adapter = TaskAdapter(memory=any_causal.read(read, keys_values=True) if memory else None)
        return any_causal(given, labels, adapter, MIXED)

    valid = labels != IGNORE_INDEX
    assert torch.equal(run(0)[valid], run(7)[valid])


@torch.no_grad()
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o")])
def test_lora_equals_merged_weights_and_pefts(
    any_causal, instructions, inputs, labels, targets, lora, merge, plain_causal, distance
):
    config = LoraConfig(rank=4, targets=targets, alpha=6)
    weights = lora(any_causal, 3, config)
    together = any_causal(inputs, labels, TaskAdapter(lora=weights), MIXED)
    modules = [f"{target}_proj" for target in targets]
    theirs = get_peft_model(plain_causal(any_causal), PeftLoraConfig(r=4, lora_alpha=6, target_modules=modules)).eval()
    for task in range(3):
        for site in weights.a:
            module = theirs.base_model.model.get_submodule(site)
            module.lora_A["default"].weight.copy_(weights.a[site][task])
            module.lora_B["default"].weight.copy_(weights.b[site][task])
        merged = plain_causal(merge(any_causal, weights, task))
        for n in torch.nonzero(task == MIXED).flatten().tolist():
            found = together[n : n + 1, : TARGETS[n]]
            assert distance(found, concatenated(theirs, instructions, inputs, labels, n, None)) < 1e-5
            assert distance(found, concatenated(merged, instructions, inputs, labels, n, None)) < 1e-5
    assert len([name for name, _ in theirs.named_parameters() if "lora_A" in name]) == len(any_causal.sites(config))


@torch.no_grad()
def test_lora_applies_to_the_inputs_and_not_to_the_memory(
    any_causal, instructions, inputs, labels, lora, merge, plain_causal, distance
):
    weights = lora(any_causal, 3)
    memory = any_causal.read(instructions, keys_values=True)
    found = any_causal(inputs, labels, TaskAdapter(lora=weights, memory=memory), MIXED)

    def expected(n):
        task = int(MIXED[n])
        merged, cache = plain_causal(merge(any_causal, weights, task)), DynamicCache()
        plain_causal(any_causal)(
            input_ids=instructions.ids[task : task + 1, : INSTRUCTIONS[task]], past_key_values=cache
        )
        row = torch.cat([inputs.ids[n, : LENGTHS[n]], labels[n, : TARGETS[n]]])[None]
        return merged(input_ids=row, past_key_values=cache).logits[:, LENGTHS[n] - 1 : -1]

    assert_rows_equal(found, expected, distance)


@torch.no_grad()
def test_memory_lora_applies_to_instruction_and_inputs(
    any_causal, instructions, inputs, labels, trained, merge, plain_causal, distance
):
    model = trained(any_causal, PIECES["all-read-again"])
    adapter = model.adapt(instructions)
    found = model(inputs, labels, adapter, MIXED)
    merged = [plain_causal(merge(any_causal, adapter.lora, task)) for task in range(3)]
    assert_rows_equal(
        found,
        lambda n: concatenated(merged[MIXED[n]], instructions, inputs, labels, n, int(MIXED[n])),
        distance,
    )
    inputs_only = trained(any_causal, PREFIX)
    assert distance(found, inputs_only(inputs, labels, inputs_only.adapt(instructions), MIXED)) > 1e-3


@torch.no_grad()
def test_memory_lora_applies_a_lora_that_is_given_to_the_instruction_too(
    causal, instructions, inputs, labels, trained, lora, merge, plain_causal, distance
):
    model, other = trained(causal, PIECES["all-read-again"]), lora(causal, 3)
    found = model(inputs, labels, model.conditioned(model.encode_instructions(instructions), other, None), MIXED)
    merged = [plain_causal(merge(causal, other, task)) for task in range(3)]
    assert_rows_equal(
        found,
        lambda n: concatenated(merged[MIXED[n]], instructions, inputs, labels, n, int(MIXED[n])),
        distance,
    )


@torch.no_grad()
@pytest.mark.parametrize("piece", PIECES)
def test_a_batch_of_mixed_tasks_is_its_examples_one_by_one(
    any_causal, instructions, inputs, labels, piece, trained, distance
):
    model = trained(any_causal, PIECES[piece])
    together = model(inputs, labels, model.adapt(instructions), MIXED)

    def alone(n):
        task = int(MIXED[n])
        own = instructions.map(lambda tensor: tensor[task : task + 1, : INSTRUCTIONS[task]])
        one = inputs.map(lambda tensor: tensor[n : n + 1, : LENGTHS[n]])
        return model(one, labels[n : n + 1, : TARGETS[n]], model.adapt(own), torch.tensor([0]))

    assert_rows_equal(together, alone, distance)


@torch.no_grad()
def test_a_fresh_model_is_the_concatenated_prompt(any_causal, instructions, inputs, labels, plain_causal, distance):
    plain, model = plain_causal(any_causal), TagiModel(any_causal, PREFIX)
    found = model(inputs, labels, model.adapt(instructions), MIXED)
    assert_rows_equal(found, lambda n: concatenated(plain, instructions, inputs, labels, n, int(MIXED[n])), distance)
    bare = TagiModel(any_causal, PIECES["lora"])
    without = bare(inputs, labels, bare.adapt(instructions), MIXED)
    assert_rows_equal(without, lambda n: concatenated(plain, instructions, inputs, labels, n, None), distance)


@torch.no_grad()
@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("order", [MIXED, RUNS], ids=["mixed", "runs"])
def test_cached_and_fresh_are_equal(any_causal, instructions, inputs, labels, piece, order, trained):
    model = trained(any_causal, PIECES[piece])
    fresh = model(inputs, labels, model.adapt(instructions), order)
    assert torch.equal(model(inputs, labels, model.prepare(instructions), order), fresh)


def gradients(model, instructions, inputs, labels):
    model.zero_grad()
    prediction_loss(model(inputs, labels, model.adapt(instructions), MIXED), labels).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.trained_parameters().items()}


@pytest.mark.parametrize("piece", PIECES)
def test_gradients_reach_the_hypernetwork_and_nothing_of_the_backbone(
    any_causal, instructions, inputs, labels, piece, trained
):
    found = gradients(trained(any_causal, PIECES[piece]), instructions, inputs, labels)
    assert found
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert all(parameter.grad is None for parameter in any_causal.parameters())


@pytest.mark.parametrize("piece", PIECES)
def test_gradient_checkpointing_changes_no_gradient(any_causal, instructions, inputs, labels, piece, trained):
    backbone = copy.deepcopy(any_causal)
    checkpoint_blocks(backbone.model)
    calls = []
    handle = backbone.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    kept = gradients(trained(any_causal, PIECES[piece]), instructions, inputs, labels)
    recomputed = gradients(trained(backbone, PIECES[piece]), instructions, inputs, labels)
    handle.remove()
    # the frozen reading of the instruction records no gradient and runs once
    assert len(calls) == (5 if piece == "all-read-again" else 3)
    for name, gradient in kept.items():
        assert torch.allclose(recomputed[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_training_step_changes_what_is_saved_and_the_rest_stays(build_causal, instructions, inputs, labels, tmp_path):
    backbone = build_causal("qwen3")
    digest, model = backbone.digest(), TagiModel(backbone, PREFIX)
    optimizer = torch.optim.SGD(model.trained_parameters().values(), lr=1.0)
    prediction_loss(model(inputs, labels, model.adapt(instructions), MIXED), labels).mean().backward()
    optimizer.step()
    assert backbone.digest() == digest
    assert not [name for name in model.trained_state() if name.startswith("backbone.")]
    save_tagi(model, tmp_path / "model")
    loaded = load_onto(tmp_path / "model", backbone)
    with torch.no_grad():
        found, expected = (m(inputs, labels, m.adapt(instructions), MIXED) for m in (loaded, model))
    assert torch.equal(found, expected)


@torch.no_grad()
def test_instruction_states_may_come_from_an_earlier_layer(any_causal, build_causal, instructions, plain_causal):
    plain = plain_causal(any_causal)
    row = instructions.map(lambda tensor: tensor[1:2])
    hidden = plain.model(input_ids=row.ids, output_hidden_states=True).hidden_states
    backbone = CausalBackbone(any_causal.model, "first", instruction_layer=1)
    assert torch.allclose(backbone.read(row).states, plain.model.norm(hidden[1]), atol=1e-6)
    last = CausalBackbone(any_causal.model, "last", instruction_layer=2)
    assert torch.equal(last.read(row).states, any_causal.read(row).states)
    with pytest.raises(ValueError, match="1 to 2 for none, got 3"):
        CausalBackbone(any_causal.model, "none", instruction_layer=3)


def test_keys_and_values_are_only_kept_where_asked_for(causal, instructions):
    assert causal.read(instructions).keys_values == ()
    pairs = causal.read(instructions, keys_values=True).keys_values
    assert [tuple(part.shape for part in pair) for pair in pairs] == [((3, 2, 9, 8), (3, 2, 9, 8))] * 2
    assert TagiModel(causal, PIECES["lora"]).encode_instructions(instructions).keys_values == ()
    model = TagiModel(causal, PREFIX)
    whole, bare = (InstructionStatesCache(model, 2**20, memory=memory) for memory in (True, False))
    assert torch.equal(whole.encode(instructions).states, bare.encode(instructions).states)
    assert bare.encode(instructions).keys_values == ()
    assert bare.num_bytes < whole.num_bytes


def test_sites_are_module_paths_and_ordered_by_layer(any_causal):
    sites = any_causal.sites(LoraConfig(targets=("q", "v")))
    assert [site.name for site in sites] == [
        f"model.layers.{n}.self_attn.{name}_proj" for n in range(2) for name in ("q", "v")
    ]
    for site in sites:
        linear = any_causal.model.get_submodule(site.name)
        assert (site.in_features, site.out_features) == (linear.in_features, linear.out_features)
        assert (site.stack, f"model.layers.{site.block}.self_attn.{site.target}_proj") == ("decoder_self", site.name)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LoraConfig(targets=("gate",)), "gate.*choose from q, k, v, o"),
        (LoraConfig(stacks=("encoder_self",)), "encoder_self.*decoder-only; use decoder_self"),
    ],
)
def test_a_site_that_it_does_not_have_is_refused(causal, config, named):
    with pytest.raises(ValueError, match=named):
        causal.sites(config)


def test_fusion_is_refused_and_the_prefix_named(causal):
    with pytest.raises(ValueError, match=r"tagi\.fusion\.enabled=false.*tagi\.decoder_memory"):
        TagiModel(causal, TagiConfig())


def test_states_without_keys_are_no_memory(causal, instructions, inputs, labels):
    with pytest.raises(ValueError, match="keys_values=True"):
        causal(inputs, labels, TaskAdapter(memory=causal.read(instructions)), MIXED)


def test_a_context_that_is_too_short_is_refused_by_its_lengths(causal, inputs, labels, tokens):
    memory = causal.read(tokens([40, 58, 3]), keys_values=True)
    with pytest.raises(ValueError, match=r"it has 64 positions.*needs 65 \(an instruction of 58 tokens and .* of 7\)"):
        causal(inputs, labels, TaskAdapter(memory=memory), torch.tensor([0, 0, 1, 2, 2, 2]))
    # the longest instruction fits, since its own input is short: padding does not count
    causal(inputs, labels[:, :2], TaskAdapter(memory=memory), torch.tensor([0, 0, 1, 2, 2, 2]))
    with pytest.raises(ValueError, match="needs 65 "):
        causal.read(tokens([65]))


def test_no_adapter_is_left_behind(causal, instructions, inputs, labels, trained):
    before = causal(inputs, labels, NOTHING, MIXED)
    model = trained(causal, PREFIX)
    model(inputs, labels, model.adapt(instructions), MIXED)
    assert torch.equal(causal(inputs, labels, NOTHING, MIXED), before)


def save_with_tokenizer(backbone, folder, bos):
    """Writes the model as Hugging Face does, with a tokenizer that prepends BOS or does not."""
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(backbone.model.config))
    plain.load_state_dict(backbone.model.state_dict())
    plain.generation_config.update(do_sample=True, repetition_penalty=1.5, eos_token_id=[1, 5])
    plain.save_pretrained(folder)
    vocabulary = {f"w{number}": number for number in range(60)} | {"<s>": 60, "</s>": 61, "<unk>": 62}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 60)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("bos", [True, False])
def test_a_folder_is_loaded_with_its_bos_and_its_ends(any_causal, inputs, labels, bos, tmp_path):
    save_with_tokenizer(any_causal, tmp_path, bos)
    loaded = load_backbone(BackboneConfig(str(tmp_path), instruction_layer=1))
    assert isinstance(loaded, CausalBackbone)
    assert (loaded.bos_id, loaded.eos_ids, loaded.instruction_layer) == (60 if bos else None, (1, 5), 1)
    assert loaded.digest() == any_causal.digest()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    if not bos:
        assert torch.equal(loaded(inputs, labels, NOTHING, MIXED), any_causal(inputs, labels, NOTHING, MIXED))
    stored = load_backbone(BackboneConfig(str(tmp_path), dtype="bfloat16"))
    assert stored.digest() == any_causal.digest()
    assert stored(inputs, labels, NOTHING, MIXED).dtype == torch.bfloat16


def test_a_folder_without_tokenizer_is_refused(causal, tmp_path):
    causal.model.config.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(causal.model.config))
    plain.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"no tokenizer: .* holds none of tokenizer\.json"):
        load_backbone(BackboneConfig(str(tmp_path)))


def test_a_family_with_other_projections_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BackboneError, match=r"gpt2 model.*t5.*llama, mistral, qwen2, qwen3.*q_proj"):
        load_backbone(BackboneConfig(str(tmp_path)))


def test_the_memory_of_instruction_states_alone_is_refused_where_it_is_read_again(causal, instructions):
    model = TagiModel(causal, PIECES["all-read-again"])
    encoded = model.encode_instructions(instructions)
    assert isinstance(encoded, InstructionStates)
    assert encoded.tokens is instructions
    assert model.adapt(encoded).memory.tokens is None


@pytest.mark.realdata
@torch.no_grad()
def test_a_pretrained_model_reads_the_prefix_as_the_concatenated_prompt(distance):
    if "TAGI_CAUSAL" not in os.environ:
        pytest.skip("TAGI_CAUSAL names no folder of a decoder-only model (make backbone BACKBONE=smollm2-135m)")
    folder = os.environ["TAGI_CAUSAL"]
    backbone, plain = load_backbone(BackboneConfig(folder)), AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        "Translate the sentence into French.\n\n",
        "Answer the question in one word, in lower case letters only.\n\n",
    ]
    asked = ["Input: I like cheese.\nOutput:", "Input: Which city is the capital of France?\nOutput:"]
    answers = tokenizer([" J'aime le fromage." + tokenizer.eos_token, " paris" + tokenizer.eos_token]).input_ids
    instructions, inputs = tokenizer(texts).input_ids, tokenizer(asked).input_ids
    memory = backbone.read(Tokens.pad(instructions, 0), keys_values=True)
    adapter, order = TaskAdapter(memory=memory), torch.tensor([0, 1])
    found = backbone(Tokens.pad(inputs, 0), pad_labels(answers), adapter, order)
    config = GenerationConfig(max_new_tokens=12)
    said = backbone.generate(Tokens.pad(inputs, 0), adapter, order, config)
    for n, answer in enumerate(answers):
        prompt = torch.tensor([instructions[n] + inputs[n]])
        row = torch.cat([prompt, torch.tensor([answer])], dim=1)
        assert distance(found[n, : len(answer)], plain(row).logits[0, prompt.shape[1] - 1 : -1]) < 1e-5
        expected = plain.generate(prompt, attention_mask=torch.ones_like(prompt), **config.to_kwargs())
        expected = expected[0, prompt.shape[1] :]
        assert torch.equal(said[n, : len(expected)], expected)
