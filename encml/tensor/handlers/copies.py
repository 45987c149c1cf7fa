"""Operations that move, repeat, drop or add up elements: linear, local, the torch operation on every term."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from encml.errors import SecretError, UnsupportedOperation
from encml.ring.layout import stack
from encml.tensor.handlers.arithmetic import scale
from encml.tensor.handlers.common import as_secret, result_dtype, session_of, supported_dtype, wrap, write
from encml.tensor.public import Number
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret


def each_term(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of a linear operator of one tensor: ``op`` on every term, public arguments as they are."""

    def handler(x: Tensor, *args: Any, **kwargs: Any) -> SharedTensor:
        _public_indices(args)
        return wrap(secret(x).linear(lambda terms: stack([op(term, *args, **kwargs) for term in terms])), x.dtype)

    return handler


def cumsum(x: SharedTensor, dim: int, *, dtype: torch.dtype | None = None) -> SharedTensor:
    """cumsum"""
    target = supported_dtype(x, dtype or (x.dtype if x.dtype.is_floating_point else torch.int64))
    return wrap(secret(x).linear(lambda terms: stack([term.cumsum(dim) for term in terms])), target)


def join(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of cat and stack: all tensors at common fraction bits; pending if all are."""

    def handler(tensors: Sequence[Tensor], dim: int = 0) -> SharedTensor:
        session = session_of(*tensors)
        held = [as_secret(x, session) for x in tensors]
        if not (held[0].pending and len({(s.pending, s.fraction_bits) for s in held}) == 1):
            held = [s.settle() for s in held]
        bits = max(s.fraction_bits for s in held)
        terms = [s.at_bits(bits) for s in held]
        joined = stack([op([t[i] for t in terms], dim) for i in range(len(terms[0]))])
        return wrap(Secret(session, bits, **{"rows" if held[0].pending else "payload": joined}), result_dtype(*tensors))

    return handler


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
        raise UnsupportedOperation(f"a SharedTensor stays on {x.device}; found a move to {device}")
    kept = memory_format or torch.preserve_format
    return wrap(secret(x).linear(lambda terms: stack([term.clone(memory_format=kept) for term in terms])), target)


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """copy_, also of plain values into a SharedTensor."""
    return write(target, as_secret(source, session_of(target, source)), source.dtype)


def fill_(target: Tensor, value: Tensor | Number) -> Tensor:
    """fill_ with a public number, a public or a secret scalar."""
    return write(target, as_secret(value, session_of(target, value)), result_dtype(value))


def zero_(target: SharedTensor) -> Tensor:
    """zero_"""
    return write(target, as_secret(0, target.session), target.dtype)


def pad(x: SharedTensor, sizes: Sequence[int], value: float = 0) -> SharedTensor:
    """constant_pad_nd with zeros; negative sizes crop."""
    if value != 0:
        raise UnsupportedOperation(f"constant_pad_nd: padding a secret with {value}; supported is padding with 0")
    return wrap(secret(x).linear(lambda terms: torch.ops.aten.constant_pad_nd(terms, list(sizes))), x.dtype)


def index(x: Tensor, indices: Sequence[Tensor | None]) -> SharedTensor:
    """index.Tensor with public indices."""
    _public_indices(indices)
    aten_index = torch.ops.aten.index.Tensor
    return wrap(secret(x).linear(lambda terms: stack([aten_index(term, indices) for term in terms])), x.dtype)


def index_put_(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> Tensor:
    """index_put_ and _index_put_impl_ with public indices."""
    return write(x, secret(index_put(x, indices, values, accumulate)), x.dtype)


def index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> SharedTensor:
    """index_put with public indices."""
    _public_indices(indices)
    _same_dtype("index_put", x, values)
    if not isinstance(x, SharedTensor):
        raise SecretError("a secret cannot be put into a plain tensor; share that tensor first")
    put = torch.ops.aten.index_put.default
    return _pairwise(lambda a, b: put(a, indices, b, accumulate), x, as_secret(values, session_of(x, values)))


def fused_add(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of index_add and scatter_add: ``op(x, dim, public index, source)``, linear in x and source."""

    def handler(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Number = 1) -> SharedTensor:
        _public_indices([index])
        _same_dtype("index_add", x, source)
        added = as_secret(source, session_of(x, source))
        return _pairwise(lambda a, b: op(a, dim, index, b), x, added if alpha == 1 else scale(added, alpha))

    return handler


def _pairwise(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, source: Secret) -> SharedTensor:
    """f of the terms of x and source, both settled and at common fraction bits."""
    target, source = as_secret(x, source.session).settle(), source.settle()
    bits = max(target.fraction_bits, source.fraction_bits)
    pairs = zip(target.at_bits(bits), source.at_bits(bits), strict=True)
    return wrap(Secret(source.session, bits, payload=stack([f(a, b) for a, b in pairs])), x.dtype)


def _public_indices(arguments: Sequence[Any]) -> None:
    if any(isinstance(argument, SharedTensor) for argument in arguments):
        raise UnsupportedOperation("indexing by a secret has no secret-shared version yet; use a public index")


def _same_dtype(name: str, x: Tensor, y: Tensor) -> None:
    if x.dtype != y.dtype:
        raise UnsupportedOperation(f"{name}: found dtypes {x.dtype} and {y.dtype}, expected the same")
