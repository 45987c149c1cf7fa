"""Memory layout behind a leading axis: results laid out as the plain operation would lay out its own.

PyTorch's element-wise results keep the order of dimensions in memory of what they are made from (a transposed matrix
gives a transposed matrix), and programs rely on it where they call ``view``. ``terms`` are (n, *shape) throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def memory_order(terms: Tensor) -> tuple[int, ...]:
    """shape's dimensions, outermost in memory first, as torch orders those of a new tensor made like these."""
    dims = range(terms.ndim - 1)
    if terms.is_contiguous():
        return tuple(dims)
    strides = torch.empty_like(terms[0], device="meta").stride()
    return tuple(sorted(dims, key=lambda d: -strides[d]))


def to_order(terms: Tensor, order: Sequence[int]) -> Tensor:
    """A view of ``terms`` with shape's dimensions in the given order."""
    return terms.permute(0, *(d + 1 for d in order))


def from_order(terms: Tensor, order: Sequence[int]) -> Tensor:
    """The inverse of ``to_order``."""
    return terms.permute(0, *(order.index(d) + 1 for d in range(len(order))))


def in_memory_order(f: Callable[[Tensor], Tensor], terms: Tensor) -> Tensor:
    """f(terms) for an element-wise f, laid out as ``terms`` are (but without gaps), whatever layout f gives."""
    order = memory_order(terms)
    return from_order(f(to_order(terms, order)), order)


def room(count: int, part: Tensor) -> Tensor:
    """Memory for ``count`` tensors laid out as ``part`` is (but without gaps), along a new leading axis."""
    order = memory_order(part[None])
    return from_order(part.new_empty((count, *(part.shape[d] for d in order))), order)


def stack(parts: Sequence[Tensor]) -> Tensor:
    """torch.stack along a new leading axis that keeps the layout of the parts, which is the same for all."""
    return torch.stack(list(parts), out=room(len(parts), parts[0]))
