"""Logarithms met by products and sums, and what is made of signs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from encml.tensor.handlers import curves
from encml.tensor.handlers.arithmetic import add, add_secrets, mul, rsub, scale, sub
from encml.tensor.handlers.choosing import absolute, clamp, maximum, where
from encml.tensor.handlers.common import as_secret, result_dtype, session_of, wrap
from encml.tensor.handlers.compare import lt
from encml.tensor.public import Operand
from encml.tensor.shared import SharedTensor, secret


def xlogy(x: Operand, y: Operand) -> SharedTensor:
    """xlogy.Tensor, xlogy.Scalar_Self, xlogy.Scalar_Other: x log(y), and 0 where x is 0, for y >= 0."""
    return _times_log(x, y, curves.log, torch.log)


def xlog1py(x: Operand, y: Operand) -> SharedTensor:
    """special_xlog1py: x log(1 + y), and 0 where x is 0, for y >= -1."""
    return _times_log(x, y, curves.log1p, torch.log1p)


def _times_log(
    x: Operand, y: Operand, of_secret: Callable[[SharedTensor], SharedTensor], of_plain: Callable[[Tensor], Tensor]
) -> SharedTensor:
    dtype = result_dtype(x, y)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    if isinstance(y, SharedTensor):
        return wrap(secret(mul(x, of_secret(y))), dtype)
    logarithm = of_plain(torch.as_tensor(y, dtype=torch.float64))
    # log(0) is beyond the range, as far as its product with 0 is concerned any number will do.
    return wrap(secret(mul(x, logarithm.nan_to_num(0, 0, _LOG_OF_0))), dtype)


_LOG_OF_0 = -(2.0**8)


def entr(x: SharedTensor) -> SharedTensor:
    """special_entr: -x log(x), for x >= 0."""
    return wrap(secret(xlogy(x, x)).linear(torch.neg), x.dtype)


def logaddexp2(x: Tensor, y: Tensor) -> SharedTensor:
    """logaddexp2: the larger one + log2(1 + 2^-|x - y|)."""
    apart = absolute(sub(x, y))
    return add(maximum(x, y), _scaled(curves.log1p(curves.exp(_scaled(apart, -math.log(2)))), 1 / math.log(2)))


def logit(x: SharedTensor, eps: float | None = None) -> SharedTensor:
    """logit: log(x) - log(1 - x), of x clamped to [eps, 1 - eps] if there is one."""
    held = x if eps is None else clamp(x, eps, 1 - eps)
    return sub(curves.log(held), curves.log(rsub(held, 1)))


def logit_backward(gradient: Tensor, x: Tensor, eps: float | None = None) -> SharedTensor:
    """logit_backward: gradient / (x (1 - x)), and 0 where x was clamped."""
    slope = curves.divide(gradient, x * (1 - x) if not isinstance(x, SharedTensor) else mul(x, rsub(x, 1)))
    if eps is None:
        return slope
    held = clamp(x, eps, 1 - eps) if isinstance(x, SharedTensor) else x.clamp(eps, 1 - eps)
    return where(torch.eq(held, x), slope, torch.zeros((), dtype=slope.dtype))


def hypot(x: Tensor, y: Tensor) -> SharedTensor:
    """hypot: sqrt(x^2 + y^2), where the squares are within range."""
    session = session_of(x, y)
    squares = add_secrets(as_secret(x * x, session), as_secret(y * y, session))
    return curves.sqrt(wrap(squares, result_dtype(x, y)))


def ldexp(x: Tensor, exponent: Tensor) -> SharedTensor:
    """ldexp: x 2^exponent."""
    if isinstance(exponent, SharedTensor):
        return mul(x, curves.exp2(exponent))
    return mul(x, torch.exp2(exponent.double()))


def signbit(x: SharedTensor) -> SharedTensor:
    """signbit: x < 0, for fixed point has one 0 only."""
    return lt(x, 0)


def copysign(x: Operand, y: Operand) -> SharedTensor:
    """copysign: |x|, or -|x| where y < 0."""
    dtype = result_dtype(x, y)
    size = absolute(x) if isinstance(x, SharedTensor) else torch.as_tensor(x).abs()
    if isinstance(y, SharedTensor):
        negative = secret(lt(y, 0)).linear(lambda terms: 2 * terms)
        return wrap(secret(mul(size, rsub(wrap(negative, torch.int64), 1))), dtype)
    return wrap(secret(mul(size, torch.copysign(torch.ones(()), torch.as_tensor(y)))), dtype)


def _scaled(x: SharedTensor, number: float) -> SharedTensor:
    return wrap(scale(secret(x), number), x.dtype)
