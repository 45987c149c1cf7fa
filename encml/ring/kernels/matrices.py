"""Matrix products over Z_2^64.

torch multiplies int64 matrices row by row of the result, on one core: at 15 billion products a second where rows are
long and adjacent in memory, at 2 to 8 elsewhere. Here tiles of the result stay in registers, at 20 to 22 billion a
core, whichever way the factors lie in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.ring.kernels import anywhere, products
from encml.ring.kernels.adding import Adding
from encml.ring.kernels.anywhere import elsewhere
from encml.ring.kernels.products import Array
from encml.ring.kernels.threads import in_parts
from encml.ring.kernels.tiles import LANES, ROWS, VECTORS

_LONG = 4 * LANES
"""From this length on, products may be summed up in a vector first, and across it in the end."""


@Adding
def matmul(x: Tensor, y: Tensor, total: Tensor | None = None) -> Tensor:
    """torch.matmul of tensors of any number of dimensions; added to a contiguous ``total``, if there is one.

    Plain numbers of another dtype are multiplied by torch. Raises RuntimeError as it does where shapes do not fit.
    """
    if x.dtype != torch.int64 and total is None:
        return torch.matmul(x, y)
    if elsewhere(x, y):
        product = anywhere.matmul(x, y)
        return product if total is None else total.add_(product)
    if x.ndim == y.ndim == 2 and x.shape[1] == y.shape[0]:
        result = x.new_zeros(len(x), y.shape[1]) if total is None else total
        if result.numel() and len(y):
            _add_products(result[None], x[None], y[None])
        return result
    left, right = x if x.ndim != 1 else x[None], y if y.ndim != 1 else y[:, None]
    if not (x.ndim and y.ndim) or left.shape[-1] != right.shape[-2]:
        return torch.matmul(x, y)
    lead = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])  # type: ignore[no-untyped-call]
    m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
    result = x.new_zeros((*lead, *(m,) * (x.ndim > 1), *(n,) * (y.ndim > 1))) if total is None else total
    if not result.numel() or not k:
        return result
    if right.ndim == 2:
        lead, left = torch.Size(()), left.reshape(-1, k)
    batch = math.prod(lead)
    left, right = (side.expand(*lead, *side.shape[-2:]).reshape(batch, *side.shape[-2:]) for side in (left, right))
    _add_products(result.view(batch, -1, n), left, right)
    return result


def _add_products(total: Tensor, x: Tensor, y: Tensor) -> None:
    """total (b, m, n), contiguous, += x (b, m, k) @ y (b, k, n), each laid out in any way; nothing is empty."""
    batch, m, n = total.shape
    k = x.shape[2]
    if k >= _LONG and x.stride(2) == 1 and y.stride(1) == 1:
        loop = products.multiply_dots
    elif _tiles(n, m) < _tiles(m, n):
        turned = total.new_zeros(batch, n, m)
        _add_products(turned, y.transpose(1, 2), x.transpose(1, 2))
        total += turned.transpose(1, 2)
        return
    else:
        loop = products.multiply
    out, a, b = (_memory(matrices) for matrices in (total, x, y))
    one, two, three = total.stride(), x.stride(), y.stride()

    def some(start: int, stop: int) -> None:
        loop(out, one, a, two, b, three, (start, stop), (0, n), m, k)

    def columns(start: int, stop: int) -> None:
        loop(out, one, a, two, b, three, (0, batch), (start, stop), m, k)

    if batch > 1:
        in_parts(batch, 1, batch * m * k * n, some)
    else:
        in_parts(n, VECTORS * LANES, m * k * n, columns)


def _tiles(m: int, n: int) -> int:
    """How many tiles a result (m, n) is made of."""
    return -(-m // ROWS) * -(-n // (VECTORS * LANES))


def _memory(x: Tensor) -> Array:
    """The memory from the first to the last element of a tensor that is not empty."""
    span = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    array: Array = x.as_strided((span,), (1,)).numpy()
    return array
