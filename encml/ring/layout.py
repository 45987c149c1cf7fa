"""Memory layout behind a leading axis: results laid out as the plain operation would lay out its own.

PyTorch's element-wise results keep the order of dimensions in memory of what they are made from (a transposed matrix
gives a transposed matrix), and programs rely on it where they call ``view``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def memory_order(terms: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``terms`` (n, *shape) with shape's dimensions in the order of memory, and what puts a result's back in place."""
    if terms.is_contiguous():
        return terms, _same
    order = _order(terms[0])
    return terms.permute(0, *(d + 1 for d in order)), lambda result: _restore(result, order)


def in_memory_order(f: Callable[[Tensor], Tensor], terms: Tensor) -> Tensor:
    """f(terms) for an element-wise f, laid out as ``terms`` are (but without gaps), whatever layout f gives."""
    ordered, restore = memory_order(terms)
    return restore(f(ordered))


def stack(parts: Sequence[Tensor]) -> Tensor:
    """torch.stack along a new leading axis that keeps the layout of the parts, which is the same for all."""
    first = parts[0]
    if first.is_contiguous():
        return torch.stack(list(parts))
    order = _order(first)
    return _restore(torch.stack([part.permute(order) for part in parts]), order)


def _order(x: Tensor) -> list[int]:
    """The dimensions of x, outermost in memory first, as torch orders those of a new tensor made like it."""
    strides = torch.empty_like(x, device="meta").stride()
    return sorted(range(x.ndim), key=lambda d: -strides[d])


def _restore(terms: Tensor, order: Sequence[int]) -> Tensor:
    return terms.permute(0, *(order.index(d) + 1 for d in range(len(order))))


def _same(result: Tensor) -> Tensor:
    return result
