"""Maxima along one dimension and circular padding, which PyTorch takes apart at a cost.

It squeezes the indices of one-dimensional maxima even where nobody asks for them, so they would be worked out; and
it pads circularly by writing one slice after the other in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_Sizes = int | Sequence[int]


def max_pool1d(
    input: Tensor,
    kernel_size: _Sizes,
    stride: _Sizes | None = None,
    padding: _Sizes = 0,
    dilation: _Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """torch.max_pool1d, F.max_pool1d without indices: max_pool2d of images one pixel high."""
    kernel = _one(kernel_size)
    step = _one(stride) if stride else kernel
    flat = input.unsqueeze(-2)
    return F.max_pool2d(
        flat, (1, kernel), (1, step), (0, _one(padding)), (1, _one(dilation)), ceil_mode=ceil_mode
    ).squeeze(-2)


def adaptive_max_pool1d(input: Tensor, output_size: _Sizes, return_indices: bool = False) -> Tensor:
    """F.adaptive_max_pool1d without indices: adaptive_max_pool2d of images one pixel high."""
    return F.adaptive_max_pool2d(input.unsqueeze(-2), (1, _one(output_size))).squeeze(-2)


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """F.pad; circularly by putting each dimension's ends beside it. Negative sizes crop. No communication."""
    if mode != "circular":
        with torch._C.DisableTorchFunctionSubclass():
            return F.pad(input, pad, mode, value)
    F.pad(torch.empty(input.shape, dtype=input.dtype, device="meta"), pad, mode, value)
    for place in range(len(pad) // 2):
        dim, before, behind = -1 - place, pad[2 * place], pad[2 * place + 1]
        first, stop = max(0, -before), input.shape[dim] + min(0, behind)
        input = input.narrow(dim, first, stop - first)
        before, behind = max(0, before), max(0, behind)
        n = input.shape[dim]
        ends = [input.narrow(dim, n - before, before), input, input.narrow(dim, 0, behind)]
        input = torch.cat([part for part in ends if part.shape[dim]], dim)
    return input


def _one(value: _Sizes) -> int:
    return value if isinstance(value, int) else int(value[0])


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.max_pool1d: max_pool1d,
    torch.max_pool1d: max_pool1d,
    F.adaptive_max_pool1d: adaptive_max_pool1d,
    F.pad: pad,
}
