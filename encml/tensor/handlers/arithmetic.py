"""Element-wise arithmetic. Sums are local; a product of two secrets is one local product, pending (see Secret)."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.ring.fixed import encode
from encml.tensor.handlers.common import (
    Number,
    Operand,
    as_secret,
    bilinear,
    encode_public,
    headroom,
    result_dtype,
    ring_public,
    session_of,
    wrap,
)
from encml.tensor.secret import Secret, align, broadcast
from encml.tensor.shared import SharedTensor, secret


def add_secrets(left: Secret, right: Secret, sign: int = 1) -> Secret:
    """left + sign * right, broadcast. No communication."""
    a, b, bits, pending = align(left, right)
    terms = a + b if sign > 0 else a - b
    return Secret(left.session, bits, **{"rows" if pending else "payload": terms})


def add(x: Operand, y: Operand, *, alpha: Number = 1) -> SharedTensor:
    """add.Tensor, add.Scalar: x + alpha * y. No communication, but for a fractional alpha's rescaling, later."""
    session = session_of(x, y)
    right = as_secret(y, session)
    sign = 1
    if alpha == -1:
        sign = -1
    elif alpha != 1:
        right = scale(right, alpha)
    return wrap(add_secrets(as_secret(x, session), right, sign), result_dtype(x, y, alpha))


def sub(x: Operand, y: Operand, *, alpha: Number = 1) -> SharedTensor:
    """sub.Tensor, sub.Scalar: x - alpha * y."""
    return add(x, y, alpha=-alpha)


def rsub(x: Operand, y: Operand, alpha: Number = 1) -> SharedTensor:
    """rsub: y - alpha * x."""
    return add(y, x, alpha=-alpha)


def neg(x: SharedTensor) -> SharedTensor:
    """neg. No communication."""
    return wrap(secret(x).linear(torch.neg), x.dtype)


def scale(value: Secret, factor: Number) -> Secret:
    """A secret times a public number. Local; the product has more fraction bits and is settled later."""
    integer, bits = encode_public(factor, value.session)
    held = headroom(value, bits)
    return held.like(held.terms * integer, bits)


def mul(x: Operand, y: Operand) -> SharedTensor:
    """mul.Tensor, mul.Scalar. Secret by secret: pending, 3 rounds and 8.75 B a party and element when settled."""
    dtype = result_dtype(x, y)
    if isinstance(x, SharedTensor) and isinstance(y, SharedTensor):
        return wrap(bilinear(torch.mul, x, y), dtype)
    held, factor = (x, y) if isinstance(x, SharedTensor) else (y, x)
    assert isinstance(held, SharedTensor)
    product = _times_public(secret(held), factor) if isinstance(factor, Tensor) else scale(secret(held), factor)
    return wrap(product, dtype)


def _times_public(value: Secret, plain: Tensor) -> Secret:
    integers, bits = ring_public(plain, value.session)
    held = headroom(value, bits)
    assert isinstance(integers, Tensor)
    a, b = broadcast(held.terms, integers.unsqueeze(0))
    return held.like(a * b, bits)


def div(x: Operand, y: Operand, *, rounding_mode: str | None = None) -> SharedTensor:
    """div.Tensor, div.Scalar by something public: a product with its reciprocal, encoded in fixed point."""
    if isinstance(y, SharedTensor) or rounding_mode is not None:
        what = "division by a secret" if rounding_mode is None else f"rounding_mode={rounding_mode!r}"
        raise UnsupportedOperation(f"div: {what} has no secret-shared version yet; divide by a public value")
    assert isinstance(x, SharedTensor)
    dtype = result_dtype(x, 1.0)
    if isinstance(y, Tensor):
        return wrap(_times_public(secret(x), y.to(torch.float64).reciprocal()), dtype)
    if y == 0:
        raise ZeroDivisionError("a SharedTensor was divided by 0")
    return wrap(scale(secret(x), 1.0 / float(y)), dtype)


def power(x: SharedTensor, exponent: Number) -> SharedTensor:
    """pow.Tensor_Scalar for whole exponents from 0, by repeated squaring."""
    if exponent != int(exponent) or exponent < 0:
        raise UnsupportedOperation(f"pow: exponent {exponent} of a secret; supported are whole exponents from 0")
    remaining, base = int(exponent), x
    result: SharedTensor | None = None
    while remaining:
        if remaining & 1:
            result = base if result is None else mul(result, base)
        remaining >>= 1
        if remaining:
            base = mul(base, base)
    if result is None:
        return filled_like(x, 1.0)
    return wrap(secret(result), x.dtype)


def square(x: SharedTensor) -> SharedTensor:
    """square"""
    return mul(x, x)


def filled_like(x: SharedTensor, value: Number, dtype: torch.dtype | None = None, **_: object) -> SharedTensor:
    """full_like, and through it zeros_like and ones_like: a public value as a secret."""
    return filled(x, tuple(x.shape), value, dtype)


def filled(
    x: SharedTensor, shape: tuple[int, ...], value: Number, dtype: torch.dtype | None = None, **_: object
) -> SharedTensor:
    """new_full and its kin: a public value as a secret of the session of ``x``, at full fraction bits."""
    integers = encode(torch.full(shape, float(value), dtype=torch.float64), x.session.fraction_bits)
    made = Secret.of_public(x.session, torch.zeros(()), 0)
    terms = torch.zeros(made.terms.shape[0], *shape, dtype=torch.int64)
    share = x.session.parties.share(terms, 0)
    if share is not None:
        share.copy_(integers)
    return wrap(Secret(x.session, x.session.fraction_bits, payload=terms), dtype or x.dtype)
