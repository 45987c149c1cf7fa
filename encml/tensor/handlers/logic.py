"""Truth values: of numbers, of whether any or all are true, and what is known of every secret beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from encml.mpc import comparison
from encml.ring.layout import in_memory_order
from encml.tensor.handlers import arithmetic
from encml.tensor.handlers.common import session_of, wrap
from encml.tensor.handlers.compare import logical_not, lt, ne
from encml.tensor.handlers.linear import sum_dims
from encml.tensor.public import Number, Operand
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret


def truth(x: Operand) -> Operand:
    """[x != 0], as it is for bools. Of a secret: 10 rounds, 61.5 B a party and element."""
    if isinstance(x, SharedTensor):
        return x if x.dtype == torch.bool else ne(x, 0)
    return x.bool() if isinstance(x, Tensor) else bool(x)


def of_truths(operation: Callable[[Operand, Operand], SharedTensor]) -> Callable[..., SharedTensor]:
    """The handler of logical_and and its kin: ``operation`` on bools; both truths in the same rounds."""

    def handler(x: Operand, y: Operand) -> SharedTensor:
        parties = session_of(x, y).parties
        return operation(*parties.together(lambda: truth(x), lambda: truth(y)))

    return handler


def any_(x: SharedTensor, dims: int | Sequence[int] | None = None, keepdim: bool = False) -> SharedTensor:
    """any, any.dim, any.dims: one comparison of their number with 0, on as many bits as that may have."""
    count = count_nonzero(x, dims, keepdim)
    value, parties = secret(count), x.session.parties
    most = max(1, x.numel() // max(1, count.numel()))

    def positive(payload: Tensor) -> Tensor:
        return comparison.to_arithmetic(parties, comparison.negative(parties, -payload, most.bit_length() + 1))

    if most > 1:
        value = Secret(x.session, 0, payload=in_memory_order(positive, value.payload))
    return wrap(value, torch.bool)


def all_(x: SharedTensor, dims: int | Sequence[int] | None = None, keepdim: bool = False) -> SharedTensor:
    """all, all.dim, all.dims: not any not."""
    return logical_not(any_(logical_not(x), dims, keepdim))


def count_nonzero(x: SharedTensor, dims: int | Sequence[int] | None = None, keepdim: bool = False) -> SharedTensor:
    """count_nonzero, count_nonzero.dim_IntList: the sum of the truths."""
    bools = truth(x)
    assert isinstance(bools, SharedTensor)
    return sum_dims(bools, [dims] if isinstance(dims, int) else dims, keepdim)


def never(x: SharedTensor) -> Tensor:
    """isnan, isinf, isposinf, isneginf: fixed point has no such numbers. Public."""
    return torch.zeros(x.shape, dtype=torch.bool)


def angle(x: SharedTensor) -> SharedTensor:
    """angle of real numbers: pi where they are negative."""
    turned = arithmetic.scale(secret(lt(x, 0)), torch.pi)
    return wrap(turned, x.dtype if x.dtype.is_floating_point else torch.get_default_dtype())


def times(number: Number) -> Callable[[SharedTensor], SharedTensor]:
    """The handler of a multiplication by a constant (deg2rad, rad2deg)."""
    return lambda x: wrap(
        arithmetic.scale(secret(x), number), x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()
    )
