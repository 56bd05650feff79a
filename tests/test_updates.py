import pytest
import torch
from instructed_models import LORA

from tagi_lightning.lora import LoraConfig
from tagi_lightning.updates import cosines, cross_inner, inner, mean_norms, update_cosine, update_norms


def flat_updates(lora):
    """Returns all updates of each task, formed and laid side by side [T, ...]."""
    return torch.cat([lora.delta(site).flatten(1) for site in lora.a], 1).double()


def test_inner_products_are_those_of_the_formed_updates(backbone, lora):
    left, right = lora(backbone, 20), lora(backbone, 3, seed=1)
    found = cross_inner(left, right, list(left.a))
    assert torch.allclose(found, flat_updates(left) @ flat_updates(right).T, rtol=1e-4, atol=1e-3)
    norms = update_norms(left, backbone.sites(LORA))
    assert torch.allclose(norms.square().sum(1), flat_updates(left).square().sum(1).float(), rtol=1e-4)


def test_an_inner_product_is_no_product_in_16_bits(backbone, lora):
    weights = lora(backbone, 2)
    a, b = next(iter(weights.a.values())), next(iter(weights.b.values()))
    with torch.autocast("cpu", torch.bfloat16):
        found = inner(a, b, a, b)
    assert torch.equal(found, inner(a, b, a, b))
    half = inner(a.bfloat16(), b.bfloat16(), a.bfloat16(), b.bfloat16())
    assert half.dtype == torch.float32
    assert torch.allclose(half, found, rtol=0.02)


def test_the_cosine_of_nothing_is_nothing():
    products, lengths = torch.tensor([[0.0, 0.0], [0.0, 5.0]]), torch.tensor([0.0, 2.0])
    assert cosines(products, lengths, lengths).tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_the_cosine_is_that_of_the_stacked_updates(backbone, lora):
    generated, taught = (lora(backbone, 3, seed=seed).detach(torch.float64) for seed in range(2))
    expected = torch.cosine_similarity(flat_updates(generated), flat_updates(taught)).mean()
    assert torch.allclose(update_cosine(generated, taught), expected, rtol=1e-10)
    assert update_cosine(generated, generated) == pytest.approx(1.0)


def test_norms_are_those_of_the_factors_and_of_the_scaled_update(backbone, lora):
    config = LoraConfig(rank=4, targets=("q", "o"))
    weights, sites = lora(backbone, 2, config), backbone.sites(config)
    found = mean_norms(weights, sites)
    assert set(found) == {"encoder_self", "decoder_self", "decoder_cross"}
    for stack, norms in found.items():
        names = [site.name for site in sites if site.stack == stack]
        for key, matrices in (
            ("a", [weights.a[n] for n in names]),
            ("b", [weights.b[n] for n in names]),
            ("ba", [weights.delta(n) for n in names]),
        ):
            expected = torch.stack([torch.linalg.matrix_norm(matrix) for matrix in matrices]).mean()
            assert norms[key].item() == pytest.approx(expected.item(), rel=1e-4)
