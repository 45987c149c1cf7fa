"""Variances, deviations and vector norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.handlers import arithmetic, linear
from encml.tensor.handlers.common import as_secret, axis, supported_dtype, wrap
from encml.tensor.handlers.moments import (
    LEAST_SQUARE,
    SQUARE_BITS,
    average,
    by,
    centred_bits,
    cut,
    halved,
    inverse_root,
    known_at,
    plus,
    quarters,
    root,
    sum_times,
    times,
)
from encml.tensor.public import Number
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret

Dims = int | Sequence[int] | None


def var(x: SharedTensor, dims: Dims = None, *, correction: Number | None = None, keepdim: bool = False) -> SharedTensor:
    """var.correction: squares of differences are summed up before they are rescaled. Pending, after 2 rounds.

    n * variance < 2^(62 - 2f) for n elements.
    """
    squares, count, _ = _squares(x, dims, correction, keepdim)
    return wrap(arithmetic.scale(squares, 1 / count), x.dtype)


def std(x: SharedTensor, dims: Dims = None, *, correction: Number | None = None, keepdim: bool = False) -> SharedTensor:
    """std.correction: the root of the sum of squares; 32 rounds, 0.2 kB a party and result. Bounds as in ``var``."""
    squares, count, n = _squares(x, dims, correction, keepdim)
    j, _ = quarters(n)
    length = root(halved(squares, 2 * j), centred_bits(x.session))
    return wrap(by(length, math.sqrt(4.0**j / count), x.session.fraction_bits), x.dtype)


def var_mean(
    x: SharedTensor, dims: Dims = None, *, correction: Number | None = None, keepdim: bool = False
) -> tuple[SharedTensor, SharedTensor]:
    """var_mean.correction"""
    return var(x, dims, correction=correction, keepdim=keepdim), _mean(x, dims, keepdim)


def std_mean(
    x: SharedTensor, dims: Dims = None, *, correction: Number | None = None, keepdim: bool = False
) -> tuple[SharedTensor, SharedTensor]:
    """std_mean.correction"""
    return std(x, dims, correction=correction, keepdim=keepdim), _mean(x, dims, keepdim)


def _mean(x: SharedTensor, dims: Dims, keepdim: bool) -> SharedTensor:
    return linear.mean_dims(x, list(range(x.ndim)) if dims is None else _listed(dims), keepdim)


def _squares(x: SharedTensor, dims: Dims, correction: Number | None, keepdim: bool) -> tuple[Secret, float, int]:
    """(sum of squared differences from the mean, pending; what to divide it by; how many they are)."""
    value, axes = secret(x).settle(), _axes(x, dims)
    n = math.prod(value.terms.shape[axis] for axis in axes)
    count = n - (1 if correction is None else correction)
    if count <= 0:
        raise UnsupportedOperation(
            f"a variance of {n} values with correction {n - count:g} divides by {count:g}: it would be infinite or NaN"
        )
    total = value.linear(lambda terms: terms.sum(axes, keepdim=True) if axes else terms)
    difference = plus(value, cut(average(total, n), value.session.fraction_bits), -1)
    return sum_times(difference, difference, axes, keepdim), float(count), n


def vector_norm(
    x: SharedTensor, order: Number = 2, dims: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> SharedTensor:
    """linalg_vector_norm. Order 2: 30 rounds, 0.2 kB a party and result, off by 2 ulp or 2^-15 of it; below 2^14.

    Orders 1, inf, -inf and 0 by absolute values, comparisons and sums; others from 1 on by powers of what the elements
    are of the largest one, which neither overflow nor vanish; orders below 1 by their powers.
    """
    target = supported_dtype(x, dtype or x.dtype)
    if order == 2:
        return wrap(secret(length(x, dims, keepdim)[0]), target)
    chosen = list(range(x.ndim)) if dims is None else _listed(dims)
    if order == 0:
        return linear.sum_dims(torch.ne(x, 0).to(target), chosen, keepdim)  # type: ignore[arg-type]  # a SharedTensor
    sizes = torch.abs(x)
    if order == 1:
        result = torch.sum(sizes, chosen, keepdim)
    elif math.isinf(order):
        result = (torch.amax if order > 0 else torch.amin)(sizes, chosen, keepdim)
    elif order > 1:
        result = by_largest(x, float(order), dims, keepdim)
    else:
        result = sizes.pow(order).sum(chosen, keepdim).pow(1 / order)
    return wrap(secret(result), target)


def by_largest(x: SharedTensor, order: float, dims: Dims, keepdim: bool) -> Tensor:
    """max |x| times the norm of x / max |x|. Differentiable: what the maximum is made of does not matter."""
    if not x.numel():
        return x.abs().sum(None if dims is None else _listed(dims), keepdim)
    sizes, chosen = x.abs(), (None if dims is None else _listed(dims)) or list(range(x.ndim))
    largest = sizes.detach().amax(chosen, True).clamp(min=2.0**-x.session.fraction_bits)
    result = (sizes / largest).pow(order).sum(chosen, True).pow(1 / order) * largest
    return result if keepdim or not x.ndim else result.squeeze(chosen)


def norm(x: SharedTensor, order: Number | None, dims: Dims = None, keepdim: bool = False) -> SharedTensor:
    """norm.ScalarOpt_dim, norm.Scalar"""
    return vector_norm(x, 2 if order is None else order, dims or None, keepdim)


def dist(x: Tensor, y: Tensor, order: Number = 2) -> SharedTensor:
    """dist"""
    return vector_norm(arithmetic.sub(x, y), order)


def length(x: SharedTensor, dims: Dims, keepdim: bool, *, inverse: bool = False) -> tuple[SharedTensor, Secret | None]:
    """|x| over ``dims``; and, if asked for, 1 / |x| with dimensions kept, in the same rounds.

    The inverse is for differentiation; there lengths below 2^-13 count as 2^-13.
    """
    value, axes = secret(x).settle(), _axes(x, dims)
    squares = cut(sum_times(value, value, axes), SQUARE_BITS)

    def inverted() -> Secret | None:
        shifted = plus(squares, known_at(x.session, 2 * LEAST_SQUARE, SQUARE_BITS))
        return inverse_root(shifted, 2 * LEAST_SQUARE) if inverse else None

    found, inverted_length = x.session.parties.together(lambda: root(squares, x.session.fraction_bits), inverted)
    if not keepdim:
        found = found.linear(lambda terms: terms.squeeze(tuple(axes)))
    return wrap(found, x.dtype), inverted_length


def length_backward(gradient: Tensor, x: SharedTensor, inverse: Secret, dims: Dims, keepdim: bool) -> SharedTensor:
    """gradient * x / |x|, pending after 3 rounds for each length."""
    g, value, axes = as_secret(gradient, x.session).settle(), secret(x), _axes(x, dims)
    if not keepdim:
        for place in sorted(axes):
            g = g.linear(partial(torch.unsqueeze, dim=place))
    slope = cut(times(g, inverse), centred_bits(x.session))
    return wrap(times(value.settle(), slope), x.dtype)


def _axes(x: Tensor, dims: Dims) -> list[int]:
    """Dimensions of the terms."""
    chosen = None if dims is None else _listed(dims)
    axes = [axis(x, dim) for dim in chosen] if chosen else range(1, x.ndim + 1)
    return list(axes) if x.ndim else []


def _listed(dims: int | Sequence[int]) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)
