"""What windows see, sums over them, and look-ups of places along dimensions, over Z_2^64, with their adjoints.

Tensors are (..., *size), with one entry of ``size`` for each dimension of the window, at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = Sequence[int]
"""One number for every spatial dimension."""


def sum_pool(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, output: Sizes) -> Tensor:
    """Sums over windows: x (..., *size) to (..., *output); windows may reach over the padded far edge (ceil mode)."""
    behind = [
        max(0, (o - 1) * s + k - n - p)
        for o, k, s, p, n in zip(output, kernel, stride, padding, x.shape[-len(kernel) :], strict=True)
    ]
    if any(padding) or any(behind):
        x = F.pad(x, [side for d in reversed(range(len(kernel))) for side in (padding[d], behind[d])])
    total = x.new_zeros(*x.shape[: -len(kernel)], *output)
    for part in _windows(x, kernel, stride, output):
        total += part
    return total


def sum_pool_gradient(gradient: Tensor, size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes) -> Tensor:
    """The adjoint of ``sum_pool``: gradient (..., *output) to (..., *size)."""
    output = gradient.shape[-len(size) :]
    full = [
        max(n + 2 * p, (o - 1) * s + k) for n, o, k, s, p in zip(size, output, kernel, stride, padding, strict=True)
    ]
    total = gradient.new_zeros(*gradient.shape[: -len(size)], *full)
    for part in _windows(total, kernel, stride, output):
        part += gradient
    for d, (p, n) in enumerate(zip(padding, size, strict=True), -len(size)):
        total = total.narrow(d, p, n)
    return total.contiguous()


def _windows(x: Tensor, kernel: Sizes, stride: Sizes, output: Sizes) -> Iterator[Tensor]:
    """For each place in a window, the view of x that all windows have there."""
    for place in itertools.product(*map(range, kernel)):
        reach = (slice(p, p + (o - 1) * s + 1, s) for p, o, s in zip(place, output, stride, strict=True))
        index: tuple[EllipsisType | slice, ...] = (..., *reach)
        yield x[index]


def look_up(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """x (..., *size) at ``places``, a table (output, taps) for every dimension: (..., *outputs, *taps)."""
    dims = len(places)
    for d, table in enumerate(places):
        x = x.index_select(x.ndim - dims + d, table.reshape(-1))
    lead = x.shape[: x.ndim - dims]
    x = x.view(*lead, *(n for table in places for n in table.shape))
    return x.permute(*range(len(lead)), *_interleaved(len(lead), dims))


def put_back(gradient: Tensor, places: Sequence[Tensor], size: Sizes) -> Tensor:
    """The adjoint of ``look_up``: gradient (..., *outputs, *taps), each added to its place, to (..., *size)."""
    dims = len(places)
    lead = gradient.shape[: gradient.ndim - 2 * dims]
    order = _interleaved(len(lead), dims)
    gradient = gradient.permute(*range(len(lead)), *(len(lead) + order.index(len(lead) + d) for d in range(2 * dims)))
    gradient = gradient.reshape(*lead, *(table.numel() for table in places))
    for d, (table, n) in enumerate(zip(places, size, strict=True)):
        dim = len(lead) + d
        smaller = gradient.new_zeros(*gradient.shape[:dim], n, *gradient.shape[dim + 1 :])
        gradient = smaller.index_add_(dim, table.reshape(-1), gradient)
    return gradient


def _interleaved(lead: int, dims: int) -> list[int]:
    """Where in (..., output, taps, output, taps, ...) all outputs are, then all taps."""
    return [lead + 2 * d for d in range(dims)] + [lead + 2 * d + 1 for d in range(dims)]


def window_places(size: int, kernel: int, stride: int, padding: int, dilation: int, output: int) -> Tensor:
    """The table of the windows of one dimension, (output, kernel).

    A tap that lies outside looks at the nearest tap of its window that lies inside: it adds nothing to a maximum.
    Raises ValueError for a window that lies outside altogether.
    """
    first = torch.arange(output) * stride - padding
    low = (-first).clamp(min=0).add(dilation - 1) // dilation
    high = ((size - 1 - first) // dilation).clamp(max=kernel - 1)
    if bool((low > high).any()):
        raise ValueError("a window lies outside of the image altogether")
    taps = torch.arange(kernel).clamp(low[:, None], high[:, None])
    return first[:, None] + taps * dilation


def adaptive_places(size: int, output: int) -> tuple[Tensor, Tensor]:
    """The table of ``output`` windows that divide one dimension, (output, taps), and which taps are real.

    Window q goes from floor(q * size / output) up to before ceil((q + 1) * size / output), as in PyTorch; a window with
    fewer places than others looks at its last place again.
    """
    number = torch.arange(output)
    first, stop = number * size // output, -(-(number + 1) * size // output)
    taps = torch.arange(int((stop - first).max()) if output else 0)
    places = first[:, None] + taps
    return places.clamp(max=stop[:, None] - 1), places < stop[:, None]
