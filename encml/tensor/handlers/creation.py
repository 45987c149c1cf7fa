"""New SharedTensors made like another one, of a value that everybody knows. No communication."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from encml.mpc.sharing import public
from encml.ring.layout import stack
from encml.tensor.handlers.common import as_number, as_secret, session_of, wrap
from encml.tensor.public import Number, Operand, term
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret


def full_like(x: SharedTensor, value: Number, *, dtype: torch.dtype | None = None, **_: object) -> SharedTensor:
    """full_like"""
    held = secret(x)
    layout = held.terms[0] if held.made else torch.empty_strided(x.shape, x.stride(), dtype=torch.int64)
    return _constant(x, layout, value, dtype)


def fill(x: SharedTensor, value: Tensor | Number) -> SharedTensor:
    """fill.Scalar, fill.Tensor: a tensor like x with one value everywhere."""
    if not isinstance(value, Tensor):
        return full_like(x, value)
    session = session_of(x, value)
    return wrap(as_secret(value, session).view(lambda p: p.expand(-1, *x.shape)).linear(torch.clone), x.dtype)


def new_full(
    x: SharedTensor, size: Sequence[int], value: Number, *, dtype: torch.dtype | None = None, **_: object
) -> SharedTensor:
    """new_full"""
    return _constant(x, torch.empty(tuple(size), dtype=torch.int64), value, dtype)


def like(value: int) -> Callable[..., SharedTensor]:
    """The handler of zeros_like and ones_like."""
    return lambda x, **options: full_like(x, value, **options)


def new(value: int) -> Callable[..., SharedTensor]:
    """The handler of new_zeros and new_ones."""
    return lambda x, size, **options: new_full(x, size, value, **options)


def new_empty_strided(
    x: SharedTensor, size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype | None = None, **_: object
) -> SharedTensor:
    """new_empty_strided, filled with zeros."""
    held = secret(x)
    return wrap(Secret(held.session, 0, payload=held.room(size, stride).zero_()), dtype or x.dtype)


def _constant(x: SharedTensor, layout: Tensor, value: Number, dtype: torch.dtype | None) -> SharedTensor:
    dtype, session = dtype or x.dtype, x.session
    integer, bits = term(as_number(value, dtype), session.fraction_bits)
    shares = [torch.full_like(layout, int(share)) for share in public(session.parties, integer)]
    return wrap(Secret(session, bits, payload=stack(shares).to(session.parties.device)).keep("constant", value), dtype)


def linspace(start: Operand, end: Operand, steps: int, *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
    """linspace between numbers, one of which is secret."""
    part = torch.linspace(0, 1, steps, dtype=torch.float64)
    return (start * (1 - part) + end * part).to(dtype or torch.get_default_dtype())


def logspace(
    start: Operand, end: Operand, steps: int, base: float = 10.0, *, dtype: torch.dtype | None = None, **_: object
) -> Tensor:
    """logspace between numbers, one of which is secret."""
    return torch.pow(base, linspace(start, end, steps, dtype=dtype))
