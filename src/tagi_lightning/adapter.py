"""What an instruction becomes: the value that conditions the backbone, passed as an argument and held by no module.

Shapes: B examples, T tasks, I instruction tokens, d width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from tagi_lightning.data.batch import Tokens
from tagi_lightning.fusion import FusionStates
from tagi_lightning.lora import LoraWeights
from tagi_lightning.prefix import PrefixWeights


def is_grouped(task_index: Tensor, num_tasks: int) -> bool:
    """Tells whether the examples of `task_index` [B] are equal runs, one for each of `num_tasks` tasks in order.

    Of tensors without storage nothing is known, and the answer is no.
    """
    if isinstance(task_index, FakeTensor):
        return False
    run, rest = divmod(len(task_index), num_tasks)
    return not rest and run > 0 and task_index.tolist() == [place // run for place in range(len(task_index))]


@dataclass(frozen=True)
class InstructionStates:
    """Hidden states of the frozen backbone over T instructions, the paper's I.

    Attributes:
        states: Final hidden states [T, I, d].
        mask: 1 for tokens, 0 for padding [T, I].
        keys_values: Keys and values of the instructions in every layer that attends to them, each
            [T, H, I, head size]; empty until a backbone has computed them.
        tokens: The instructions themselves, kept where they are to be read again under their adapters.
    """

    states: Tensor
    mask: Tensor
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()
    tokens: Tokens | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> InstructionStates:
        """Returns a copy with `function` applied to states, keys and values."""
        pairs = tuple((function(keys), function(values)) for keys, values in self.keys_values)
        return replace(self, states=function(self.states), keys_values=pairs)


@dataclass(frozen=True)
class TaskAdapter:
    """Everything T instructions contribute to the backbone; differentiable.

    Attributes:
        lora: Generated LoRA, or None.
        fusion: Keys and values of the encoder fusion, or None.
        memory: Instruction states that the inputs' decoder also attends to, or None.
        prefix: Generated keys and values before the own tokens of every self-attention, or None.
        grouped: Whether the examples at hand stand in T equal runs, one a task in order; see `route`.
    """

    lora: LoraWeights | None = None
    fusion: FusionStates | None = None
    memory: InstructionStates | None = None
    prefix: PrefixWeights | None = None
    grouped: bool = False

    @property
    def num_tasks(self) -> int:
        """T; 0 for an adapter of nothing."""
        if generated := self.lora or self.prefix:
            return generated.num_tasks
        holder = self.fusion or self.memory
        return len(holder.mask) if holder is not None else 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at values
    def route(self, task_index: Tensor | None) -> Self:
        """Returns the same adapter, told whether the examples of `task_index` [B] stand in equal runs, one a task.

        Where they do, adapters and keys are applied run by run and never copied to their examples.

        Raises:
            ValueError: If several tasks come without a task index.
        """
        if not self.num_tasks:
            return self
        if task_index is None and self.num_tasks > 1:
            raise ValueError(f"adapters of {self.num_tasks} tasks were given without task_index")
        return self.in_runs(self.num_tasks == 1 or is_grouped(task_index, self.num_tasks))  # type: ignore[arg-type]

    def in_runs(self, grouped: bool) -> Self:
        """Returns the same adapter for examples that stand in equal runs, one a task in order, or do not."""
        lora = replace(self.lora, grouped=grouped) if self.lora is not None else None
        fusion = replace(self.fusion, grouped=grouped) if self.fusion is not None else None
        return replace(self, lora=lora, fusion=fusion, grouped=grouped)

    def detach(self, dtype: torch.dtype | None = None) -> Self:
        """Returns a copy cut off from the graph, in `dtype` if one is given, without dropout."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype or tensor.dtype)

        return replace(
            self,
            lora=self.lora.detach(dtype) if self.lora is not None else None,
            fusion=self.fusion.map(cut) if self.fusion is not None else None,
            memory=self.memory.map(cut) if self.memory is not None else None,
            prefix=self.prefix.map(cut) if self.prefix is not None else None,
        )


@dataclass(frozen=True)
class PreparedAdapter(TaskAdapter):
    """A cached `TaskAdapter`: detached, and marked with the model that made it.

    Attributes:
        model_digest: Digest of the weights that generated it; a model refuses a cache that another made.
    """

    model_digest: str = ""

    def tensors(self) -> Iterator[Tensor]:
        """Yields every tensor it holds."""
        if self.lora is not None:
            yield from (*self.lora.a.values(), *self.lora.b.values())
        if self.fusion is not None:
            yield from (*self.fusion.keys, *self.fusion.values, self.fusion.mask)
        if self.memory is not None:
            yield from (
                self.memory.states,
                self.memory.mask,
                *(each for pair in self.memory.keys_values for each in pair),
            )
        if self.prefix is not None:
            yield from (*self.prefix.keys.values(), *self.prefix.values.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def select(self, row: int) -> PreparedAdapter:
        """Returns the adapter of task `row` alone, cut to the tokens of its own instruction, as tensors of its own."""
        holder = self.fusion or self.memory
        places = holder.mask[row].nonzero().flatten() if holder is not None else torch.empty(0, dtype=torch.long)

        def cut(tensor: Tensor) -> Tensor:
            return tensor[row : row + 1].index_select(_token_dim(tensor), places)

        lora, fusion, memory, prefix = self.lora, self.fusion, self.memory, self.prefix
        return replace(
            self,
            lora=lora.index(torch.tensor([row], device=lora.device)) if lora is not None else None,
            fusion=replace(fusion.map(cut), mask=cut(fusion.mask)) if fusion is not None else None,
            memory=replace(memory.map(cut), mask=cut(memory.mask)) if memory is not None else None,
            prefix=prefix.map(lambda tensor: tensor[row : row + 1].clone()) if prefix is not None else None,
        )


def join(adapters: Sequence[PreparedAdapter]) -> PreparedAdapter:
    """Returns the adapters of several tasks as one, instructions padded to the longest; they must be of one model."""
    first = adapters[0]
    if len(adapters) == 1:
        return first
    lora, fusion, memory, prefix = first.lora, first.fusion, first.memory, first.prefix
    if lora is not None:
        loras: list[Any] = [each.lora for each in adapters]
        lora = replace(lora, a=_join_sites([each.a for each in loras]), b=_join_sites([each.b for each in loras]))
    if prefix is not None:
        prefixes: list[Any] = [each.prefix for each in adapters]
        prefix = PrefixWeights(
            _join_sites([each.keys for each in prefixes]), _join_sites([each.values for each in prefixes])
        )
    if fusion is not None:
        fusions: list[Any] = [each.fusion for each in adapters]
        fusion = replace(
            fusion,
            keys=tuple(map(_join_tokens, zip(*(each.keys for each in fusions), strict=True))),
            values=tuple(map(_join_tokens, zip(*(each.values for each in fusions), strict=True))),
            mask=_join_tokens([each.mask for each in fusions]),
        )
    if memory is not None:
        memories: list[Any] = [each.memory for each in adapters]
        layers = zip(*(each.keys_values for each in memories), strict=True)
        memory = replace(
            memory,
            states=_join_tokens([each.states for each in memories]),
            mask=_join_tokens([each.mask for each in memories]),
            keys_values=tuple(
                (_join_tokens([keys for keys, _ in pairs]), _join_tokens([values for _, values in pairs]))
                for pairs in layers
            ),
        )
    return replace(first, lora=lora, fusion=fusion, memory=memory, prefix=prefix)


def _join_sites(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {site: torch.cat([part[site] for part in parts]) for site in parts[0]}


def _token_dim(tensor: Tensor) -> int:
    return 2 if tensor.dim() == 4 else 1


def _join_tokens(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenates tensors of single tasks whose numbers of tokens differ, padding with zeros."""
    dim = _token_dim(tensors[0])
    longest = max(tensor.shape[dim] for tensor in tensors)
    behind = tensors[0].dim() - 1 - dim
    return torch.cat([F.pad(each, (0, 0) * behind + (0, longest - each.shape[dim])) for each in tensors])
