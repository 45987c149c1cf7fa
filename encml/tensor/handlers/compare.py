"""Comparisons and what is built on them: one most-significant-bit circuit each, exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.handlers.arithmetic import add_secrets, mul
from encml.tensor.handlers.common import as_secret, session_of, wrap
from encml.tensor.handlers.creation import full_like
from encml.tensor.handlers.signs import Mask, Side, above_number, below, chosen, chosen_last, differences, laid_out
from encml.tensor.public import Number, Operand
from encml.tensor.shared import SharedTensor, secret


def as_side(x: Operand) -> Side:
    """An operand as one side of a comparison; plain tensors of one number are numbers."""
    if isinstance(x, SharedTensor):
        return secret(x)
    return x.item() if isinstance(x, Tensor) and x.ndim == 0 else x


def as_bools(mask: Mask) -> SharedTensor:
    """A mask as a bool SharedTensor. 2 rounds, 8 B a party and element."""
    return wrap(mask.arithmetic(), torch.bool)


def lt(x: Operand, y: Operand) -> SharedTensor:
    """lt.Tensor, lt.Scalar: x < y as a bool SharedTensor. 10 rounds, 24.7 B a party and element; see ``below``."""
    session_of(x, y)
    known = _beyond_all(x, y, lambda a, b: a < b)
    return as_bools(*below((as_side(x), as_side(y)))) if known is None else known


def gt(x: Operand, y: Operand) -> SharedTensor:
    """gt.Tensor, gt.Scalar"""
    return wrap(laid_out(secret(lt(y, x)), torch.gt, x, y), torch.bool)


def ge(x: Operand, y: Operand) -> SharedTensor:
    """ge.Tensor, ge.Scalar"""
    return logical_not(lt(x, y))


def le(x: Operand, y: Operand) -> SharedTensor:
    """le.Tensor, le.Scalar"""
    return logical_not(gt(x, y))


def ne(x: Operand, y: Operand) -> SharedTensor:
    """ne.Tensor, ne.Scalar: [x < y] XOR [y < x], in one batch of comparisons; one if the other is known."""
    session_of(x, y)
    known = _beyond_all(x, y, lambda a, b: a != b)
    if known is not None:
        return known
    masks = below(*differences(as_side(x), as_side(y)))
    return as_bools(masks[0] if len(masks) == 1 else masks[0] ^ masks[1])


def eq(x: Operand, y: Operand) -> SharedTensor:
    """eq.Tensor, eq.Scalar"""
    return logical_not(ne(x, y))


def _beyond_all(x: Operand, y: Operand, compare: Callable[[float, float], bool]) -> SharedTensor | None:
    """The answer if one side is infinite, which no secret is."""
    for held, other in ((x, y), (y, x)):
        if isinstance(held, SharedTensor) and isinstance(other, float) and math.isinf(other):
            return full_like(held, compare(*(0.0 if side is held else other for side in (x, y))), dtype=torch.bool)
    return None


def logical_not(x: SharedTensor) -> SharedTensor:
    """logical_not: 1 - x of a bool SharedTensor, without communication; [x == 0] of any other."""
    if x.dtype != torch.bool:
        return eq(x, 0)
    return wrap(add_secrets(as_secret(1, x.session), secret(x), -1), torch.bool)


def bitwise_not(x: SharedTensor) -> SharedTensor:
    """bitwise_not (~x) of bools."""
    if x.dtype != torch.bool:
        raise UnsupportedOperation(f"bitwise_not: supported for bools, found {x.dtype}")
    return logical_not(x)


def relu(x: SharedTensor) -> SharedTensor:
    """relu: [x > 0] * x. 10 rounds, 27.3 B a party and element (9 and 21.5 B with a declared range of 32 bits); see
    ``below`` for a product that is still to be rounded.

    The bits [x > 0], 1/64 of a share each, stay with x and with the result, for ``threshold_backward`` and others.
    """
    if x.dtype == torch.bool:
        raise UnsupportedOperation("relu: PyTorch has no relu of bools; convert with .float() first")
    value = secret(x)
    (positive,) = below((0, value), operation="relu")
    return wrap(chosen((positive, value), operation="relu").keep(above_number(0), positive.bits), x.dtype)


def threshold_backward(gradient: Tensor, result: Tensor, threshold: Number) -> SharedTensor:
    """threshold_backward: gradient * [result > threshold]. 2 rounds, 10.7 B a party and element, by the bits kept; 3
    and 19.4 B for a gradient that is still to be rounded.
    """
    session = session_of(gradient, result)
    if not isinstance(result, SharedTensor):
        return wrap(secret(mul(gradient, torch.gt(result, threshold))), gradient.dtype)
    (mask,) = below((threshold, secret(result)))
    return wrap(chosen_last(mask, as_secret(gradient, session), "relu_backward"), gradient.dtype)
