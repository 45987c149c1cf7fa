"""Comparisons and what is built on them: one most-significant-bit circuit each, exact."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.mpc import comparison
from encml.ring.layout import from_order, in_memory_order, memory_order, to_order
from encml.tensor.handlers.arithmetic import add_secrets, mul
from encml.tensor.handlers.common import as_secret, session_of, wrap
from encml.tensor.public import Number, Operand
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret


def is_negative(value: Secret) -> Secret:
    """[x < 0] as a secret 0 or 1. 10 rounds, 30.75 B a party and element."""
    parties = value.session.parties

    def negative(payload: Tensor) -> Tensor:
        return comparison.to_arithmetic(parties, comparison.negative(parties, payload))

    return Secret(value.session, 0, payload=in_memory_order(negative, value.replicate()))


def lt(x: Operand, y: Operand) -> SharedTensor:
    """lt.Tensor, lt.Scalar: x < y as a bool SharedTensor."""
    session = session_of(x, y)
    return wrap(is_negative(add_secrets(as_secret(x, session), as_secret(y, session), -1)), torch.bool)


def gt(x: Operand, y: Operand) -> SharedTensor:
    """gt.Tensor, gt.Scalar"""
    return lt(y, x)


def ge(x: Operand, y: Operand) -> SharedTensor:
    """ge.Tensor, ge.Scalar"""
    return logical_not(lt(x, y))


def le(x: Operand, y: Operand) -> SharedTensor:
    """le.Tensor, le.Scalar"""
    return logical_not(lt(y, x))


def ne(x: Operand, y: Operand) -> SharedTensor:
    """ne.Tensor, ne.Scalar: [x < y] + [y < x], both signs in one batch of comparisons."""
    session = session_of(x, y)
    difference = add_secrets(as_secret(x, session), as_secret(y, session), -1)
    order = memory_order(difference.replicate())
    payload = to_order(difference.terms, order)
    both = is_negative(difference.like(torch.stack([payload, -payload], 1)))
    return wrap(both.linear(lambda terms: from_order(terms[:, 0] + terms[:, 1], order)), torch.bool)


def eq(x: Operand, y: Operand) -> SharedTensor:
    """eq.Tensor, eq.Scalar"""
    return logical_not(ne(x, y))


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
    """relu: [x > 0] * x, where [-x < 0] comes free. 10 rounds, 33.4 B a party and element.

    The bits [x > 0], 1/64 of a share each, stay with the result for ``threshold_backward``.
    """
    if x.dtype == torch.bool:
        raise UnsupportedOperation("relu: PyTorch has no relu of bools; convert with .float() first")
    value, parties = secret(x), x.session.parties
    order = memory_order(value.replicate())
    payload = to_order(value.terms, order)
    bits = comparison.negative(parties, -payload, operation="relu")
    chosen = comparison.select(parties, bits, payload, "relu")
    return wrap(value.like(from_order(chosen, order)).keep("chosen by", bits), x.dtype)


def threshold_backward(gradient: Tensor, result: Tensor, threshold: Number) -> SharedTensor:
    """threshold_backward: gradient * [result > threshold].

    Of a ReLU: 2 rounds, 10.7 B a party and element, by the bits that it kept. Else a comparison of its own.
    """
    session = session_of(gradient, result)
    bits = secret(result).fact("chosen by") if isinstance(result, SharedTensor) else None
    if bits is None or threshold != 0:
        return wrap(secret(mul(gradient, torch.gt(result, threshold))), gradient.dtype)
    value, order = as_secret(gradient, session), memory_order(secret(result).terms)
    chosen = comparison.select(session.parties, bits, to_order(value.replicate(), order), "relu_backward")
    return wrap(value.like(from_order(chosen, order)), gradient.dtype)
