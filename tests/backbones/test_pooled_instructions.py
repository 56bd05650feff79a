"""Instructions compared by a decoder-only model, which puts BOS in front of them."""

import pytest
import torch

from tagi_lightning.evaluation.controls import pool_instructions


@pytest.mark.parametrize("bos_id", [None, 2])
def test_pooling_takes_an_instructions_own_tokens_and_no_bos(build_causal, tokens, bos_id):
    backbone = build_causal(bos_id=bos_id)
    instruction = tokens([5, 9])
    states = backbone.read(instruction).states
    front = 0 if bos_id is None else 1
    assert states.shape[1] == 9 + front
    expected = torch.stack([states[0, front : front + 5].mean(0), states[1, front:].mean(0)])
    assert torch.allclose(pool_instructions(backbone, instruction), expected, atol=1e-6)
