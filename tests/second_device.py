"""A second device without hardware: its tensors compute on the CPU and refuse to meet CPU tensors, as CUDA's do.

`torch.device("second")` is what tests take. Factories, `.to`, `Module.to`, autograd, optimizers and Lightning work on
it. What CUDA raises on raises here: operands on two devices, a generator of another device, `numpy()`. What CUDA allows
is allowed: a CPU scalar (no dimension) in elementwise operations, CPU indices into a tensor, copies from one to the
other. Kernels, streams, autocast and memory are the CPU's or absent; only a GPU shows what goes wrong there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"

APPLY = nn.Module._apply
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy, aten._copy_from}
INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
TAKE_SCALARS = INDEXED | {aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_}
KERNELS = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm", "randperm.generator")
"""Factories that begin with an empty tensor and resize it, which a `SecondTensor` cannot be."""
BARE = ("copy_", "_local_scalar_dense")
"""Operations that `torch.tensor` calls without asking the subclass."""


class SecondTensor(torch.Tensor):
    """A tensor of the second device around the one that holds its values."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: Tensor) -> SecondTensor:
        """Wraps a CPU tensor."""
        place = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        tensor: SecondTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.shape, dtype=raw.dtype, device=f"{NAME}:0", **place
        )
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Computes one operation; in inference mode also those that autograd would have taken apart before."""
        if op._can_decompose():
            return op.decompose(*args, **(kwargs or {}))
        return compute(op, *args, **(kwargs or {}))

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The tensor without its history; assigned, the values themselves."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, SecondTensor), f"a tensor of {other.device} cannot take the place of one of {NAME}"
        self.raw = other.raw

    def data_ptr(self) -> int:
        """Address of the values."""
        return self.raw.data_ptr()

    def tolist(self) -> Any:
        """Values as plain types, which torch refuses to subclasses."""
        return self.raw.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> SecondTensor:
        """Returns a leaf of its own, a parameter of a parameter."""
        if id(self) not in memo:
            copied = SecondTensor(self.raw.detach().clone())
            copied.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "raw"}
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Is saved as a tensor of the CPU, where checkpoints are loaded to."""
        return self.raw.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.raw!r} on {NAME}"


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs one operation of which an operand or the result is on the second device.

    Raises:
        RuntimeError: If CUDA would not have it.
    """
    leaves = tree_leaves((args, kwargs))
    own = {id(leaf.raw): leaf for leaf in leaves if isinstance(leaf, SecondTensor)}
    if own:
        check_operands(op, args, kwargs)
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    stays = torch.device(asked).type == NAME if asked is not None else bool(own)
    if op.overloadpacket is aten.copy_:  # into a CPU tensor
        stays = isinstance(args[0], SecondTensor)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or not stays:
            return value
        return own[id(value)] if id(value) in own else SecondTensor(value)

    with torch.inference_mode(False):  # a wrapper made in it could not be a view of one made outside
        return tree_map(wrapped, op(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs)))


def unwrapped(value: Any) -> Any:
    """Returns the CPU tensor in a `SecondTensor`, and anything else as it is."""
    return value.raw if isinstance(value, SecondTensor) else value


def check_operands(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuses what CUDA refuses of an operation with an operand of the device.

    Raises:
        RuntimeError: If operands or their generator are on two devices.
    """
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' in {op}")
    kind, operands = op.overloadpacket, [args, kwargs]
    if kind in COPIES:
        return
    if kind in INDEXED and isinstance(args[0], SecondTensor):
        operands = [args[0], args[2:]]  # CPU indices into a tensor of the device are fine
    scalars = kind in TAKE_SCALARS or torch.Tag.pointwise in op.tags
    written = args[0] if op._schema.is_mutable and args else None
    for place, value in enumerate(tree_leaves(operands)):
        if not isinstance(value, Tensor) or isinstance(value, SecondTensor):
            continue
        if value.dim() or not scalars or value is written:
            shape = tuple(value.shape)
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {NAME}:0 and {value.device}: "
                f"tensor number {place} {shape} of {op}"
            )


class _Backend(_DummyBackendModule):
    """What torch asks of a device: here, that autocast knows it."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Returns the types that autocast may compute in."""
        return [torch.bfloat16]


class SecondAccelerator(CPUAccelerator):
    """What Lightning asks of an accelerator."""

    @staticmethod
    def name() -> str:
        """Its name in Lightning."""
        return NAME

    def setup_device(self, device: torch.device) -> None:
        """Takes any device."""


class SecondStrategy(SingleDeviceStrategy):
    """Trains on the second device: `--trainer.accelerator=second --trainer.strategy=second`."""

    def __init__(self) -> None:
        """Takes the device."""
        super().__init__(device=torch.device(NAME, 0))


@functools.cache
def register() -> list[torch.library.Library]:
    """Makes torch know the device, for the rest of the process; returns what must be kept alive."""
    # autograd starts a thread for each device it knows at its first backward pass, and then no fork of ours can use it
    torch.ones((), requires_grad=True).backward()
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    AcceleratorRegistry.register(NAME, SecondAccelerator)
    StrategyRegistry.register(NAME, SecondStrategy)
    every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(compute, "PrivateUse1")
    for name in (*KERNELS, *BARE):
        packet, _, overload = name.partition(".")
        op = getattr(getattr(aten, packet), overload or "default")
        own.impl(name, functools.partial(compute, op), "PrivateUse1")
    return [every, own]


def swap(one: Tensor, other: Tensor) -> None:
    """Exchanges what two tensors are, as torch does, also where a fake tensor still remembers one of them."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)  # type: ignore[attr-defined]


def move(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Moves a module as `Module._apply` does, into the parameter objects that it has, as between CPU and CUDA."""
    torch.__future__.set_swap_module_params_on_conversion(True)  # of loading state, too, which is to be as ever
    try:
        return APPLY(module, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Gives the device for a `with` block, in which gradients are computed in the calling thread."""
    register()
    with (
        torch.autograd.set_multithreading_enabled(False),
        patch("torch.utils.swap_tensors", swap),
        patch.object(nn.Module, "_apply", move),
    ):
        yield torch.device(NAME)
