"""Matrix products over Z_2^64.

torch multiplies int64 matrices row by row of the result, at the machine's rate where rows are long and adjacent. A
linear layer multiplies by a transposed weight, x @ w^T: there one dot product of rows after the other is up to 20 times
faster, most of all for few rows of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encml.ring.kernels import loops

_NARROW = 16
"""Results with fewer columns are made of dot products as well: torch's rows would be too short."""


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """torch.matmul of int64 tensors of any number of dimensions."""
    if x.ndim != 2 or y.ndim not in (1, 2) or x.shape[1] != y.shape[0] or not x.numel() or not y.numel():
        return torch.matmul(x, y)
    columns = y[None] if y.ndim == 1 else y.t()
    if len(columns) >= _NARROW and columns.stride(1) != 1:
        return torch.matmul(x, y)
    total = x.new_zeros(len(x), len(columns))
    loops.add_dots(*loops.rows(_adjacent(x)), *loops.rows(_adjacent(columns)), x.shape[1], total.numpy())
    return total[:, 0] if y.ndim == 1 else total


def _adjacent(matrix: Tensor) -> Tensor:
    """The matrix with its columns adjacent in memory."""
    return matrix if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1] else matrix.contiguous()
