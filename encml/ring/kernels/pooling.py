"""What windows see, sums over them, and look-ups of places along dimensions, over Z_2^64, with their adjoints.

Tensors are (..., *size), with one entry of ``size`` for each dimension of the window, at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = Sequence[int]
"""One number for every spatial dimension."""


def sum_pool(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, output: Sizes) -> Tensor:
    """Sums over windows: x (..., *size) to (..., *output); windows may reach over the padded far edge (ceil mode)."""
    steps = stride, (1,) * len(kernel)
    total = x.new_zeros(*x.shape[: -len(kernel)], *output)
    for part in _windows(_padded(x, kernel, *steps, padding, output), kernel, *steps, output):
        total += part
    return total


def sum_pool_gradient(gradient: Tensor, size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes) -> Tensor:
    """The adjoint of ``sum_pool``: gradient (..., *output) to (..., *size)."""
    columns = gradient.unsqueeze(-len(size) - 1).expand(
        *gradient.shape[: -len(size)], math.prod(kernel), *gradient.shape[-len(size) :]
    )
    return fold(columns, size, kernel, stride, padding, (1,) * len(size))


def unfold(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, output: Sizes) -> Tensor:
    """What each place of the windows sees: x (..., *size) to (..., places of a window, *output)."""
    whole = _padded(x, kernel, stride, dilation, padding, output)
    return torch.stack(list(_windows(whole, kernel, stride, dilation, output)), -len(kernel) - 1)


def fold(columns: Tensor, size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Tensor:
    """The adjoint of ``unfold``: columns (..., places of a window, *output), added up to (..., *size)."""
    dims = len(size)
    output = columns.shape[-dims:]
    full = [
        max(n + 2 * p, (o - 1) * s + (k - 1) * d + 1)
        for n, o, k, s, p, d in zip(size, output, kernel, stride, padding, dilation, strict=True)
    ]
    total = columns.new_zeros(*columns.shape[: -dims - 1], *full)
    for part, column in zip(_windows(total, kernel, stride, dilation, output), columns.unbind(-dims - 1), strict=True):
        part += column
    for d, (p, n) in enumerate(zip(padding, size, strict=True), -dims):
        total = total.narrow(d, p, n)
    return total.contiguous()


def _padded(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, padding: Sizes, output: Sizes) -> Tensor:
    """x with zeros around it, as far as windows reach behind it."""
    sides: list[int] = []
    for n, o, k, s, d, p in zip(x.shape[-len(kernel) :], output, kernel, stride, dilation, padding, strict=True):
        # F.pad takes the last dimension first.
        sides = [p, max(0, (o - 1) * s + (k - 1) * d + 1 - n - p), *sides]
    return F.pad(x, sides) if any(sides) else x


def _windows(x: Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, output: Sizes) -> Iterator[Tensor]:
    """For each place in a window, the view of x that all windows have there."""
    for taps in itertools.product(*map(range, kernel)):
        reach = (
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, o, s, d in zip(taps, output, stride, dilation, strict=True)
        )
        index: tuple[EllipsisType | slice, ...] = (..., *reach)
        yield x[index]


def look_up(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """x (..., *size) at ``places``, a table (output, taps) for every dimension: (..., *outputs, *taps)."""
    dims = len(places)
    # The last dimension first, whose elements are picked one by one, before others multiply them.
    for d in reversed(range(dims)):
        x = x.index_select(x.ndim - dims + d, places[d].reshape(-1).to(x.device))
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
        gradient = smaller.index_add_(dim, table.reshape(-1).to(gradient.device), gradient)
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
