from dataclasses import replace

import pytest
import torch

from tagi_lightning.backbones import build_backbone
from tagi_lightning.backbones.loading import t5_config
from tagi_lightning.generators import PaperGenerator, SharedGenerator
from tagi_lightning.hypernetwork import Hypernetwork, HypernetworkConfig
from tagi_lightning.lora import LoraBank, LoraConfig, initial_a
from tagi_lightning.losses import alignment_loss

LORA = LoraConfig(rank=4)
POOLINGS = ("mean", "last", "attention", "mean+attention")
KINDS = [*((generator, pooling) for generator in ("paper", "shared") for pooling in POOLINGS), ("attention", "mean")]


def make(backbone, generator="shared", pooling="mean", moved=True, lora=LORA, **settings):
    torch.manual_seed(0)
    config = HypernetworkConfig(generator=generator, pooling=pooling, **settings)
    hypernetwork = Hypernetwork(backbone.sites(lora), backbone.width, config, lora)
    if moved:
        with torch.no_grad():
            for parameter in hypernetwork.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return hypernetwork.eval()


@pytest.mark.parametrize("generator", ["paper", "shared", "attention", "constant"])
@pytest.mark.parametrize("targets", [("q", "v"), ("k", "o"), ("q", "k", "v", "o"), ("o",)])
def test_every_site_gets_factors_of_its_shape(any_backbone, states, mask, generator, targets):
    lora = replace(LORA, targets=targets)
    weights = make(any_backbone, generator, lora=lora)(states, mask).lora
    sites = any_backbone.sites(lora)
    assert list(weights.a) == [site.name for site in sites]
    for site in sites:
        assert weights.a[site.name].shape == (3, 4, site.in_features)
        assert weights.b[site.name].shape == (3, site.out_features, 4)


@pytest.mark.parametrize(("generator", "pooling"), KINDS)
def test_a_fresh_generator_emits_the_banks_own_start(backbone, states, mask, generator, pooling):
    weights = make(backbone, generator, pooling, moved=False)(states, mask).lora
    taught = LoraBank(backbone.sites(LORA), LORA, ["one"])()
    for site in backbone.sites(LORA):
        assert torch.equal(weights.a[site.name], initial_a(site, LORA).expand(3, -1, -1))
        assert torch.equal(weights.a[site.name][:1], taught.a[site.name])
        assert weights.b[site.name].abs().max() == 0


@pytest.mark.parametrize(("generator", "pooling"), KINDS)
def test_an_adapter_depends_neither_on_its_batch_nor_on_padding(backbone, states, mask, generator, pooling, distance):
    hypernetwork = make(backbone, generator, pooling)
    together = hypernetwork(states.masked_fill(mask[..., None] == 0, 50.0), mask).lora
    for task in range(3):
        length = int(mask[task].sum())
        alone = hypernetwork(states[task : task + 1, :length], mask[task : task + 1, :length]).lora
        for site in alone.a:
            assert distance(together.a[site][task], alone.a[site][0]) < 1e-5
            assert distance(together.b[site][task], alone.b[site][0]) < 1e-5


@pytest.mark.parametrize("generator", ["paper", "shared", "attention"])
def test_sites_of_one_shape_get_different_updates(backbone, states, mask, generator):
    weights = make(backbone, generator)(states, mask).lora
    sites = backbone.sites(LORA)
    updates = [weights.b[site.name][0] for site in sites]
    assert all(not torch.allclose(updates[0], other) for other in updates[1:])


def test_a_constant_generator_gives_every_instruction_one_adapter_and_starts_at_the_banks(backbone, states, mask):
    moved = make(backbone, "constant")(states, mask).lora
    fresh = make(backbone, "constant", moved=False)(states, mask).lora
    for site in backbone.sites(LORA):
        assert torch.equal(fresh.a[site.name], initial_a(site, LORA).expand(3, -1, -1))
        assert moved.delta(site.name).abs().max() > 0
        assert torch.equal(moved.delta(site.name), moved.delta(site.name)[:1].expand(3, -1, -1))


def test_a0_is_neither_saved_nor_trained(backbone):
    hypernetwork = make(backbone)
    assert not any(name.startswith("a0") for name in hypernetwork.state_dict())
    assert not any(name.startswith("a0") for name, _ in hypernetwork.named_parameters())


@pytest.mark.parametrize("generator", ["paper", "shared", "attention"])
def test_dropout_acts_in_training_mode_only(backbone, states, mask, generator):
    hypernetwork = make(backbone, generator, dropout=0.5)
    site = backbone.sites(LORA)[0].name
    assert torch.equal(hypernetwork(states, mask).lora.b[site], hypernetwork(states, mask).lora.b[site])
    hypernetwork.train()
    assert not torch.equal(hypernetwork(states, mask).lora.b[site], hypernetwork(states, mask).lora.b[site])


@pytest.mark.parametrize(("size", "millions"), [("base", 113.2), ("xl", 604.0)])
def test_eq_2_costs_what_the_design_says_where_the_shared_generator_stays_small(size, millions):
    """113 M and 604 M are the output matrices of the 3 L networks; their biases and inputs add 3 %."""
    lora = LoraConfig(rank=32)
    with torch.device("meta"):
        backbone = build_backbone(t5_config(size), size)
        sites = backbone.sites(lora)
        paper = PaperGenerator(sites, backbone.width, HypernetworkConfig(hidden=64), lora.rank)
        shared = SharedGenerator(sites, backbone.width, HypernetworkConfig(hidden=64), lora.rank)
    assert sum(mlp[-1].weight.numel() for mlp in paper.mlps) / 1e6 == pytest.approx(millions, rel=1e-3)
    assert sum(p.numel() for p in paper.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)
    shared_millions = sum(p.numel() for p in shared.parameters()) / 1e6
    assert shared_millions == pytest.approx({"base": 3.2, "xl": 8.8}[size], rel=0.02)


@pytest.mark.parametrize("generator", ["paper", "shared", "attention"])
def test_alignment_at_its_optimum_gives_the_teachers_updates(backbone, states, mask, generator):
    """Three tasks, three random teachers that went as far from A_0 as training goes; eq. 4 alone for 600 steps."""
    bank = LoraBank(backbone.sites(LORA), LORA, ["x", "y", "z"])
    draw = torch.Generator().manual_seed(1)
    for factor, size in [(factor, 0.02) for factor in bank.a.values()] + [(factor, 0.1) for factor in bank.b.values()]:
        factor.data += size * torch.randn(factor.shape, generator=draw)
    taught = bank().detach()
    hypernetwork = make(backbone, generator, moved=False)
    optimizer = torch.optim.Adam(hypernetwork.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=600)
    for _ in range(600):
        optimizer.zero_grad()
        alignment_loss(hypernetwork(states, mask).lora, taught, scale=1e4).mean().backward()
        optimizer.step()
        schedule.step()
    generated = hypernetwork(states, mask).lora.detach()
    for site in taught.a:
        cosine = torch.cosine_similarity(generated.delta(site).flatten(1), taught.delta(site).flatten(1))
        assert cosine.min() > 0.999
        length = generated.delta(site).flatten(1).norm(dim=1) / taught.delta(site).flatten(1).norm(dim=1)
        assert torch.allclose(length, torch.ones(3), atol=0.01)


@pytest.mark.parametrize("generator", ["shared", "attention"])
def test_standardised_states_do_not_move_the_adapter_by_what_all_instructions_share(
    backbone, states, mask, generator, distance
):
    plain = make(backbone, generator, standardize=True)
    shifted = make(backbone, generator, standardize=True)
    assert plain.to_measure
    pooled = states.mean(1)
    plain.measure(pooled)
    shifted.measure(pooled + 7)
    assert not plain.to_measure
    first, second = plain(states, mask).lora, shifted(states + 7, mask).lora
    for site in first.a:
        # adding 7 to states around 1 costs three bits of their float32
        assert distance(first.b[site], second.b[site]) < 1e-4


def test_states_are_measured_over_at_least_two_instructions(backbone):
    with pytest.raises(ValueError, match="at least two"):
        make(backbone, standardize=True).measure(torch.zeros(1, backbone.width))


def test_the_attention_generators_width_is_a_multiple_of_its_heads():
    with pytest.raises(ValueError, match="hidden=30 must be a multiple"):
        HypernetworkConfig(generator="attention", hidden=30)


def test_what_reads_no_instruction_measures_none(backbone):
    constant = make(backbone, "constant", standardize=True)
    assert not constant.to_measure
    assert not any("states" in name for name in constant.state_dict())
