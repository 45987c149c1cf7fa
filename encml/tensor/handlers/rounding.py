"""Rounding to whole numbers, and divisions that round: exact, whatever the error of the division in between.

q is a whole number near x/y, found by dividing, and once more by dividing what is left; then |x/y - q| < 2 up to
quotients of 2^24, and the signs of r = x - q y and r - y tell which of the neighbours is the floor. A public divisor is
rounded as sharing rounds. What a division by 0 gives is undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.mpc import rounding
from encml.mpc.parties import Parties
from encml.mpc.truncation import truncate
from encml.ring.layout import in_memory_order
from encml.tensor.handlers import copies, curves
from encml.tensor.handlers.arithmetic import add_secrets, mul, scale, sub
from encml.tensor.handlers.choosing import absolute
from encml.tensor.handlers.common import as_secret, result_dtype, session_of, wrap
from encml.tensor.handlers.compare import as_side, lt, ne
from encml.tensor.handlers.copies import clone
from encml.tensor.handlers.signs import arithmetic_of, below, chosen
from encml.tensor.public import Operand
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret

Rule = Callable[[Parties, Tensor, int, str], Tensor]


def floor(x: SharedTensor) -> SharedTensor:
    """floor. 10 rounds, 20.5 B a party and element; exact."""
    return _whole(x, rounding.floor, "floor")


def ceil(x: SharedTensor) -> SharedTensor:
    """ceil: -floor(-x)."""
    negated = wrap(secret(x).linear(lambda terms: -terms), x.dtype)
    return wrap(secret(_whole(negated, rounding.floor, "ceil")).linear(lambda terms: -terms), x.dtype)


def trunc(x: SharedTensor) -> SharedTensor:
    """trunc: the floor of |x|, with its sign. 24 rounds, 75 B a party and element."""
    if not x.dtype.is_floating_point:
        return clone(x)
    size = secret(_whole(absolute(x), rounding.floor, "trunc"))
    return wrap(with_sign(size, x), x.dtype)


def with_sign(size: Secret, x: SharedTensor) -> Secret:
    """``size`` where x > 0, else -size; of |x| this is x. 2 rounds, 10.7 B a party and element after ``absolute``."""
    (positive,) = below((0, secret(x)), operation="sign")
    part = chosen((positive, size), operation="sign")
    return add_secrets(part.linear(lambda terms: 2 * terms), size, -1)


def to_copy(
    x: SharedTensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **options: Any
) -> Tensor:
    """_to_copy: see ``copies.to_copy``; floats become int64 by trunc, and bool by a comparison with 0.

    To the device "meta", where there are only shapes: a plain tensor of x's shape.
    """
    if device is not None and torch.device(device).type == "meta":
        return torch.empty_strided(x.shape, x.stride(), dtype=dtype or x.dtype, device="meta")
    options["device"] = device
    if x.dtype.is_floating_point and dtype == torch.int64:
        return copies.to_copy(wrap(secret(trunc(x)), torch.int64), **options)
    if x.dtype != torch.bool and dtype == torch.bool:
        return copies.to_copy(ne(x, 0), **options)
    return copies.to_copy(x, dtype=dtype, **options)


def frac(x: SharedTensor) -> SharedTensor:
    """frac: x - trunc(x)."""
    return sub(x, trunc(x))


def nearest(x: SharedTensor, *, decimals: int = 0) -> SharedTensor:
    """round, round.decimals: halves to even. 11 rounds, 55 B a party and element; exact without decimals."""
    if decimals == 0:
        return _whole(x, rounding.nearest, "round")
    power = 10.0**decimals
    scaled = wrap(scale(secret(x), power if decimals > 0 else 1 / 10**-decimals), x.dtype)
    whole = _whole(scaled, rounding.nearest, "round")
    return wrap(scale(secret(whole), 10**-decimals if decimals < 0 else 1 / power), x.dtype)


def divide(x: Operand, y: Operand, *, rounding_mode: str | None = None) -> SharedTensor:
    """div.Tensor, div.Scalar, div.Tensor_mode."""
    if rounding_mode is None:
        return curves.divide(x, y)
    if rounding_mode not in _ROUNDED:
        raise UnsupportedOperation(f"div: rounding_mode={rounding_mode!r}; None, 'trunc' and 'floor' are supported")
    return _ROUNDED[rounding_mode](x, y)


def floor_divide(x: Operand, y: Operand) -> SharedTensor:
    """floor_divide, div with rounding_mode="floor"."""
    return _floor_division(x, y)[0]


def remainder(x: Operand, y: Operand) -> SharedTensor:
    """remainder: x - floor(x/y) y, of the sign of y."""
    return _floor_division(x, y)[1]


def trunc_divide(x: Operand, y: Operand) -> SharedTensor:
    """div with rounding_mode="trunc": the floor of |x|/|y|, with the sign of x/y."""
    return _signed(_signed(_floor_division(_size(x), _size(y))[0], x), y)


def fmod(x: Operand, y: Operand) -> SharedTensor:
    """fmod: what is left of |x| after whole |y|, with the sign of x."""
    return _signed(_floor_division(_size(x), _size(y))[1], x)


_ROUNDED = {"floor": floor_divide, "trunc": trunc_divide}
_PASSES = 2


def _floor_division(x: Operand, y: Operand) -> tuple[SharedTensor, SharedTensor]:
    """floor(x/y), and what is left of x."""
    session, dtype = session_of(x, y), result_dtype(x, y)
    parties, f = session.parties, session.fraction_bits
    if not isinstance(y, SharedTensor):
        y = torch.as_tensor(y, dtype=torch.float64).ldexp(torch.tensor(f)).round().ldexp(torch.tensor(-f))
    rest, whole = x, as_secret(0, session)
    for _ in range(_PASSES):
        quotient = secret(curves.divide(rest, y)).settle()
        near = Secret(session, 0, payload=truncate(parties, quotient.at_bits(f), f, "floor_divide"))
        rest = sub(rest, mul(wrap(near, dtype), y))
        whole = add_secrets(near, whole)
    # Mirrored where y < 0, so that the question is 0 <= r < |y|.
    towards, size = _signed(rest, y), _size(y)
    left = secret(towards).settle()
    negative, small = arithmetic_of(below((left, 0), (left, as_side(size)), operation="floor_divide"), "floor_divide")
    up = add_secrets(as_secret(1, session), add_secrets(negative, small), -1)
    floor = wrap(add_secrets(whole, up), dtype)
    return floor, wrap(secret(sub(rest, mul(wrap(up, dtype), y))), dtype)


def _size(x: Operand) -> Operand:
    if isinstance(x, SharedTensor):
        return absolute(x)
    return x.abs() if isinstance(x, Tensor) else abs(x)


def _signed(size: Operand, x: Operand) -> SharedTensor:
    """size where x >= 0, -size where x < 0."""
    if not isinstance(x, SharedTensor):
        return mul(size, torch.where(torch.as_tensor(x) < 0, -1.0, 1.0))
    doubled = secret(lt(x, 0)).linear(lambda terms: -2 * terms)
    return mul(size, wrap(add_secrets(doubled, as_secret(1, x.session)), x.dtype))


def _whole(x: SharedTensor, rule: Rule, name: str) -> SharedTensor:
    value = secret(x)
    if not x.dtype.is_floating_point:
        return clone(x)
    payload, parties = value.payload, value.session.parties
    if value.fraction_bits <= 0:
        return clone(x)
    whole = in_memory_order(lambda p: rule(parties, p, value.fraction_bits, name), payload)
    return wrap(Secret(value.session, 0, payload=whole), x.dtype)
