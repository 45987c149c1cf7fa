"""How many of a sequence are below a value, and whether a value is among some: one comparison for every pair."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.public import Operand


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
