"""Attention of the encoder fusion: from the tokens of an input to those of its task's instruction (paper eq. 1).

Shapes: B examples, one a task; S input tokens, I instruction tokens, L blocks, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tagi_lightning.data.batch import TaskBatch
from tagi_lightning.fusion import FusionLayer, FusionStates
from tagi_lightning.model import TagiModel


@dataclass(frozen=True)
class AttentionMap:
    """Where one input looks in its instruction.

    Attributes:
        task: Name of the task.
        input: Tokens of the input.
        instruction: Tokens of the instruction.
        weights: Mean over the heads [L, S, I]; each row sums to 1.
    """

    task: str
    input: tuple[str, ...]
    instruction: tuple[str, ...]
    weights: Tensor


@dataclass(frozen=True)
class RecordedFusion(FusionStates):
    """Fusion that notes its attention weights [B, S, I], block by block."""

    weights: list[Tensor] = field(default_factory=list)

    def fuse(self, block: int, hidden: Tensor, task_index: Tensor) -> Tensor:
        """Returns F_l of encoder block `block` for hidden states S_l [B, S, d]."""
        layer = self.layers[block]
        assert isinstance(layer, FusionLayer)
        self.weights.append(fusion_weights(layer, hidden, self.keys[block][task_index], self.mask[task_index]).mean(1))
        return super().fuse(block, hidden, task_index)


def fusion_weights(layer: FusionLayer, hidden: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Returns the attention weights of one fusion layer [B, H, S, I].

    Args:
        layer: The layer.
        hidden: S_l [B, S, d].
        keys: Keys of each example's instruction [B, H, I, width / H].
        mask: 1 for instruction tokens, 0 for padding [B, I].
    """
    hidden = hidden.to(layer.q.weight.dtype)
    query = layer.q(layer.norm(hidden) if layer.pre else hidden).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    scores = query @ keys.to(query.dtype).mT / query.shape[-1] ** 0.5
    weights: Tensor = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
    return weights


@torch.no_grad()
def attention_maps(
    model: TagiModel, batch: TaskBatch, tokenizer: PreTrainedTokenizerFast, examples: Sequence[int]
) -> list[AttentionMap]:
    """Returns where the inputs of some examples of a batch look in their instructions.

    Args:
        model: A model with fusion.
        batch: The examples.
        tokenizer: Gives the tokens' texts.
        examples: Which of them.
    """
    batch = batch.to(model.backbone.model.device)
    adapter, inputs = model.adapt(model.conditions(batch)), model.inputs(batch)
    fusion = adapter.fusion
    assert fusion is not None
    recorded = RecordedFusion(**{each.name: getattr(fusion, each.name) for each in fields(fusion)})
    model(inputs, batch.labels, replace(adapter, fusion=recorded), batch.task_index)
    weights = torch.stack(recorded.weights, 1).float().cpu()
    found = []
    for example in examples:
        task = int(batch.task_index[example])
        own, instruction = inputs.mask[example].bool().cpu(), batch.instruction.mask[task].bool().cpu()
        found.append(
            AttentionMap(
                batch.tasks[task],
                texts(tokenizer, inputs.ids[example].cpu()[own]),
                texts(tokenizer, batch.instruction.ids[task].cpu()[instruction]),
                weights[example][:, own][..., instruction],
            )
        )
    return found


def texts(tokenizer: PreTrainedTokenizerFast, ids: Tensor) -> tuple[str, ...]:
    """Returns the text of each token; of white space, the vocabulary's own way to write it."""
    words = [str(tokenizer.decode([token])).strip() for token in ids.tolist()]
    return tuple(word or name for word, name in zip(words, tokenizer.convert_ids_to_tokens(ids.tolist()), strict=True))
