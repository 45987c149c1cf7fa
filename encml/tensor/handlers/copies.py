"""Operations that move, repeat, drop or add up elements: linear, local, the torch operation on every term."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.ring.devices import beside
from encml.ring.layout import stack
from encml.tensor.handlers.arithmetic import scale
from encml.tensor.handlers.common import as_number, as_secret, result_dtype, session_of, supported_dtype, wrap, write
from encml.tensor.handlers.linear import sum_dims
from encml.tensor.handlers.norms import FINER
from encml.tensor.public import Number
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret


def each_term(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of a linear operator of one tensor: ``op`` on every term, public arguments as they are."""

    def handler(x: Tensor, *args: Any, **kwargs: Any) -> SharedTensor:
        must_be_public(args)
        value = secret(x)
        there = beside(value.terms, args)
        return wrap(value.linear(lambda terms: stack([op(term, *there, **kwargs) for term in terms])), x.dtype)

    return handler


def cumsum(x: SharedTensor, dim: int, *, dtype: torch.dtype | None = None) -> SharedTensor:
    """cumsum"""
    target = supported_dtype(x, dtype or (x.dtype if x.dtype.is_floating_point else torch.int64))
    return wrap(secret(x).linear(lambda terms: stack([term.cumsum(dim) for term in terms])), target)


def nansum(
    x: SharedTensor, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> SharedTensor:
    """nansum: a sum, for fixed point has no NaN."""
    return sum_dims(x, dims, keepdim, dtype=dtype)


def join(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of cat, stack and their kin: all tensors at common fraction bits; pending if all are."""

    def handler(tensors: Sequence[Tensor], *args: Any) -> SharedTensor:
        session = session_of(*tensors)
        held = [as_secret(x, session) for x in tensors]
        if not (held[0].pending and len({(s.pending, s.fraction_bits) for s in held}) == 1):
            settle_all(*held)
        bits = max(s.fraction_bits for s in held)
        terms = [s.at_bits(bits) for s in held]
        joined = stack([op([t[i] for t in terms], *args) for i in range(len(terms[0]))])
        return wrap(Secret(session, bits, **{"rows" if held[0].pending else "payload": joined}), result_dtype(*tensors))

    return handler


def moved(op: Callable[..., Tensor], *places: int) -> Callable[..., SharedTensor]:
    """The handler of an operator that puts elements of several tensors together by public indices or masks.

    places: which positional arguments hold those elements: tensors, or numbers, of the first one's dtype. No
    communication, but for settling.
    """

    def handler(*args: Any, **kwargs: Any) -> SharedTensor:
        must_be_public([x for i, x in enumerate(args) if i not in places])
        first = args[places[0]]
        known = {i: args[i] if isinstance(args[i], Tensor) else as_number(args[i], first.dtype) for i in places}
        session = session_of(*known.values())
        held = {i: as_secret(x, session) for i, x in known.items()}
        settle_all(*held.values())
        bits = max(s.fraction_bits for s in held.values())
        terms = {i: s.at_bits(bits) for i, s in held.items()}
        there = beside(terms[places[0]], [None if i in terms else x for i, x in enumerate(args)])

        def part(number: int) -> Tensor:
            share = {i: t[number] if isinstance(args[i], Tensor) else int(t[number]) for i, t in terms.items()}
            return op(*(share.get(i, x) for i, x in enumerate(there)), **kwargs)

        return wrap(
            Secret(session, bits, payload=stack([part(k) for k in range(session.parties.shares_here)])), first.dtype
        )

    return handler


def must_be_public(arguments: Sequence[Any]) -> None:
    """Raises UnsupportedOperation for a SharedTensor among the arguments, or in a list of them."""
    for argument in arguments:
        for x in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(x, SharedTensor):
                raise UnsupportedOperation(
                    "this operator takes a public index or mask only; a secret index works in gather, scatter, "
                    "scatter_add, index_select, index_add, take and x[index], a secret mask in torch.where"
                )


def clone(x: SharedTensor, *, memory_format: torch.memory_format | None = None) -> SharedTensor:
    """clone"""
    return to_copy(x, memory_format=memory_format)


def to_copy(
    x: SharedTensor,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    memory_format: torch.memory_format | None = None,
    **_: object,
) -> SharedTensor:
    """_to_copy: to float32, float64 or, from a comparison's result, to int64. The shares stay as they are."""
    target = supported_dtype(x, dtype or x.dtype)
    if device is not None and torch.device(device).type != x.device.type:
        raise UnsupportedOperation(
            f"to PyTorch a SharedTensor stays on {x.device}; found a move to {device}. Where its shares lie is said "
            "once, by Session(device=...)"
        )
    kept = memory_format or torch.preserve_format
    held = secret(x)
    copied = held.linear(lambda terms: stack([term.clone(memory_format=kept) for term in terms]))
    if (finer := held.fact(FINER)) is not None:
        copied.keep(FINER, finer)
    return wrap(copied, target)


def number(x: SharedTensor, *_: object) -> SharedTensor:
    """nan_to_num: a copy, for fixed point has neither NaN nor infinity."""
    return to_copy(x)


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """copy_, also of plain values into a SharedTensor."""
    return write(target, as_secret(source, session_of(target, source)), source.dtype)


def fill_(target: Tensor, value: Tensor | Number) -> Tensor:
    """fill_ with a public number, a public or a secret scalar."""
    return write(target, as_secret(value, session_of(target, value)), result_dtype(value))


def zero_(target: SharedTensor) -> Tensor:
    """zero_"""
    return write(target, as_secret(0, target.session), target.dtype)


def pad(x: SharedTensor, sizes: Sequence[int], value: Number = 0) -> SharedTensor:
    """constant_pad_nd; negative sizes crop. Settles, unless padding with 0."""
    op = torch.ops.aten.constant_pad_nd.default
    return moved(op, 0, 2)(x, list(sizes), value) if value else each_term(op)(x, list(sizes))


def index(x: Tensor, indices: Sequence[Tensor | None]) -> SharedTensor:
    """index.Tensor with public indices."""
    return each_term(torch.ops.aten.index.Tensor)(x, indices)


def index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> SharedTensor:
    """index_put, and what _index_put_impl_ writes, with public indices."""
    return moved(torch.ops.aten.index_put.default, 0, 2)(x, indices, values, accumulate)


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Number = 1) -> SharedTensor:
    """index_add with a public index."""
    if alpha != 1:
        session = session_of(x, source)
        source = wrap(scale(as_secret(source, session), alpha), source.dtype)
    return moved(torch.ops.aten.index_add.default, 0, 3)(x, dim, index, source)
