"""Element-wise arithmetic. Sums are local; a product of two secrets is one local product, pending (see Secret)."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import InvalidTensor, UnsupportedOperation
from encml.ring.fixed import bound
from encml.tensor.handlers.common import as_secret, bilinear, by_public, result_dtype, session_of, wrap
from encml.tensor.handlers.creation import full_like
from encml.tensor.public import Number, Operand, factor
from encml.tensor.secret import Secret, align, headroom
from encml.tensor.shared import SharedTensor, secret


def add_secrets(left: Secret, right: Secret, sign: int = 1, *, into_left: bool = False) -> Secret:
    """left + sign * right, broadcast. No communication.

    into_left: ``left`` is a result that nobody else has, at least as large as ``right``: use its memory.
    """
    a, b, bits, pending = align(left, right)
    terms = torch.add(a, b, alpha=sign, out=a if into_left else None)
    return Secret(left.session, bits, **{"rows" if pending else "payload": terms})


def add(x: Operand, y: Operand, alpha: Number = 1) -> SharedTensor:
    """add.Tensor, add.Scalar: x + alpha * y. No communication, but for a fractional alpha's rescaling, later."""
    session, dtype = session_of(x, y), result_dtype(x, y)
    if dtype == torch.bool:
        return logical_or(x, y)
    right = as_secret(y, session)
    sign = 1
    if alpha == -1:
        sign = -1
    elif alpha != 1:
        right = scale(right, alpha)
    return wrap(add_secrets(as_secret(x, session), right, sign), dtype)


def sub(x: Operand, y: Operand, alpha: Number = 1) -> SharedTensor:
    """sub.Tensor, sub.Scalar: x - alpha * y."""
    for operand in (x, y):
        if isinstance(operand, bool) or (isinstance(operand, Tensor) and operand.dtype == torch.bool):
            raise UnsupportedOperation(
                "sub: PyTorch does not subtract bools; use ~ or logical_not(), or .float() first"
            )
    return add(x, y, alpha=-alpha)


def rsub(x: Operand, y: Operand, alpha: Number = 1) -> SharedTensor:
    """rsub: y - alpha * x."""
    return sub(y, x, alpha=alpha)


def neg(x: SharedTensor) -> SharedTensor:
    """neg. No communication."""
    if x.dtype == torch.bool:
        raise UnsupportedOperation("neg: bools are not negated; use ~ or logical_not(), or .float() first")
    return wrap(secret(x).linear(torch.neg), x.dtype)


def scale(value: Secret, number: Number, *, into_value: bool = False) -> Secret:
    """A secret times a public number. Local; the product has more fraction bits and is settled later.

    into_value: ``value`` is a result that nobody else has: use its memory.
    """
    integer, bits = factor(number, value.session.fraction_bits)
    held = headroom(value, integer, bits)
    if not into_value:
        return held.like(held.terms * integer, bits)
    return held.like(held.terms if int(integer) == 1 else held.terms.mul_(integer), bits)


def mul(x: Operand, y: Operand) -> SharedTensor:
    """mul.Tensor, mul.Scalar. Secret by secret: pending, 3 rounds and 8.75 B a party and element when settled."""
    dtype = result_dtype(x, y)
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return wrap(bilinear(torch.mul, x, y), dtype)
    held, number = (x, y) if isinstance(x, Tensor) else (y, x)
    assert isinstance(held, SharedTensor)
    assert not isinstance(number, Tensor)
    return wrap(scale(secret(held), number), dtype)


def div(x: Operand, y: Operand) -> SharedTensor:
    """A secret divided by something public: a product with its reciprocal, rounded as every public factor is."""
    assert isinstance(x, SharedTensor)
    dtype = result_dtype(x, y)
    reciprocal = torch.as_tensor(y, dtype=torch.float64).reciprocal()
    limit = bound(x.session.fraction_bits)
    if (reciprocal.abs() >= limit).any():
        raise InvalidTensor(
            f"div: the divisor holds 0 or values so small that their reciprocals are beyond the fixed-point range "
            f"(-{limit:.6g}, {limit:.6g}) at {x.session.fraction_bits} fraction bits"
        )
    # A number may be a power of two, which a tensor is not searched for.
    held = secret(x)
    quotient = by_public(torch.mul, held, reciprocal) if isinstance(y, Tensor) else scale(held, float(reciprocal))
    return wrap(quotient, dtype if dtype.is_floating_point else torch.get_default_dtype())


def power(x: SharedTensor, exponent: Number) -> SharedTensor:
    """pow.Tensor_Scalar for whole exponents from 0, by repeated squaring."""
    if exponent != int(exponent) or exponent < 0:
        raise UnsupportedOperation(f"pow: exponent {exponent} of a secret; supported are whole exponents from 0")
    dtype = result_dtype(x, exponent)
    if exponent == 0:
        return full_like(x, 1, dtype=dtype)
    remaining, base = int(exponent), x
    result: SharedTensor | None = None
    while remaining:
        if remaining & 1:
            result = base if result is None else mul(result, base)
        remaining >>= 1
        if remaining:
            base = mul(base, base)
    assert result is not None
    return wrap(secret(result).linear(torch.clone) if exponent == 1 else secret(result), dtype)


def logical_and(x: Operand, y: Operand) -> SharedTensor:
    """logical_and, bitwise_and of bools: a product, pending."""
    _only_bools("and", x, y)
    return mul(x, y)


def logical_or(x: Operand, y: Operand) -> SharedTensor:
    """logical_or, bitwise_or of bools: x + y - x y, pending."""
    _only_bools("or", x, y)
    session = session_of(x, y)
    either = add_secrets(as_secret(x, session), as_secret(y, session))
    return wrap(add_secrets(either, secret(mul(x, y)), -1), torch.bool)


def logical_xor(x: Operand, y: Operand) -> SharedTensor:
    """logical_xor, bitwise_xor of bools: x + y - 2 x y, pending."""
    _only_bools("xor", x, y)
    session = session_of(x, y)
    either = add_secrets(as_secret(x, session), as_secret(y, session))
    return wrap(add_secrets(either, scale(secret(mul(x, y)), 2), -1), torch.bool)


def _only_bools(name: str, *operands: Operand) -> None:
    for x in operands:
        if not (x.dtype == torch.bool if isinstance(x, Tensor) else isinstance(x, bool)):
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise UnsupportedOperation(f"{name}: supported for bools, found {what}; compare with != 0 first")
