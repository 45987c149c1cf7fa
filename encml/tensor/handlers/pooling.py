"""Average pooling in one to three dimensions.

Local: sums over windows, and a public factor for each window; a division by 2^k elements only counts k more fraction
bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encml.ring import kernels
from encml.ring.devices import beside
from encml.tensor.handlers.arithmetic import scale
from encml.tensor.handlers.common import as_secret, by_public, session_of, wrap
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret

aten = torch.ops.aten
Handler = Callable[..., Any]


def average(dims: int) -> Handler:
    """The handler of avg_pool2d or avg_pool3d. Local; rescaled later."""

    def handler(
        x: SharedTensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> SharedTensor:
        kernel, steps, pads = geometry(dims, kernel_size, stride, padding)
        factors = _factors(x, kernel, steps, pads, ceil_mode, count_include_pad, divisor_override)
        pool = partial(kernels.sum_pool, kernel=kernel, stride=steps, padding=pads, output=factors.shape[1:])
        return wrap(_times(secret(x).linear(pool), factors, fresh=True), x.dtype)

    return handler


def average_backward(dims: int) -> Handler:
    """The handler of avg_pool2d_backward or avg_pool3d_backward: what is divided goes back to every place. Local."""

    def handler(
        gradient: Tensor,
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> SharedTensor:
        kernel, steps, pads = geometry(dims, kernel_size, stride, padding)
        factors = _factors(x, kernel, steps, pads, ceil_mode, count_include_pad, divisor_override)
        adjoint = partial(kernels.sum_pool_gradient, size=x.shape[-dims:], kernel=kernel, stride=steps, padding=pads)
        upstream = as_secret(gradient, session_of(gradient, x))
        return wrap(_times(upstream, factors).linear(adjoint), gradient.dtype)

    return handler


def adaptive_average(dims: int) -> Handler:
    """The handler of _adaptive_avg_pool2d or _adaptive_avg_pool3d. Local; rescaled later."""

    def handler(x: SharedTensor, output_size: Sequence[int]) -> SharedTensor:
        places, real, factors = _adaptive(x.shape[-dims:], output_size)

        def pool(terms: Tensor) -> Tensor:
            return (kernels.look_up(terms, places) * beside(terms, real)).flatten(-dims).sum(-1)

        return wrap(_times(secret(x).linear(pool), factors, fresh=True), x.dtype)

    return handler


def adaptive_average_backward(dims: int) -> Handler:
    """The handler of _adaptive_avg_pool2d_backward or _adaptive_avg_pool3d_backward. Local."""

    def handler(gradient: Tensor, x: Tensor) -> SharedTensor:
        size = x.shape[-dims:]
        places, real, factors = _adaptive(size, gradient.shape[-dims:])

        def adjoint(terms: Tensor) -> Tensor:
            return kernels.put_back(terms[(..., *(None,) * dims)] * beside(terms, real), places, size)

        upstream = as_secret(gradient, session_of(gradient, x))
        return wrap(_times(upstream, factors).linear(adjoint), gradient.dtype)

    return handler


def _adaptive(size: Sequence[int], output: Sequence[int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tables of windows, which of their taps are real (*output, *taps), and 1 / the size of each window (*output)."""
    tables = [kernels.adaptive_places(n, o) for n, o in zip(size, output, strict=True)]
    flags = [real.long() for _, real in tables]
    real = math.prod(_spread(flag, d, len(flags)) for d, flag in enumerate(flags))
    assert isinstance(real, Tensor)
    return [places for places, _ in tables], real, real.flatten(-len(flags)).sum(-1).double().reciprocal()


def _spread(table: Tensor, d: int, dims: int) -> Tensor:
    """A table (output, taps) of dimension d, to be broadcast over (*outputs, *taps)."""
    shape = [1] * (2 * dims)
    shape[d], shape[dims + d] = table.shape
    return table.view(shape)


def _factors(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """1 / divisor of every window, (1, *output), from PyTorch's own average over ones: exact for the interior."""
    ones = torch.ones(1, *x.shape[-len(kernel) :], dtype=torch.float64)
    pool = aten.avg_pool2d if len(kernel) == 2 else aten.avg_pool3d
    means = pool(ones, kernel, stride, padding, ceil_mode, include_pad, divisor)
    sums = pool(ones, kernel, stride, padding, ceil_mode, include_pad, 1)
    factors: Tensor = means / sums
    return factors


def _times(value: Secret, factors: Tensor, fresh: bool = False) -> Secret:
    """value (..., *output) times the factors of its windows."""
    if not factors.numel():
        return value
    first = float(factors.flatten()[0])
    if bool((factors == first).all()):
        return scale(value, first, into_value=fresh)
    return by_public(torch.mul, value, factors)


def geometry(
    dims: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding of a pool in every dimension."""
    return each(dims, kernel), each(dims, stride or kernel), each(dims, padding)


def each(dims: int, values: Sequence[int]) -> list[int]:
    """One number for every dimension, where one may stand for all."""
    return [int(v) for v in values] if len(values) == dims else [int(values[0])] * dims
