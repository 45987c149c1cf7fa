"""A device that is not there: tensors with real values that say they lie elsewhere, and behave as if they did.

What a graphics processor lacks or refuses is refused here, too: int64 matrices are not multiplied, and tensors of two
devices do not meet in one operation, but for numbers of no dimension and places to index at. What lies there is never
read as an array; only copies to the CPU are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy", 0)
"""A device that torch knows by name but does not ask to be there."""

_ATEN = torch.ops.aten
_NO_INTEGERS = {
    _ATEN.mm, _ATEN.bmm, _ATEN.addmm, _ATEN.baddbmm, _ATEN.addbmm, _ATEN.mv, _ATEN.addmv, _ATEN.dot, _ATEN.convolution,
}  # fmt: skip
_INDEXING = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_}


class There(Tensor):
    """A tensor that says it is on ``DEVICE``; ``inner`` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        tensor: Any = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        tensor.inner = inner
        result: There = tensor
        return result

    def __getitem__(self, index: Any) -> Tensor:
        result: Tensor = super().__getitem__(_places(index))
        return result

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_places(index), value)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There(shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _worked_out(func, args, dict(kwargs or {}))


class AnotherDevice(TorchDispatchMode):
    """While it is entered, tensors can be moved to ``DEVICE`` and made there. ``products`` counts those of matrices."""

    products = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if any(not issubclass(kind, There) and kind not in (Tensor, torch.nn.Parameter) for kind in types):
            return NotImplemented
        here = not any(issubclass(kind, There) for kind in types)
        if here and torch.device(kwargs.get("device") or "cpu").type != DEVICE.type:
            return func(*args, **kwargs)
        self.products += func.overloadpacket in _NO_INTEGERS
        return _worked_out(func, args, kwargs)


def _places(index: Any) -> Any:
    """Lists of places as tensors, which torch makes of them where no subclass can see it."""
    if isinstance(index, tuple):
        return tuple(map(_places, index))
    return torch.tensor(index, dtype=torch.int64) if isinstance(index, list) else index


def _worked_out(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    device, packet = kwargs.pop("device", None), func.overloadpacket
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    moves = packet in (_ATEN._to_copy, _ATEN.copy_)
    if there and not moves:
        operands = tree_leaves((args[0], args[2:])) if packet in _INDEXING else tensors
        if any(t.ndim for t in operands if isinstance(t, Tensor) and not isinstance(t, There)):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {DEVICE} and cpu")
        if packet in _NO_INTEGERS and not there[0].is_floating_point():
            raise RuntimeError(f"{func}: not implemented for integers on {DEVICE}")
    goes = bool(there) if device is None else torch.device(device).type == DEVICE.type
    if device is not None and not goes:
        kwargs["device"] = device
    elif device is not None and not moves:
        kwargs["device"] = "cpu"
    args, kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, There) else leaf, (args, kwargs))
    result = func(*args, **kwargs)
    if packet is _ATEN.copy_:
        return tensors[0]
    # What is written in place, or to ``out``, comes back as the tensor it was.
    known = {id(tensor.inner): tensor for tensor in there}
    return tree_map(
        lambda x: (known[id(x)] if id(x) in known else There(x)) if goes and isinstance(x, Tensor) else x, result
    )
