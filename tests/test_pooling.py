import torch

from tagi_lightning.pooling import Pooling


def test_mean_pooling_averages_tokens_and_ignores_padding(states, mask, distance):
    pooled = Pooling(32, "mean")(states.masked_fill(mask[..., None] == 0, 1e6), mask)
    expected = torch.stack([states[0].mean(0), states[1, :2].mean(0), states[2, :4].mean(0)])
    assert distance(pooled, expected) < 1e-6


def test_attention_pooling_starts_as_the_mean_and_ignores_padding(states, mask, distance):
    pooling = Pooling(32, "attention")
    assert distance(pooling(states, mask), Pooling(32, "mean")(states, mask)) < 1e-6
    torch.nn.init.normal_(pooling.query)
    weights = (states[1, :2] @ pooling.query / 32**0.5).softmax(0)
    poisoned = states.masked_fill(mask[..., None] == 0, 1e3)
    assert distance(pooling(poisoned, mask)[1], (weights[:, None] * states[1, :2]).sum(0)) < 1e-5


def test_the_last_tokens_state_is_that_of_the_last_that_is_no_padding(states, mask):
    assert torch.equal(Pooling(32, "last")(states, mask), torch.stack([states[0, 5], states[1, 1], states[2, 3]]))


def test_mean_and_attention_stand_side_by_side(states, mask):
    both = Pooling(32, "mean+attention")
    torch.nn.init.normal_(both.query, generator=torch.Generator().manual_seed(1))
    attention = Pooling(32, "attention")
    attention.load_state_dict(both.state_dict())
    pooled = both(states, mask)
    assert pooled.shape == (3, both.width) == (3, 64)
    assert torch.equal(pooled, torch.cat([Pooling(32, "mean")(states, mask), attention(states, mask)], dim=-1))
