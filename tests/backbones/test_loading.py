import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import SIZES, BackboneConfig, build_backbone, load_backbone
from tagi_lightning.backbones.loading import BackboneError, t5_config
from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.lora import LoraConfig

TASK_INDEX = torch.zeros(2, dtype=torch.long)


@pytest.fixture
def batch(tokens):
    targets = tokens([3, 2], seed=1)
    return tokens([4, 6]), targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)


def run(backbone, batch):
    with torch.no_grad():
        return backbone(*batch, TaskAdapter(), TASK_INDEX)


@pytest.mark.parametrize(
    ("size", "millions", "sites", "generated"),
    [
        ("base", 247.6, 72, (1.77, 3.54, 7.08)),
        ("large", 783.2, 144, (4.7, 9.4, 18.9)),
        ("xl", 2850, 144, (9.4, 18.9, 37.7)),
        ("xxl", 11135, 144, (18.9, 37.7, 75.5)),
    ],
)
def test_sizes_have_the_papers_parameter_counts(size, millions, sites, generated):
    with torch.device("meta"):
        backbone = build_backbone(t5_config(size), size)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)
    assert len(backbone.sites(LoraConfig())) == sites
    for rank, expected in zip((16, 32, 64), generated, strict=True):
        numbers = sum(rank * (site.in_features + site.out_features) for site in backbone.sites(LoraConfig()))
        assert numbers / 1e6 == pytest.approx(expected, abs=0.05)


def test_small_has_a_width_unlike_heads_times_head_size():
    with torch.device("meta"):
        backbone = build_backbone(t5_config("small"), "small")
    site = backbone.sites(LoraConfig())[0]
    assert (site.in_features, site.out_features) == (512, 384)
    # google/t5-small-lm-adapt
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(76.96, rel=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_a_loaded_backbone_is_frozen_and_has_no_dropout_in_either_mode(training, batch):
    backbone = load_backbone(BackboneConfig("tiny"), vocabulary_size=64)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.training
    expected = run(backbone, batch)
    assert torch.equal(run(backbone.train(training), batch), expected)


def test_fresh_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    digests = [load_backbone(BackboneConfig("tiny"), 64, seed).digest() for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert digests[0] == digests[1] != digests[2]


def test_a_fresh_untied_output_starts_at_the_loss_of_a_uniform_guess(build, batch):
    logits = run(load_backbone(BackboneConfig("tiny"), vocabulary_size=64), batch)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=IGNORE_INDEX)
    assert loss.item() < 2 * torch.tensor(64.0).log().item()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_saved_backbone_comes_back_bit_for_bit_here_and_in_transformers(any_backbone, batch, tmp_path, sharded):
    any_backbone.model.save_pretrained(tmp_path, max_shard_size="10KB" if sharded else "1GB")
    loaded = load_backbone(BackboneConfig(str(tmp_path)))
    expected = run(any_backbone, batch)
    assert loaded.digest() == any_backbone.digest()
    assert torch.equal(run(loaded, batch), expected)
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = plain(input_ids=batch[0].ids, attention_mask=batch[0].mask, labels=batch[1]).logits
    assert torch.equal(found, expected)


def test_dropout_of_a_folders_configuration_is_switched_off(any_backbone, batch, tmp_path):
    any_backbone.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dropout_rate": 0.5}))
    loaded = load_backbone(BackboneConfig(str(tmp_path))).train()
    assert torch.equal(run(loaded, batch), run(any_backbone, batch))


def test_original_t5_checkpoints_scale_and_tie_their_output(tmp_path, batch):
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=2, decoder_start_token_id=0)
    torch.manual_seed(0)
    plain = T5ForConditionalGeneration(config).eval()
    plain.save_pretrained(tmp_path)
    loaded = load_backbone(BackboneConfig(str(tmp_path)))
    assert loaded.model.lm_head.weight is loaded.model.shared.weight
    with torch.no_grad():
        expected = plain(input_ids=batch[0].ids, attention_mask=batch[0].mask, labels=batch[1]).logits
    assert torch.equal(run(loaded, batch), expected)


@pytest.mark.parametrize("source", ["size", "folder"])
def test_frozen_weights_are_stored_in_the_configured_type(source, build, batch, tmp_path):
    build("v1.1").model.save_pretrained(tmp_path)
    name = "tiny" if source == "size" else str(tmp_path)
    loaded = load_backbone(BackboneConfig(name, dtype="bfloat16"), vocabulary_size=64)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert run(loaded, batch).isfinite().all()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("./absent", r"there is no folder"),
        ("/nowhere/at/all", r"there is no folder"),
        ("empty", r"empty holds no config\.json"),
        ("nobody/absent-model", r"nobody/absent-model is no folder here and not in the cache, and the .* hub"),
        ("not a name", r"not a name is no folder here"),
    ],
)
def test_a_backbone_that_cannot_be_found_is_named_with_what_to_do(name, named, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    advice = r"Give a Hugging Face folder with config\.json.*tiny.*make pretrain-backbone.*Supported: t5.*llama"
    with pytest.raises(BackboneError, match=rf"cannot load backbone '{name}': {named}.*\n{advice}"):
        load_backbone(BackboneConfig(name))


def test_another_model_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BackboneError, match=r"gpt2.*t5.*llama.*q_proj"):
        load_backbone(BackboneConfig(str(tmp_path)))


def test_a_family_that_transformers_does_not_know_is_refused_with_those_supported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(BackboneError, match=r"supported: t5.*llama(.|\n)*no-such-family"):
        load_backbone(BackboneConfig(str(tmp_path)))


def change_weights(change):
    def apply(path):
        save_file(change(load_file(path)), path, {"format": "pt"})

    return apply


FIRST = "encoder.block.0.layer.0.SelfAttention.q.weight"
BAD_WEIGHTS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"weights of .* are damaged.*get the model"),
    "empty": (lambda path: path.write_bytes(b""), r"weights of .* are damaged"),
    "absent": (lambda path: path.unlink(), r"cannot load backbone .*no file named(.|\n)*Give a Hugging Face folder"),
    "incomplete": (
        change_weights(lambda tensors: {name: tensor for name, tensor in tensors.items() if name != FIRST}),
        rf"does not hold the weights.*{FIRST} is missing",
    ),
    "of another shape": (
        change_weights(lambda tensors: tensors | {FIRST: torch.zeros(3, 32)}),
        rf"does not hold the weights.*{FIRST} is \(3, 32\), not \(16, 32\)",
    ),
}


@pytest.mark.parametrize("damage", BAD_WEIGHTS)
def test_weights_that_are_not_all_there_are_refused_and_never_drawn_anew(backbone, tmp_path, damage):
    backbone.model.save_pretrained(tmp_path)
    change, message = BAD_WEIGHTS[damage]
    change(tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match=message):
        load_backbone(BackboneConfig(str(tmp_path)))


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(BackboneError, match=", ".join(SIZES)):
        t5_config("huge")


@pytest.mark.parametrize(("checkpointing", "passes"), [(False, 1), (True, 2)])
def test_gradient_checkpointing_runs_every_block_twice_and_changes_no_gradient(checkpointing, passes, batch, lora):
    backbone = load_backbone(BackboneConfig("tiny", gradient_checkpointing=checkpointing), vocabulary_size=64)
    weights, calls = lora(backbone, 1, size=0.02), []
    factors = [factor.requires_grad_() for factor in (*weights.a.values(), *weights.b.values())]
    for stack in (backbone.model.encoder, backbone.model.decoder):
        stack.block[1].layer[0].register_forward_hook(lambda *_: calls.append(1))
    loss = backbone(*batch, TaskAdapter(lora=weights), TASK_INDEX).logsumexp(-1).mean()
    found = torch.autograd.grad(loss, factors)
    assert len(calls) == 2 * passes
    plain = load_backbone(BackboneConfig("tiny"), vocabulary_size=64)
    loss = plain(*batch, TaskAdapter(lora=weights), TASK_INDEX).logsumexp(-1).mean()
    assert all(torch.equal(a, b) for a, b in zip(found, torch.autograd.grad(loss, factors), strict=True))
