import pytest
import torch
from inspection_tasks import tasks_for
from instructed_models import LORA, build_instructed

from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.inspection import adapters
from tagi_lightning.inspection.adapters import collect, compared_sites, points
from tagi_lightning.lora import LoraBank
from tagi_lightning.model import TagiConfig, TagiModel


def flat_updates(lora):
    """Returns all updates of each task, formed and laid side by side [T, ...]."""
    return torch.cat([lora.delta(site).flatten(1) for site in lora.a], 1).double()


def test_points_lie_as_far_apart_as_what_they_stand_for():
    things = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)).double()
    found, shares = points(things @ things.T)
    assert found.shape == (7, 6)
    assert torch.allclose(torch.cdist(found, found), torch.cdist(things, things))
    assert shares.sum() == pytest.approx(1)
    assert shares.tolist() == sorted(shares.tolist(), reverse=True)


def test_what_is_all_alike_has_one_place():
    found, shares = points(torch.ones(4, 4, dtype=torch.float64))
    assert found.abs().max() < 1e-6
    assert not shares.isnan().any()


@pytest.mark.parametrize("name", ["t5", "t5-lora", "t5-prompt", "llama"])
def test_every_model_that_generates_lora_is_compared_as_it_adapts(name):
    loaded = build_instructed(name)
    tasks = tasks_for(loaded, 5)
    [written] = collect(loaded.model, tasks)
    [batch] = tasks.batches
    expected = flat_updates(loaded.model.adapt(batch.instruction).lora)
    lengths = expected.norm(dim=1)
    assert torch.allclose(written.cosines, expected @ expected.T / lengths / lengths[:, None], atol=1e-4)
    assert torch.allclose(written.norm.double(), lengths, rtol=1e-4)
    assert (written.compared, written.norms.shape) == (len(loaded.model.sites), (5, len(loaded.model.sites)))


def test_a_generated_adapter_is_most_like_the_teacher_that_it_copies():
    loaded = build_instructed("t5-lora")
    model, tasks = loaded.model, tasks_for(loaded, 3)
    lora = model.adapt(tasks.batches[0].instruction).lora
    bank = LoraBank(model.sites, LORA, ["x", "y", "z"])
    with torch.no_grad():
        for stacks, taught in ((bank.a, lora.a), (bank.b, lora.b)):
            for key, stack in bank.groups.stack(taught).items():
                stacks[key].copy_(stack)
    [written] = collect(model, tasks, bank)
    assert written.taught.names == ("x", "y", "z")
    assert torch.allclose(written.taught.cosines, written.cosines, atol=1e-5)
    assert torch.allclose(written.taught.cosines.diagonal(), torch.ones(3).double(), atol=1e-5)


def test_prefixes_are_compared_by_what_is_written_beyond_their_start():
    loaded = build_instructed("t5-lora")
    plain = {"fusion": FusionConfig(enabled=False), "decoder_memory": False}
    model = TagiModel(
        loaded.model.backbone, TagiConfig(LORA, HypernetworkConfig(writes="both", prefix_length=3), **plain)
    )
    tasks = tasks_for(loaded, 4)
    lora, prefix = collect(model.eval(), tasks)
    assert (lora.kind, prefix.kind) == ("lora", "prefix")
    assert len(prefix.places) == 2 * len(model.backbone.prefix_sites)
    # nothing is written before training
    assert prefix.norms.abs().max() == 0
    assert prefix.cosines.abs().max() == lora.cosines.abs().max() == 0
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    _, prefix = collect(model, tasks)
    assert torch.allclose(prefix.inner.diagonal().sqrt().float(), prefix.norm, rtol=1e-5)
    assert torch.allclose(prefix.cosines.diagonal(), torch.ones(4).double())


def test_what_memory_cannot_hold_is_compared_by_some_of_its_sites(backbone, monkeypatch):
    sites = backbone.sites(LORA)
    assert compared_sites(sites, 5, LORA.rank) == [site.name for site in sites]
    size = sum(4 * 5 * LORA.rank * (site.in_features + site.out_features) for site in sites)
    monkeypatch.setattr(adapters, "FACTOR_BYTES", size // 2)
    some = compared_sites(sites, 5, LORA.rank)
    assert len(some) == len(sites) // 2
    assert some == [site.name for site in sites if site.name in some]
    monkeypatch.setattr(adapters, "FACTOR_BYTES", 1)
    assert len(compared_sites(sites, 5, LORA.rank)) == 1
