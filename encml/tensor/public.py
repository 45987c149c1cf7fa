"""Public operands: the integers and fraction bits with which a plain tensor or Python number meets a secret."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.errors import InvalidTensor
from encml.mpc.truncation import MAX_SHIFT
from encml.ring.fixed import RANGE_BITS, bound, encode

Number = bool | int | float
Operand = Tensor | Number


def term(x: Operand, fraction_bits: int) -> tuple[Tensor, int]:
    """A public operand of a sum or comparison: (integers, bits) with x = integers / 2^bits.

    Numbers are rounded to the nearest multiple of 2^-f, as secrets are when they are shared, so that equal ones compare
    equal; integers and bools carry no fraction bits. Minus infinity in a tensor, and the least number of its dtype, are
    what attention masks are made of: they become -2^(61 - 2f), half of the range. Raises InvalidTensor for NaN, other
    infinities or |x| >= 2^(62 - 2f).
    """
    if not isinstance(x, Tensor):
        return _number(x, min(_fraction(x, fraction_bits), fraction_bits), fraction_bits)
    if not x.is_floating_point():
        return encode(x, fraction_bits) >> fraction_bits, 0
    return encode(_without_infinity(x, fraction_bits), fraction_bits), fraction_bits


def factor(x: Operand, fraction_bits: int) -> tuple[Tensor, int]:
    """A public factor: (integers, bits) with x = integers / 2^bits, |integers| <= 2^f where |x| <= 1.

    Exact for whole numbers, which carry no fraction bits, and for what f bits hold. Other numbers are rounded by at
    most 2^-f of themselves, tensors by 2^-f of their largest element, for a small factor such as a learning rate gets
    more than f bits. Below about 2^-32 a factor loses digits, below 2^-48 it is 0. Raises as ``term``.
    """
    if not isinstance(x, Tensor):
        return _number(x, _fraction(x, fraction_bits), fraction_bits)
    if not x.is_floating_point():
        return encode(x, fraction_bits) >> fraction_bits, 0
    largest = float(x.detach().abs().max()) if x.numel() else 0.0
    if 0 < largest < 0.5:
        bits = _wanted(largest, fraction_bits)
        return encode(x, bits), bits
    integers = encode(x, fraction_bits)
    if not (integers & ((1 << fraction_bits) - 1)).any():
        return integers >> fraction_bits, 0
    return integers, fraction_bits


def _without_infinity(x: Tensor, fraction_bits: int) -> Tensor:
    x = x.detach()
    least = torch.finfo(x.dtype).min
    if not x.numel() or not x.min() <= least:
        return x
    return torch.where(x <= least, -bound(fraction_bits) / 2, x)


def _number(x: Number, bits: int, fraction_bits: int) -> tuple[Tensor, int]:
    if not abs(x) < bound(fraction_bits):
        raise InvalidTensor(
            f"{x!r} is beyond the fixed-point range (-{bound(fraction_bits):.6g}, {bound(fraction_bits):.6g}) at "
            f"{fraction_bits} fraction bits"
        )
    return torch.tensor(round(math.ldexp(x, bits))), bits


def _fraction(x: Number, fraction_bits: int) -> int:
    """The fraction bits that the number x needs, but no more than ``factor`` gives."""
    if isinstance(x, complex) or not math.isfinite(x):
        raise InvalidTensor(f"cannot compute with {x!r} on secrets: expected a finite real number")
    exact = float(x).as_integer_ratio()[1].bit_length() - 1 if isinstance(x, float) else 0
    return min(exact, _wanted(x, fraction_bits))


def _wanted(x: float, fraction_bits: int) -> int:
    """f significant bits of x, as far as a product with a settled secret can be truncated in one go."""
    _, exponent = math.frexp(x)
    return min(fraction_bits + max(0, -exponent), MAX_SHIFT, RANGE_BITS - fraction_bits - 1)
