"""Batch normalisation: statistics by channel.

A channel's statistics are one number each, whatever the batch, so all that costs is the output itself: with
a = weight / deviation it is (x - mean) a + bias, one product and truncation an element, and so is the gradient,

    (g - mean of g) a - (x - mean) p,   p = a / deviation * mean of g (x - mean) / deviation.

Running statistics are secret, with f fraction bits like other secrets: a variance of 1e-4 is known to 2^-17 only, 8 %.
That of a module that is shared brings finer digits with it, for evaluation; they are gone once it is written over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encml.errors import SecretError, UnsupportedOperation
from encml.mpc.session import Session
from encml.tensor.handlers.common import as_secret, session_of, wrap, write
from encml.tensor.handlers.moments import (
    ROOT_BITS,
    average,
    by,
    centred_bits,
    cut,
    halved,
    inverse_root,
    known_at,
    moments,
    plus,
    quarters,
    sum_times,
    times,
)
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

_FACTOR_BITS = 20
_EPS_BITS = 32
"""Fraction bits of eps."""
FINER = "finer"
"""The fact about a secret that has more of its digits: a Secret of the same value with ``finer_bits``."""


def finer_bits(session: Session) -> int:
    """Fraction bits at which a variance in the declared range, below 2^(62 - 2f), has as many digits as it can."""
    return min(2 * session.fraction_bits, _EPS_BITS)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """native_batch_norm: the output, and the mean and inverse deviation that it was made with for backward.

    Training: settled; 3 rounds and 9.4 B a party and element, 33 rounds and 0.25 kB a channel; the new running
    statistics are written in place. Evaluation: pending; 30 rounds and 0.2 kB a channel, paid again only after the
    statistics or the weight were written over.
    """
    session = session_of(*(t for t in (x, weight, bias, running_mean, running_var) if t is not None))
    held = as_secret(x, session)
    offset = None if bias is None else as_secret(bias, session)
    if training:
        return _by_own_statistics(x, held, weight, offset, running_mean, running_var, momentum, eps)
    if running_mean is None or running_var is None:
        raise UnsupportedOperation("batch norm in evaluation without running statistics")
    mean = as_secret(running_mean, session)
    settle_all(*(s for s in (held, mean, offset) if s is not None))
    scaled = _times_channel(plus(held, _channel(mean, x), -1), _fixed_scale(running_var, weight, eps)[1])
    if offset is not None:
        scaled = plus(scaled, _channel(offset, x))
    return wrap(scaled, x.dtype), x.new_empty(0), x.new_empty(0)


def _by_own_statistics(
    x: Tensor,
    held: Secret,
    weight: Tensor | None,
    offset: Secret | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    session, n = held.session, x.numel() // max(x.shape[1], 1)
    if not n:
        raise UnsupportedOperation(f"batch norm of an empty batch, of shape {tuple(x.shape)}, has no statistics")
    for buffer in (running_mean, running_var):
        if buffer is not None and not isinstance(buffer, SharedTensor):
            raise SecretError(
                "running statistics of a secret batch cannot be written into plain buffers; share the module, or put "
                "it into evaluation mode"
            )
    factor = None if weight is None else as_secret(weight, session)
    statistics = [secret(t) for t in (running_mean, running_var) if t is not None]
    settle_all(*(s for s in (held, factor, offset, *statistics) if s is not None))
    m, f = quarters(n)[1], session.fraction_bits

    def scaled_weight(near: Secret | None, under: Secret) -> Secret | None:
        # The root is that of m times the variance.
        if factor is None or m == 1:
            return factor
        return cut(by(factor, math.sqrt(m), _FACTOR_BITS), ROOT_BITS)

    def new_mean(near: Secret | None, under: Secret) -> Secret | None:
        if running_mean is None or near is None:
            return None
        old = by(_channel(secret(running_mean), x), 1 - momentum, _FACTOR_BITS)
        return cut(plus(old, by(near, momentum, _FACTOR_BITS)), f)

    def new_variance(near: Secret | None, under: Secret) -> Secret | None:
        if running_var is None:
            return None
        variance = cut(plus(under, known_at(session, eps * m, under.fraction_bits), -1), ROOT_BITS)
        unbiased = by(variance, momentum * n / (max(n - 1, 1) * m), _FACTOR_BITS)
        old = by(_channel(secret(running_var), x), 1 - momentum, unbiased.fraction_bits - f)
        return cut(plus(old, unbiased), f)

    found = moments(held, _reduced(x), eps, beside=[scaled_weight, new_mean, new_variance])
    w, *updates = found.beside
    scale, deviation = session.parties.together(
        lambda: found.deviation() if w is None else cut(times(_channel(w, x), found.root), ROOT_BITS), found.deviation
    )
    rows = times(found.centred, scale)
    output = cut(rows if offset is None else plus(rows, _channel(offset, x)), f)
    for buffer, update in zip((running_mean, running_var), updates, strict=True):
        if buffer is not None:
            write(buffer, _flat(update), buffer.dtype)
    assert found.mean is not None
    inverse = _flat(deviation).keep("scale", _flat(scale))
    return wrap(output, x.dtype), wrap(_flat(found.mean), x.dtype), wrap(inverse, x.dtype)


def batch_norm_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    deviation: Tensor | None,
    training: bool,
    eps: float,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """native_batch_norm_backward. Training: 15 rounds, 9.4 B a party and element. Evaluation: the gradient is pending.

    The gradient is settled first.
    """
    session = session_of(*(t for t in (gradient, x, weight, running_mean, running_var) if t is not None))
    g, held = as_secret(gradient, session), as_secret(x, session)
    settle_all(g, held)
    axes = _reduced(x)
    total = g.linear(lambda terms: terms.sum(axes, keepdim=True))
    to_bias = wrap(_flat(total), x.dtype) if mask[2] else None
    if training:
        assert mean is not None
        assert deviation is not None
        to_x, to_weight = _through_statistics(g, total, held, weight, secret(mean), secret(deviation), x, mask)
        return _wrapped(to_x, x), _wrapped(to_weight, x), to_bias
    assert running_mean is not None
    assert running_var is not None
    inverse, scale = _fixed_scale(running_var, weight, eps)
    if mask[1]:
        centred = plus(held, _channel(as_secret(running_mean, session).settle(), x), -1)
        products = cut(sum_times(g, centred, axes), centred_bits(session))
        to_weight = _flat(cut(_times_channel(products, inverse), session.fraction_bits))
    else:
        to_weight = None
    return _wrapped(_times_channel(g, scale) if mask[0] else None, x), _wrapped(to_weight, x), to_bias


def _through_statistics(
    g: Secret,
    total: Secret,
    x: Secret,
    weight: Tensor | None,
    mean: Secret,
    deviation: Secret,
    like: Tensor,
    mask: Sequence[bool],
) -> tuple[Secret | None, Secret | None]:
    """The gradients of input and weight; the bits of every factor leave its products room in the ring."""
    session, axes = x.session, _reduced(like)
    parties, f, fine = session.parties, session.fraction_bits, centred_bits(session)
    n = like.numel() // like.shape[1]
    k = n.bit_length() - 1
    inverse = _channel(deviation, like)
    centred = plus(x, _channel(mean, like), -1)

    def scale() -> Secret:
        known = deviation.fact("scale")
        if known is not None:
            return _channel(known, like)
        w = None if weight is None else as_secret(weight, session)
        return inverse if w is None else cut(times(_channel(w.settle(), like), inverse), ROOT_BITS)

    def averaging() -> Secret:
        # 1 / (deviation n), but for the power of two.
        return inverse if n == 1 << k else cut(by(inverse, 2.0**k / n, _FACTOR_BITS), ROOT_BITS)

    products, a, inverse_by_n, level = parties.together(
        lambda: cut(sum_times(g, centred, axes), fine),
        scale,
        averaging,
        lambda: cut(average(total, n), fine),
    )
    slope = times(products, inverse)
    to_weight, share = parties.together(
        lambda: cut(slope, f) if mask[1] else None,
        lambda: cut(halved(slope, k), fine) if mask[0] else None,
    )
    flat = None if to_weight is None else _flat(to_weight)
    if share is None:
        return None, flat
    tilt = cut(times(a, cut(times(inverse_by_n, share), min(f + 2, ROOT_BITS))), ROOT_BITS)
    rows = plus(times(plus(g, level, -1), a), times(centred, tilt), -1)
    return cut(rows, f), flat


def _fixed_scale(running_var: Tensor, weight: Tensor | None, eps: float) -> tuple[Secret | Tensor, Secret | Tensor]:
    """1 / sqrt(running_var + eps) and that times the weight, by channel; plain where everything is public.

    Remembered with the secrets that they are made of, as long as these are not written over.
    """
    inverse: Secret | Tensor
    if isinstance(running_var, SharedTensor):
        inverse = _fixed_deviation(secret(running_var), eps)
    else:
        inverse = (running_var.double() + eps).rsqrt()
    if weight is None:
        return inverse, inverse
    if not isinstance(weight, SharedTensor):
        if isinstance(inverse, Tensor):
            return inverse, inverse * weight.double()
        return inverse, cut(by(inverse, weight.detach(), _FACTOR_BITS), ROOT_BITS)
    w = secret(weight).settle()
    if isinstance(inverse, Tensor):
        return inverse, cut(by(w, inverse, ROOT_BITS), ROOT_BITS)
    variance = secret(running_var)
    kept: tuple[object, float, Secret] | None = variance.fact("scale")
    if kept is None or kept[0] is not w.fact("scaled by") or kept[1] != eps:
        kept = object(), eps, cut(times(w, inverse), ROOT_BITS)
        variance.keep("scale", kept)
        w.keep("scaled by", kept[0])
    return inverse, kept[2]


def prepare(session: Session, layers: Sequence[tuple[Tensor | None, Tensor | None, float]]) -> None:
    """Work out what batch normalisations in evaluation divide by, all of them in the rounds of one: at most 30.

    layers: running variance, weight and eps of each. The results are facts about them, which no evaluation then has to
    wait for.
    """
    session.parties.together(
        *(partial(_fixed_scale, variance, weight, eps) for variance, weight, eps in layers if variance is not None)
    )


def _fixed_deviation(variance: Secret, eps: float) -> Secret:
    kept: tuple[float, Secret] | None = variance.fact("inverse deviation")
    if kept is None or kept[0] != eps:
        finest: Secret = variance.fact(FINER) or variance.settle()
        kept = eps, inverse_root(plus(finest, known_at(variance.session, eps, _EPS_BITS)), eps)
        variance.keep("inverse deviation", kept)
    return kept[1]


def _times_channel(value: Secret, scale: Secret | Tensor) -> Secret:
    """Pending for a secret scale by channel, local for a public one."""
    ndim = len(value.shape)
    if isinstance(scale, Tensor):
        return by(value, _along(scale, ndim), ROOT_BITS)
    return times(value, scale.linear(lambda terms: torch.stack([_along(term, ndim) for term in terms])))


def _along(values: Tensor, ndim: int) -> Tensor:
    return values.reshape(1, -1, *(1,) * (ndim - 2))


def _channel(value: Secret, x: Tensor) -> Secret:
    """(C,) or (1, C, 1, ...) as (1, C, 1, ...), to meet x."""
    return value.linear(lambda terms: terms.reshape(len(terms), 1, -1, *(1,) * (x.ndim - 2)))


def _flat(value: Secret) -> Secret:
    return value.linear(lambda terms: terms.reshape(len(terms), -1))


def _reduced(x: Tensor) -> list[int]:
    """All dimensions of the terms but the channels."""
    return [1, *range(3, x.ndim + 1)]


def _wrapped(value: Secret | None, x: Tensor) -> SharedTensor | None:
    return None if value is None else wrap(value, x.dtype)


# Other names of the same ------------------------------------------------------------------------------------------


def without_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """_native_batch_norm_legit.no_stats"""
    return batch_norm(x, weight, bias, None, None, training, momentum, eps)


def evaluation(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """_native_batch_norm_legit_no_training"""
    return batch_norm(x, weight, bias, mean, variance, False, momentum, eps)


def with_reserve(training: bool) -> Any:
    """The handler of _batch_norm_with_update and _batch_norm_no_update: a fourth, empty output."""

    def handler(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, ...]:
        return (
            *batch_norm(x, weight, bias, mean, variance, training, momentum, eps),
            torch.empty(0, dtype=torch.uint8),
        )

    return handler


def backward_with_reserve(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    deviation: Tensor | None,
    update: bool,
    eps: float,
    mask: Sequence[bool],
    reserve: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """batch_norm_backward"""
    return batch_norm_backward(gradient, x, weight, running_mean, running_var, mean, deviation, update, eps, mask)
