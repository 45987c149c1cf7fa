"""Normalisations within one example: layer, group and root-mean-square norms, and vectors divided by their length.

Every example has statistics of its own, and the weights differ within what is averaged, so that there are two products
and truncations an element: x' = (x - mean) * root and x' * weight. x' stays with the inverse deviation, an output that
PyTorch keeps for backward. With h = gradient * weight, and root = 1 / sqrt(m (variance + eps)), m public (see
``moments``), the gradient of the input is one more product and truncation,

    deviation (h - mean of h) - x' (deviation * m * mean of h x').
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.ring.layout import room
from encml.tensor.handlers.common import as_secret, session_of, wrap
from encml.tensor.handlers.moments import (
    LEAST_SQUARE,
    ROOT_BITS,
    average,
    by,
    centred_bits,
    cut,
    halved,
    moments,
    plus,
    quarters,
    sum_times,
    times,
)
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

_FACTOR_BITS = 20
Look = Callable[[Secret], Secret]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the elements of an input of shape ``size`` are averaged: as rows of n; and where a weight of theirs goes.

    weight: the shape in which a weight meets the input. summed: the dimensions (of terms) that are summed up for its
    gradient.
    """

    size: tuple[int, ...]
    n: int
    weight: tuple[int, ...]
    summed: tuple[int, ...]

    @classmethod
    def of_layer(cls, x: Tensor, normalized: Sequence[int]) -> Layout:
        """The last dimensions are averaged."""
        lead = x.ndim - len(normalized)
        size = tuple(x.shape)
        return cls(size, math.prod(normalized), (1,) * lead + tuple(normalized), tuple(range(1, lead + 1)))

    @classmethod
    def of_groups(cls, x: Tensor, groups: int) -> Layout:
        """Groups of channels are averaged, together with all that follows them."""
        channels, *rest = x.shape[1:]
        after = (1,) * len(rest)
        summed = (1, *range(3, x.ndim + 1))
        return cls(tuple(x.shape), channels // groups * math.prod(rest), (1, channels, *after), summed)

    def rows(self, value: Secret) -> Secret:
        """(rows, n)"""
        return value.linear(lambda terms: terms.reshape(len(terms), -1, self.n))

    def back(self, value: Secret) -> Secret:
        """The inverse of ``rows``."""
        return value.linear(lambda terms: terms.reshape(len(terms), *self.size))

    def across(self, weight: Secret) -> Secret:
        """A weight as it meets the input."""
        return weight.linear(lambda terms: terms.reshape(len(terms), *self.weight))


@dataclass(frozen=True, slots=True, repr=False)
class _Normal:
    """x' in rows at ``centred_bits``, and the public m in it."""

    value: Secret
    m: float


def normalise(
    x: Secret,
    weight: Tensor | None,
    bias: Tensor | None,
    layout: Layout,
    eps: float,
    centre: bool = True,
) -> tuple[Secret, Secret | None, Secret]:
    """(output pending, mean (rows, 1) or None, inverse deviation (rows, 1)).

    6 rounds and an inverse root for each row; 9.4 B a party and element, and as much again for the pending output.
    """
    session = x.session
    w, b = (None if t is None else as_secret(t, session) for t in (weight, bias))
    settle_all(*(s for s in (x, w, b) if s is not None))
    fine, m = centred_bits(session), quarters(layout.n)[1]

    def scaled_weight(near: Secret | None, under: Secret) -> Secret | None:
        return w if w is None or m == 1 else cut(by(w, math.sqrt(m), _FACTOR_BITS), fine)

    found = moments(layout.rows(x), (2,), eps, centre=centre, beside=[scaled_weight])
    normal, deviation = session.parties.together(lambda: cut(times(found.centred, found.root), fine), found.deviation)
    (w,) = found.beside
    output = layout.back(normal)
    if w is not None:
        output = times(output, layout.across(w))
    elif m != 1:
        output = by(output, math.sqrt(m), session.fraction_bits)
    if b is not None:
        output = plus(output, layout.across(b))
    return output, found.mean, deviation.keep("normal", _Normal(normal, m))


def normalise_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Secret | None,
    deviation: Secret,
    layout: Layout,
    mask: Sequence[bool],
) -> tuple[Secret | None, Secret | None, Secret | None]:
    """Gradients of input, weight and bias, without the latters' shape. 12 rounds, 15 with a weight.

    9.4 B a party and element, 18.1 with a weight, beyond settling the gradient.
    """
    session = session_of(*(t for t in (gradient, x, weight) if t is not None))
    parties, f, fine = session.parties, session.fraction_bits, centred_bits(session)
    g, held = as_secret(gradient, session), as_secret(x, session)
    w = None if weight is None else as_secret(weight, session)
    settle_all(*(s for s in (g, held, w) if s is not None))
    inverse = deviation.linear(lambda terms: terms.reshape(len(terms), -1, 1))
    normal = deviation.fact("normal")
    if normal is None:
        centred = layout.rows(held)
        if mean is not None:
            centred = plus(centred, mean.linear(lambda terms: terms.reshape(len(terms), -1, 1)), -1)
        m = quarters(layout.n)[1]
        root = inverse if m == 1 else cut(by(inverse, m**-0.5, _FACTOR_BITS), ROOT_BITS)
        normal = _Normal(cut(times(centred, root), fine), m)
    summed = list(layout.summed)
    to_bias = g.linear(lambda terms: terms.sum(summed) if summed else terms.clone()) if mask[2] else None

    def to_weight() -> Secret | None:
        if not mask[1]:
            return None
        value = layout.back(normal.value)
        products = sum_times(g, value, summed, keepdim=False) if summed else times(g, value)
        if normal.m == 1:
            return cut(products, f)
        return cut(by(cut(products, fine), math.sqrt(normal.m), _FACTOR_BITS), f)

    to_x, products = parties.together(
        lambda: _to_input(g, w, normal, inverse, layout, mean is not None) if mask[0] else None, to_weight
    )
    return to_x, products, to_bias


def _to_input(g: Secret, w: Secret | None, normal: _Normal, inverse: Secret, layout: Layout, centre: bool) -> Secret:
    session, n = g.session, layout.n
    parties, f, fine = session.parties, session.fraction_bits, centred_bits(session)
    h = layout.rows(g if w is None else cut(times(g, layout.across(w)), fine))
    share = halved(sum_times(h, normal.value, (2,)), 2 * quarters(n)[0])  # m / n is a power of 4
    projection, level = parties.together(
        lambda: cut(share, fine),
        lambda: cut(average(h.linear(lambda terms: terms.sum(2, keepdim=True)), n), fine) if centre else None,
    )
    tilt = cut(times(inverse, projection), ROOT_BITS)
    even = h if level is None else plus(h, level, -1)
    rows = plus(times(even, inverse), times(normal.value, tilt), -1)
    return layout.back(cut(rows, f))


# Handlers --------------------------------------------------------------------------------------------------------


def layer_norm(
    x: Tensor, normalized: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """native_layer_norm: see ``normalise``."""
    layout = Layout.of_layer(x, normalized)
    session = session_of(*(t for t in (x, weight, bias) if t is not None))
    output, mean, deviation = normalise(as_secret(x, session), weight, bias, layout, eps)
    assert mean is not None
    size = (*x.shape[: x.ndim - len(normalized)], *(1,) * len(normalized))
    return wrap(output, x.dtype), wrap(_shaped(mean, size), x.dtype), wrap(_shaped(deviation, size), x.dtype)


def layer_norm_backward(
    gradient: Tensor,
    x: Tensor,
    normalized: Sequence[int],
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """native_layer_norm_backward: see ``normalise_backward``."""
    layout = Layout.of_layer(x, normalized)
    to_x, *others = normalise_backward(gradient, x, weight, secret(mean), secret(deviation), layout, mask)
    return (
        _wrapped(to_x, x, x.shape),
        _wrapped(others[0], x, normalized),
        _wrapped(others[1], x, normalized),
    )


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, inner: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """native_group_norm: see ``normalise``."""
    layout = Layout.of_groups(x, groups)
    session = session_of(*(t for t in (x, weight, bias) if t is not None))
    held = as_secret(x, session)
    output, mean, deviation = normalise(held, weight, bias, layout, eps)
    assert mean is not None
    size = (n, groups)
    return (
        wrap(_laid_out(output, held), x.dtype),
        wrap(_shaped(mean, size), x.dtype),
        wrap(_shaped(deviation, size), x.dtype),
    )


def group_norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor | None,
    n: int,
    c: int,
    inner: int,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """native_group_norm_backward: see ``normalise_backward``."""
    layout = Layout.of_groups(x, groups)
    to_x, *others = normalise_backward(gradient, x, weight, secret(mean), secret(deviation), layout, mask)
    return (
        None if to_x is None else wrap(_laid_out(to_x, as_secret(x, to_x.session)), x.dtype),
        _wrapped(others[0], x, (c,)),
        _wrapped(others[1], x, (c,)),
    )


def rms_norm(
    x: Tensor, normalized: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[SharedTensor, SharedTensor]:
    """_fused_rms_norm: as a layer norm whose means are 0. An eps below 2^-27 counts as 2^-27, so that 0 / 0 is 0."""
    layout = Layout.of_layer(x, normalized)
    session = session_of(*(t for t in (x, weight) if t is not None))
    known = torch.finfo(x.dtype).eps if eps is None else eps
    output, _, deviation = normalise(
        as_secret(x, session), weight, None, layout, max(known, LEAST_SQUARE), centre=False
    )
    size = (*x.shape[: x.ndim - len(normalized)], *(1,) * len(normalized))
    return wrap(output, x.dtype), wrap(_shaped(deviation, size), x.dtype)


def rms_norm_backward(
    gradient: Tensor,
    x: Tensor,
    normalized: Sequence[int],
    deviation: Tensor,
    weight: Tensor | None,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """_fused_rms_norm_backward: see ``normalise_backward``."""
    layout = Layout.of_layer(x, normalized)
    to_x, to_weight, _ = normalise_backward(gradient, x, weight, None, secret(deviation), layout, (*mask, False))
    return _wrapped(to_x, x, x.shape), _wrapped(to_weight, x, normalized)


def unit_vectors(x: SharedTensor) -> tuple[SharedTensor, SharedTensor]:
    """x / |x| along the last dimension, and the inverse deviation from 0. Squares of elements below 2^-27 are lost."""
    layout = Layout.of_layer(x, x.shape[-1:])
    found = moments(layout.rows(secret(x).settle()), (2,), LEAST_SQUARE, centre=False)
    parties, fine = x.session.parties, centred_bits(x.session)
    normal, deviation = parties.together(lambda: cut(times(found.centred, found.root), fine), found.deviation)
    # x' / |x'| = x' / 2^j, with n = m 4^j elements
    output = layout.back(halved(normal, quarters(layout.n)[0]))
    return wrap(output, x.dtype), wrap(deviation.keep("normal", _Normal(normal, found.m)), x.dtype)


def unit_vectors_backward(gradient: Tensor, x: Tensor, deviation: Tensor) -> SharedTensor:
    """The gradient of ``unit_vectors``, which are RMS norms over the square root of n."""
    layout = Layout.of_layer(x, x.shape[-1:])
    to_x, *_ = normalise_backward(gradient, x, None, None, secret(deviation), layout, (True, False, False))
    assert to_x is not None
    return wrap(by(to_x, layout.n**-0.5, _FACTOR_BITS), x.dtype)


def _shaped(value: Secret, size: Sequence[int]) -> Secret:
    """Another shape of something that nobody else has, facts included."""
    shaped = value.linear(lambda terms: terms.reshape(len(terms), *size))
    normal = value.fact("normal")
    return shaped if normal is None else shaped.keep("normal", normal)


def _wrapped(value: Secret | None, x: Tensor, size: Sequence[int]) -> SharedTensor | None:
    return None if value is None else wrap(_shaped(value, size), x.dtype)


def _laid_out(value: Secret, like: Secret) -> Secret:
    """With the strides that PyTorch gives the result: those of the input."""
    if like.terms.is_contiguous():
        return value
    return value.linear(lambda terms: room(len(terms), like.terms[0]).copy_(terms))
