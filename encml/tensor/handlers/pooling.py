"""Average and maximum pooling in one to three dimensions.

Averages are local: sums over windows, and a public factor for each window; a division by 2^k elements only counts k
more fraction bits. A maximum is a tournament in each window. Which place won stays secret, as one bit a place that is
kept for backward; indices of the maxima are worked out from these bits when they are used, and only then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.mpc import comparison, ordering
from encml.mpc.comparison import SecretBits
from encml.mpc.session import Session
from encml.ring import kernels
from encml.ring.bits import words_for
from encml.tensor.handlers.arithmetic import add_secrets, scale
from encml.tensor.handlers.common import as_secret, by_public, session_of, wrap
from encml.tensor.secret import Deferred, Secret
from encml.tensor.shared import SharedTensor, secret

aten = torch.ops.aten
Handler = Callable[..., Any]

# Averages ------------------------------------------------------------------------------------------------------------


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
        kernel, steps, pads = _geometry(dims, kernel_size, stride, padding)
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
        kernel, steps, pads = _geometry(dims, kernel_size, stride, padding)
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
            return (kernels.look_up(terms, places) * real).flatten(-dims).sum(-1)

        return wrap(_times(secret(x).linear(pool), factors, fresh=True), x.dtype)

    return handler


def adaptive_average_backward(dims: int) -> Handler:
    """The handler of _adaptive_avg_pool2d_backward or _adaptive_avg_pool3d_backward. Local."""

    def handler(gradient: Tensor, x: Tensor) -> SharedTensor:
        size = x.shape[-dims:]
        places, real, factors = _adaptive(size, gradient.shape[-dims:])

        def adjoint(terms: Tensor) -> Tensor:
            return kernels.put_back(terms[(..., *(None,) * dims)] * real, places, size)

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


def _geometry(
    dims: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    return _each(dims, kernel), _each(dims, stride or kernel), _each(dims, padding)


def _each(dims: int, values: Sequence[int]) -> list[int]:
    """One number for every dimension, where one may stand for all."""
    return [int(v) for v in values] if len(values) == dims else [int(values[0])] * dims


# Maxima --------------------------------------------------------------------------------------------------------------


def maximum(op: Any, dims: int) -> Handler:
    """The handler of max_pool2d_with_indices or max_pool3d_with_indices: (maxima, secret indices).

    A tournament of the k places of each window; what is padding never wins. Rounds and bytes: see
    ``encml.mpc.ordering.maximum_cost``. The indices cost 2 rounds and 8 (k - 1) B a party and window when first used.
    """

    def handler(
        x: SharedTensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[SharedTensor, SharedTensor]:
        shape = op(_meta(x), kernel_size, stride, padding, dilation, ceil_mode)[0].shape
        geometry = (*_geometry(dims, kernel_size, stride, padding), _each(dims, dilation))
        return _maximum(x, _window_places(x, geometry, shape[-dims:]), shape)

    return handler


def maximum_backward(dims: int) -> Handler:
    """The handler of max_pool2d_with_indices_backward or max_pool3d_with_indices_backward.

    The gradient of a window is selected for each of its k places but the last, which gets the rest: 2 rounds and 10.7
    (k - 1) B a party and window, and no comparison.
    """

    def handler(
        gradient: Tensor,
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
        indices: Tensor,
    ) -> SharedTensor:
        geometry = (*_geometry(dims, kernel_size, stride, padding), _each(dims, dilation))
        return _backward(gradient, x, indices, _window_places(x, geometry, gradient.shape[-dims:]))

    return handler


def adaptive_maximum(op: Any, dims: int) -> Handler:
    """The handler of adaptive_max_pool2d or adaptive_max_pool3d, see ``maximum``."""

    def handler(x: SharedTensor, output_size: Sequence[int]) -> tuple[SharedTensor, SharedTensor]:
        shape = op(_meta(x), output_size)[0].shape
        return _maximum(x, _adaptive_places(x, shape[-dims:]), shape)

    return handler


def adaptive_maximum_backward(dims: int) -> Handler:
    """The handler of adaptive_max_pool2d_backward or adaptive_max_pool3d_backward, see ``maximum_backward``."""

    def handler(gradient: Tensor, x: Tensor, indices: Tensor) -> SharedTensor:
        return _backward(gradient, x, indices, _adaptive_places(x, gradient.shape[-dims:]))

    return handler


def _maximum(x: SharedTensor, places: list[Tensor], shape: torch.Size) -> tuple[SharedTensor, SharedTensor]:
    value, session = secret(x), x.session
    candidates = _candidates(value.replicate(), places)
    largest, hot = ordering.maximum_and_winner(session.parties, candidates, operation="max_pool")
    maxima = wrap(value.like(largest.reshape(len(largest), *shape)), x.dtype)
    indices = wrap(Secret(session, 0, payload=torch.empty_like(secret(maxima).terms)), torch.int64)
    make = partial(_indices, session, hot, places, x.shape[-len(places) :], shape)
    indices._secret = Deferred(session, make).keep("hot", hot)
    return maxima, indices


def _backward(gradient: Tensor, x: Tensor, indices: Tensor, places: list[Tensor]) -> SharedTensor:
    session = session_of(gradient, x, indices)
    upstream = as_secret(gradient, session)
    if not isinstance(indices, SharedTensor):
        return wrap(upstream.linear(partial(_put_at, indices, x.shape, len(places))), gradient.dtype)
    payload = upstream.replicate()
    shares, outputs = len(payload), gradient.shape[-len(places) :]
    taps = [table.shape[1] for table in places]
    k = math.prod(taps)
    back = payload.reshape(shares, 1, gradient.numel()).expand(-1, k, -1)
    if k > 1 and payload.numel():
        hot = _hot(indices, x, places)
        chosen = comparison.select(session.parties, _first_rows(hot, k - 1), back[:, 1:], "max_pool_backward")
        back = torch.cat([chosen, back[:, :1] - chosen.sum(1, keepdim=True)], 1)
    lead = x.shape[: x.ndim - len(places)]
    back = back.transpose(1, 2).reshape(shares, *lead, *outputs, *taps)
    return wrap(upstream.like(kernels.put_back(back, places, x.shape[-len(places) :])), gradient.dtype)


def _hot(indices: SharedTensor, x: Tensor, places: list[Tensor]) -> SecretBits:
    """Which place won in each window, (k, n): kept by forward, or else found once more."""
    hot = secret(indices).fact("hot")
    if isinstance(hot, SecretBits):
        return hot
    candidates = _candidates(as_secret(x, indices.session).replicate(), places)
    return ordering.winner(indices.session.parties, candidates, operation="max_pool_backward")


def _put_at(indices: Tensor, shape: Sequence[int], dims: int, terms: Tensor) -> Tensor:
    """Public indices: terms (..., *output) added at their places of (..., *size)."""
    lead = (len(terms), *shape[:-dims])
    flat = terms.new_zeros(*lead, math.prod(shape[-dims:]))
    return flat.scatter_add_(-1, indices.flatten(-dims).expand(*lead, -1), terms.flatten(-dims)).view(
        *lead, *shape[-dims:]
    )


def _indices(session: Session, hot: SecretBits, places: list[Tensor], size: Sequence[int], shape: torch.Size) -> Secret:
    """Where in its plane each maximum is, (*shape): last + sum_j hot_j (place_j - last)."""
    dims = len(places)
    where = torch.zeros((1,) * (2 * dims), dtype=torch.int64)
    for d, table in enumerate(places):
        where = where + _spread(table, d, dims) * math.prod(size[d + 1 :])
    taps = where.reshape(math.prod(shape[-dims:]), -1).t()
    others = taps[:-1, None] - taps[-1:, None]
    last = Secret.of_public(session, taps[-1].view(shape[-dims:]).expand(shape))
    if not len(others) or 0 in shape:
        return last
    ones = comparison.to_arithmetic(session.parties, _first_rows(hot, len(others)), "max_pool")
    moved = (ones.view(len(ones), len(others), -1, taps.shape[1]) * others).sum(1)
    return add_secrets(Secret(session, 0, payload=moved.view(len(moved), *shape)), last)


def _candidates(payload: Tensor, places: list[Tensor]) -> Tensor:
    """What the windows see in a payload (S, ..., *size): (S, taps, windows)."""
    seen, k = kernels.look_up(payload, places), math.prod(table.shape[1] for table in places)
    return seen.reshape(len(payload), seen[0].numel() // k, k).transpose(1, 2)


def _first_rows(hot: SecretBits, rows: int) -> SecretBits:
    elements = rows * hot.shape[1]
    return SecretBits(hot.plane[:, : words_for(elements)], (rows, hot.shape[1]))


def _window_places(
    x: Tensor, geometry: tuple[list[int], list[int], list[int], list[int]], output: Sequence[int]
) -> list[Tensor]:
    kernel, stride, padding, dilation = geometry
    size = x.shape[-len(kernel) :]
    try:
        return [
            kernels.window_places(*one) for one in zip(size, kernel, stride, padding, dilation, output, strict=True)
        ]
    except ValueError as error:
        raise UnsupportedOperation(f"max_pool of size {tuple(size)}: {error}, where PyTorch gives -inf") from error


def _adaptive_places(x: Tensor, output: Sequence[int]) -> list[Tensor]:
    return [kernels.adaptive_places(n, o)[0] for n, o in zip(x.shape[-len(output) :], output, strict=True)]


def _meta(x: Tensor) -> Tensor:
    """A tensor of the same shape without contents, for PyTorch to check the arguments on."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta")
