"""Operations that move, repeat, drop or add up elements: linear, local, the torch operation on every term."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from encml.errors import SecretError, UnsupportedOperation
from encml.tensor.handlers.arithmetic import filled
from encml.tensor.handlers.common import as_secret, result_dtype, session_of, wrap, write
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret


def each_term(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of a linear operator of one tensor: ``op`` on every term, public arguments as they are."""

    def handler(x: SharedTensor, *args: Any, **kwargs: Any) -> SharedTensor:
        held = secret(x)
        for extra in (*args, *kwargs.values()):
            if isinstance(extra, SharedTensor):
                raise UnsupportedOperation(f"{op}: an index or argument is secret; only public ones are supported")
        return wrap(held.linear(lambda terms: torch.stack([op(term, *args, **kwargs) for term in terms])), x.dtype)

    return handler


def join(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of cat and stack: all tensors at common fraction bits, pending ones settled."""

    def handler(tensors: Sequence[Tensor], dim: int = 0) -> SharedTensor:
        session = session_of(*tensors)
        held = [as_secret(x, session).settle() for x in tensors]
        bits = max(s.fraction_bits for s in held)
        terms = [s.at_bits(bits) for s in held]
        parts = [op([t[i] for t in terms], dim) for i in range(terms[0].shape[0])]
        return wrap(Secret(session, bits, payload=torch.stack(parts)), result_dtype(*tensors))

    return handler


def clone(x: SharedTensor, *, memory_format: torch.memory_format | None = None) -> SharedTensor:
    """clone"""
    if memory_format not in (None, torch.preserve_format, torch.contiguous_format):
        raise UnsupportedOperation(f"clone to {memory_format}; a SharedTensor is kept in contiguous_format")
    if memory_format == torch.contiguous_format:
        return wrap(secret(x).linear(lambda terms: terms.clone(memory_format=torch.contiguous_format)), x.dtype)
    return wrap(secret(x).linear(torch.clone), x.dtype)


def to_copy(
    x: SharedTensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: object
) -> SharedTensor:
    """_to_copy: to float32, float64 or, from a comparison's result, to int64. The shares stay as they are."""
    target = dtype or x.dtype
    if device is not None and torch.device(device).type != x.device.type:
        raise UnsupportedOperation(f"a SharedTensor stays on {x.device}; found a move to {device}")
    whole = not x.dtype.is_floating_point
    if target not in (torch.float32, torch.float64) and not (whole and target in (torch.int64, torch.bool)):
        raise UnsupportedOperation(
            f"a SharedTensor of {x.dtype} cannot become {target}: its numbers are fixed-point; supported are float32 "
            "and float64, which change the logical dtype only"
        )
    if target == torch.bool and x.dtype != torch.bool:
        raise UnsupportedOperation("to(bool) of whole numbers has no secret-shared version; compare with != 0")
    return wrap(secret(x).linear(torch.clone), target)


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """copy_, also of plain values into a SharedTensor."""
    return write(target, as_secret(source, session_of(target, source)))


def fill_(target: Tensor, value: Tensor | float) -> Tensor:
    """fill_ and, with 0, zero_: a public value."""
    return write(target, as_secret(value, session_of(target)))


def zero_(target: Tensor) -> Tensor:
    """zero_"""
    return fill_(target, 0)


def like_filled(value: float) -> Callable[..., SharedTensor]:
    """The handler of zeros_like and ones_like."""

    def handler(x: SharedTensor, *, dtype: torch.dtype | None = None, **_: object) -> SharedTensor:
        return filled(x, tuple(x.shape), value, dtype)

    return handler


def pad(x: SharedTensor, sizes: Sequence[int], value: float = 0) -> SharedTensor:
    """constant_pad_nd with zeros; negative sizes crop."""
    if value != 0:
        raise UnsupportedOperation(f"padding a secret with {value}; supported is padding with 0")
    return wrap(secret(x).linear(lambda terms: torch.ops.aten.constant_pad_nd(terms, list(sizes))), x.dtype)


def new_filled(value: float) -> Callable[..., SharedTensor]:
    """The handler of new_zeros and new_ones."""

    def handler(x: SharedTensor, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: object) -> SharedTensor:
        return filled(x, tuple(size), value, dtype)

    return handler


def index(x: SharedTensor, indices: Sequence[Tensor | None]) -> SharedTensor:
    """index.Tensor with public indices."""
    if not isinstance(x, SharedTensor) or any(isinstance(i, SharedTensor) for i in indices):
        raise UnsupportedOperation("indexing by a secret has no secret-shared version yet; use a public index")
    key = tuple(slice(None) if i is None else i for i in indices)
    return wrap(secret(x).linear(lambda terms: torch.stack([term[key] for term in terms])), x.dtype)


def index_put_(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> Tensor:
    """index_put_ and _index_put_impl_ with public indices."""
    return write(x, secret(index_put(x, indices, values, accumulate)))


def index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> SharedTensor:
    """index_put with public indices."""
    if not isinstance(x, SharedTensor):
        raise SecretError("a secret cannot be put into a plain tensor; share that tensor first")
    if any(isinstance(i, SharedTensor) for i in indices):
        raise UnsupportedOperation("indexing by a secret has no secret-shared version yet; use a public index")
    target, source = secret(x).settle(), as_secret(values, x.session).settle()
    bits = max(target.fraction_bits, source.fraction_bits)
    pairs = zip(target.at_bits(bits), source.at_bits(bits), strict=True)
    terms = torch.stack([a.index_put(tuple(indices), b, accumulate) for a, b in pairs])
    return wrap(Secret(x.session, bits, payload=terms), x.dtype)


def fused_add(op: Callable[..., Tensor]) -> Callable[..., SharedTensor]:
    """The handler of index_add and scatter_add: ``op(x, dim, public index, source)``, linear in x and source."""

    def handler(x: Tensor, dim: int, index: Tensor, source: Tensor) -> SharedTensor:
        session = session_of(x, source)
        if isinstance(index, SharedTensor):
            raise UnsupportedOperation("indexing by a secret has no secret-shared version yet; use a public index")
        target, added = as_secret(x, session).settle(), as_secret(source, session).settle()
        bits = max(target.fraction_bits, added.fraction_bits)
        pairs = zip(target.at_bits(bits), added.at_bits(bits), strict=True)
        terms = torch.stack([op(a, dim, index, b) for a, b in pairs])
        return wrap(Secret(session, bits, payload=terms), result_dtype(x, source))

    return handler
