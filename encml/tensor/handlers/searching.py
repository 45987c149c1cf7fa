"""How many of a sequence are below a value, and whether a value is among some: one comparison for every pair."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.public import Operand
from encml.tensor.shared import SharedTensor


def searchsorted(
    sequence: Tensor,
    x: Operand,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """searchsorted: how many of the sequence are < x, or <= x for ``right``, as a secret int64."""
    if sorter is not None:
        sequence = torch.take_along_dim(sequence, sorter, -1)
    if out_int32:
        raise UnsupportedOperation("searchsorted, bucketize: a secret count is an int64; leave out_int32 out")
    apart = x.unsqueeze(-1) if isinstance(x, Tensor) else x
    within = sequence.unsqueeze(-2) if sequence.ndim > 1 else sequence
    return torch.sum(within <= apart if right or side == "right" else within < apart, -1)


def bucketize(x: Operand, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """bucketize: see ``searchsorted``."""
    return searchsorted(boundaries, x, out_int32=out_int32, right=right)


def isin(elements: Operand, among: Operand, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """isin.Tensor_Tensor, isin.Tensor_Scalar, isin.Scalar_Tensor"""
    one = elements.unsqueeze(-1) if isinstance(elements, Tensor) else torch.as_tensor(elements)
    found = torch.any(torch.eq(one, among.reshape(-1) if isinstance(among, Tensor) else among), -1)
    return torch.logical_not(found) if invert else found


def histc(x: SharedTensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """histc: how many are in each bin, by a comparison with each edge. The edges are secret if they are not given."""
    ends: tuple[Operand, Operand] = (min, max) if min != max else (torch.amin(x), torch.amax(x))
    part = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[:-1]
    edges = ends[0] * (1 - part) + ends[1] * part
    from_here = torch.cat([torch.ge(x.reshape(-1, 1), edges), torch.gt(x.reshape(-1, 1), ends[1])], 1).sum(0)
    return (from_here[:-1] - from_here[1:]).to(x.dtype)
