"""The operators of PyTorch's own database and their sample calls, moved onto the grid of fixed point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from encml.errors import ConfigError

try:
    from torch.testing._internal.common_methods_invocations import op_db
except ModuleNotFoundError as error:
    raise ConfigError(
        f"PyTorch's database of operators needs the package {error.name}: pip install 'encml[ops]'"
    ) from error

# PyTorch's test tools freeze its global flags, which Opacus, say, sets; what runs after this is no test of PyTorch's.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

DTYPE = torch.float64
"""In which the database gives its samples: the logical dtype of the secrets, and that of the reference."""

LARGEST = 64.0
"""Samples are clipped to this magnitude: products of a few of them stay within fixed point's range."""
SMALLEST = 2.0**-3
"""Samples other than 0 have at least this magnitude: their reciprocals and powers stay within range, too."""
_ELEMENTS = 1500
_LOOKED_AT = 300


@dataclass(frozen=True, slots=True)
class Call:
    """One sample call: positional and keyword arguments, tensors in them on the grid."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def leaves(self) -> list[Any]:
        """All arguments, those in lists too."""
        return pytree.tree_leaves((self.args, self.kwargs))

    def map(self, f: Callable[[int, Any], Any]) -> Call:
        """The same call with every leaf i replaced by f(i, leaf)."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        args, kwargs = pytree.tree_unflatten([f(i, leaf) for i, leaf in enumerate(leaves)], spec)
        return Call(args, kwargs)


def operators() -> list[Any]:
    """Every operator of the database that takes floats, by name."""
    return sorted((op for op in op_db if DTYPE in op.dtypes), key=lambda op: str(op.full_name))


def calls(op: Any, fraction_bits: int, at_most: int) -> list[Call]:
    """Up to ``at_most`` sample calls of an operator, spread over all that are dense and small; or the smallest one."""
    dense = list(islice(_dense(op), _LOOKED_AT))
    small = [call for call in dense if _size(call) <= _ELEMENTS] or sorted(dense, key=_size)[:1]
    step = max(1.0, len(small) / at_most)
    chosen = (small[int(i * step)] for i in range(min(len(small), at_most)))
    return [
        call.map(lambda _, leaf: _on_grid(leaf, fraction_bits) if isinstance(leaf, Tensor) else leaf) for call in chosen
    ]


def _dense(op: Any) -> Iterator[Call]:
    for sample in op.sample_inputs("cpu", DTYPE, requires_grad=bool(op.supports_autograd)):
        call = Call((sample.input, *sample.args), dict(sample.kwargs))
        tensors = [leaf for leaf in call.leaves() if isinstance(leaf, Tensor)]
        if all(x.layout == torch.strided and not x.is_complex() and not x.is_quantized for x in tensors):
            yield call


def _size(call: Call) -> int:
    return sum(leaf.numel() for leaf in call.leaves() if isinstance(leaf, Tensor))


def _on_grid(x: Tensor, fraction_bits: int) -> Tensor:
    """x as multiples of 2^-f of a magnitude that fixed point can compute with; integers and bools as they are."""
    plain = x.detach()
    if not plain.is_floating_point():
        return plain.clone(memory_format=torch.preserve_format)
    step = math.ldexp(1.0, -fraction_bits)
    finite = plain.nan_to_num(0.0, LARGEST, -LARGEST)
    moved = torch.where((finite.abs() < SMALLEST) & (finite != 0), torch.sign(finite) * SMALLEST, finite)
    moved = moved.clamp(-LARGEST, LARGEST).div(step).round().mul(step)
    # The layout of the sample is a part of it.
    result = torch.empty_like(plain, memory_format=torch.preserve_format).copy_(moved)
    return result.requires_grad_(x.requires_grad)
