"""Inverses of the trigonometric and hyperbolic functions, from one curve each, roots and logarithms.

Off by a few ulp over the whole domain. Outside of it the results are undefined.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from encml.mpc.functions.curves import FINE, Curve
from encml.tensor.handlers.arithmetic import add, add_secrets, mul, neg, rsub, scale, sub
from encml.tensor.handlers.choosing import absolute, where
from encml.tensor.handlers.common import as_secret, result_dtype, wrap
from encml.tensor.handlers.compare import lt
from encml.tensor.handlers.curves import divide, log, on_curve, reciprocal, sqrt
from encml.tensor.handlers.rounding import with_sign
from encml.tensor.handlers.signs import Mask, below, chosen
from encml.tensor.public import Number
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

_arctan_8 = on_curve(Curve("atan", lambda x: np.arctan(x / 8), FINE, -math.pi / 4, math.pi / 4))
_arcsin_16 = on_curve(Curve("asin", lambda x: np.arcsin(np.clip(x / 16, -1, 1)), FINE, -math.pi / 6, math.pi / 6))


def atan(x: SharedTensor) -> SharedTensor:
    """atan: of |x| or, where that is above 1, pi/2 - atan(1/|x|)."""
    return wrap(with_sign(secret(_atan_of_size(absolute(x))), x), x.dtype)


def atan2(y: Tensor, x: Tensor) -> SharedTensor:
    """atan2: atan(|y|/|x|), mirrored where x < 0 and where y < 0. Of (0, 0) it is pi/2."""
    dtype = result_dtype(y, x)
    rise, run = (absolute(v) if isinstance(v, SharedTensor) else v.abs() for v in (y, x))
    angle = _atan_of_size(divide(rise, run))
    angle = where(lt(x, 0) if isinstance(x, SharedTensor) else x < 0, rsub(angle, math.pi), angle)
    return wrap(secret(where(lt(y, 0) if isinstance(y, SharedTensor) else y < 0, neg(angle), angle)), dtype)


def _atan_of_size(size: SharedTensor) -> SharedTensor:
    (far,) = below((1, secret(size)))
    near = wrap(_either(far, secret(reciprocal(size)), secret(size)), size.dtype)
    angle = secret(_arctan_8(_times(near, 8)))
    rest = add_secrets(as_secret(math.pi / 2, size.session), angle, -1)
    return wrap(_either(far, rest, angle), size.dtype)


def asin(x: SharedTensor) -> SharedTensor:
    """asin: of |x| or, where that is above 1/2, pi/2 - 2 asin(sqrt((1 - |x|)/2))."""
    size = absolute(x)
    (far,) = below((0.5, secret(size)))
    # sqrt(2 (1 - |x|)) is twice the sine of half the angle's complement, and exact under the root.
    root = sqrt(_times(rsub(size, 1), 2))
    angle = secret(_arcsin_16(wrap(_either(far, secret(_times(root, 8)), secret(_times(size, 16))), x.dtype)))
    rest = add_secrets(as_secret(math.pi / 2, x.session), angle.linear(lambda terms: 2 * terms), -1)
    return wrap(with_sign(_either(far, rest, angle), x), x.dtype)


def acos(x: SharedTensor) -> SharedTensor:
    """acos: pi/2 - asin(x)."""
    return rsub(asin(x), math.pi / 2)


def asinh(x: SharedTensor) -> SharedTensor:
    """asinh: log(|x| + sqrt(x^2 + 1)), with the sign of x; |x| below half of the range."""
    size = absolute(x)
    (large,) = below((_large(x), secret(size)))
    near = _or_number(large, 0, size)
    root = _either(large, secret(size), secret(sqrt(add(mul(near, near), 1))))
    return wrap(with_sign(secret(log(add(size, wrap(root, x.dtype)))), x), x.dtype)


def acosh(x: SharedTensor) -> SharedTensor:
    """acosh: log(x + sqrt(x - 1) sqrt(x + 1)); x below half of the range."""
    (large,) = below((_large(x), secret(x)))
    near = _or_number(large, 1, x)
    root = _either(large, secret(x), secret(mul(sqrt(sub(near, 1)), sqrt(add(near, 1)))))
    return log(add(x, wrap(root, x.dtype)))


def atanh(x: SharedTensor) -> SharedTensor:
    """atanh: (log(1 + x) - log(1 - x))/2."""
    return wrap(scale(secret(sub(log(add(x, 1)), log(rsub(x, 1)))), 0.5), x.dtype)


def _large(x: SharedTensor) -> float:
    """From here on sqrt(x^2 + 1) and sqrt(x^2 - 1) are x, whose square need not fit."""
    return min(2.0**12, 2.0 ** (30 - x.session.fraction_bits))


def _times(x: SharedTensor, number: int) -> SharedTensor:
    """A small whole multiple, without a change of scale."""
    return wrap(secret(x).linear(lambda terms: number * terms), x.dtype)


def _either(mask: Mask, yes: Secret, no: Secret) -> Secret:
    return add_secrets(no, chosen((mask, add_secrets(yes, no, -1)), operation="where"))


def _or_number(mask: Mask, number: Number, x: SharedTensor) -> SharedTensor:
    return wrap(_either(mask, as_secret(number, x.session), secret(x)), x.dtype)


_NEAR = (
    *(1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087),
    *(-4.39150654e-06, -3.5233877e-06, 3.43273939e-07, 2.81022636e-08),
)
_FAR = (
    *(2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773),
    *(-0.00367342844, 0.00134934322, 0.000100950558, -0.000200214257),
)


def erfinv(x: SharedTensor) -> SharedTensor:
    """erfinv: x p(w) with w = -log(1 - x^2), and another polynomial of sqrt(w) from w = 5 on (Giles 2010).

    The powers are made first, so that the error of each is multiplied by its small coefficient alone.
    """
    w = neg(add(log(rsub(x, 1)), log(add(x, 1))))
    (far,) = below((5, secret(w)))
    z = wrap(_either(far, secret(sub(sqrt(w), 3)), secret(sub(w, 2.5))), x.dtype)
    second = mul(z, z)
    powers = [z, second, mul(second, z), mul(second, second)]
    powers += [mul(powers[3], power) for power in powers]
    near, away = (
        _sum_of_powers(secret(sub(z, z)), [secret(power) for power in powers], series) for series in (_NEAR, _FAR)
    )
    return mul(x, wrap(_either(far, away, near), x.dtype))


def ndtri(x: SharedTensor) -> SharedTensor:
    """special_ndtri: sqrt(2) erfinv(2 x - 1)."""
    return wrap(scale(secret(erfinv(sub(_times(x, 2), 1))), math.sqrt(2)), x.dtype)


def _sum_of_powers(total: Secret, powers: list[Secret], coefficients: tuple[float, ...]) -> Secret:
    settle_all(*powers)
    total = add_secrets(total, as_secret(coefficients[0], total.session))
    for power, coefficient in zip(powers, coefficients[1:], strict=True):
        total = add_secrets(total, scale(power, coefficient))
    return total
