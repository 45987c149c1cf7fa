"""Matrix products over Z_2^64.

torch multiplies int64 matrices row by row of the result, at the machine's rate where rows are long and adjacent in
memory. A linear layer multiplies by a transposed weight, x @ w^T, and the last convolutions of a network have few
places: there one dot product after the other is 2 to 20 times faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encml.ring.kernels import loops


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """torch.matmul of int64 tensors of any number of dimensions."""
    if x.ndim != 2 or y.ndim not in (1, 2) or x.shape[1] != y.shape[0] or not x.numel() or not y.numel():
        return torch.matmul(x, y)
    columns = y[None] if y.ndim == 1 else y.t()
    if columns.stride(1) != 1 and not _dots_are_faster(len(x), x.shape[1], len(columns)):
        return torch.matmul(x, y)
    total = x.new_zeros(len(x), len(columns))
    loops.add_dots(*loops.rows(_adjacent(x)), *loops.rows(_adjacent(columns)), x.shape[1], total.numpy())
    return total[:, 0] if y.ndim == 1 else total


def multiply_into(total: Tensor, x: Tensor, y: Tensor, *, add: bool) -> None:
    """total (m, n) = x (m, k) @ y (k, n), or added to what is there; total may be a part of something larger."""
    if _dots_are_faster(len(x), *y.shape):
        if not add:
            total.zero_()
        loops.add_dots(*loops.rows(_adjacent(x)), *loops.rows(y.t().contiguous()), len(y), total.numpy())
    else:
        total.addmm_(x, y, beta=1 if add else 0)


def _dots_are_faster(m: int, k: int, n: int) -> bool:
    """Measured: torch's rows of n are too short, and y is worth transposing for m rows."""
    return n < 256 and m >= 64 and k >= 64


def _adjacent(matrix: Tensor) -> Tensor:
    """The matrix with its columns adjacent in memory."""
    return matrix if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1] else matrix.contiguous()
