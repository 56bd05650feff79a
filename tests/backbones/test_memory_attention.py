import pytest
import torch

from tagi_lightning.backbones.memory_attention import additive as to_add
from tagi_lightning.backbones.memory_attention import attend, join_mask

TASKS, RUN, HEADS, INSTRUCTION, OWN, SIZE = 2, 3, 4, 5, 6, 8


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("queries", [1, 3])
def test_it_is_softmax_attention_to_the_concatenation(queries, groups, masked, additive, distance):
    batch = TASKS * RUN
    query = draw(batch, HEADS, queries, SIZE, seed=0)
    memory = draw(TASKS, groups, INSTRUCTION, SIZE, seed=1), draw(TASKS, groups, INSTRUCTION, SIZE, seed=2)
    own = draw(batch, groups, OWN, SIZE, seed=3), draw(batch, groups, OWN, SIZE, seed=4)
    memory_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    own_mask = None
    if masked:
        own_mask = torch.arange(OWN)[None, :] <= torch.arange(batch)[:, None] + 1
        own_mask = own_mask[:, None, None].expand(-1, -1, queries, -1)
    if masked and additive:
        own_mask = torch.zeros(own_mask.shape, dtype=torch.float64).masked_fill(~own_mask, torch.finfo().min)
    index = torch.arange(TASKS).repeat_interleave(RUN)
    mask = join_mask(memory_mask[index], own_mask, OWN)
    found = attend(query, memory, own, to_add(mask, query.dtype), scaling=0.3)

    keys, values = (torch.cat([memory[part][index], own[part]], dim=2) for part in (0, 1))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=groups != HEADS
    )
    # the softmax itself runs in float32, as it does for any type
    assert distance(found, expected) < 1e-6
