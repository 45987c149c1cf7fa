"""Views: the same operation on the payload, behind its leading axis, as a true view of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.handlers.common import as_secret, axis, session_of, wrap, write
from encml.tensor.shared import SharedTensor, around, secret


def _viewed(x: SharedTensor, look: Callable[[Tensor], Tensor]) -> SharedTensor:
    return wrap(secret(x).view(look), x.dtype)


def same(x: SharedTensor) -> SharedTensor:
    """detach, alias: another tensor with the very same secret, which is not worked out for it if it was not yet."""
    held = secret(x)
    if held.made:
        return wrap(held, x.dtype)
    return around(held, x, x.dtype)


def view(x: SharedTensor, size: Sequence[int]) -> SharedTensor:
    """view, _unsafe_view."""
    return _viewed(x, lambda p: p.view(p.shape[0], *_resolve(size, x.numel())))


def transpose(x: SharedTensor, a: int, b: int) -> SharedTensor:
    """transpose.int"""
    first, second = axis(x, a), axis(x, b)
    return _viewed(x, lambda p: p.transpose(first, second)) if x.ndim else same(x)


def t(x: SharedTensor) -> SharedTensor:
    """t"""
    return _viewed(x, lambda p: p.transpose(1, 2)) if x.ndim == 2 else same(x)


def permute(x: SharedTensor, dims: Sequence[int]) -> SharedTensor:
    """permute"""
    axes = [axis(x, dim) for dim in dims]
    return _viewed(x, lambda p: p.permute(0, *axes))


def expand(x: SharedTensor, size: Sequence[int], implicit: bool = False) -> SharedTensor:
    """expand"""
    missing = len(size) - x.ndim
    return _viewed(x, lambda p: p[(slice(None), *(None,) * missing)].expand(-1, *size))


def unsqueeze(x: SharedTensor, dim: int) -> SharedTensor:
    """unsqueeze"""
    place = axis(x, dim, new=1)
    return _viewed(x, lambda p: p.unsqueeze(place))


def squeeze(x: SharedTensor, dim: int | Sequence[int] | None = None) -> SharedTensor:
    """squeeze, squeeze.dim, squeeze.dims"""
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = tuple(axis(x, d) for d in dims) if x.ndim else ()
    return _viewed(x, lambda p: p.squeeze(axes))


def select(x: SharedTensor, dim: int, index: int) -> SharedTensor:
    """select.int"""
    place = axis(x, dim)
    return _viewed(x, lambda p: p.select(place, index))


def slice_(
    x: SharedTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> SharedTensor:
    """slice.Tensor"""
    place = axis(x, dim)
    return _viewed(x, lambda p: p[(slice(None),) * place + (slice(start, end, step),)])


def narrow(x: SharedTensor, dim: int, start: int, length: int) -> SharedTensor:
    """narrow, for narrow_copy"""
    first = start if start >= 0 else start + x.shape[dim]
    return slice_(x, dim, first, first + length)


def split(x: SharedTensor, size: int | Sequence[int], dim: int = 0) -> list[SharedTensor]:
    """split.Tensor, split_with_sizes"""
    place = axis(x, dim)
    sizes = size if isinstance(size, int) else list(size)
    parts = torch.split(secret(x).terms, sizes, place)
    return [_viewed(x, partial(_part, sizes=sizes, place=place, i=i)) for i in range(len(parts))]


def _part(terms: Tensor, sizes: int | list[int], place: int, i: int) -> Tensor:
    return torch.split(terms, sizes, place)[i]


def unbind(x: SharedTensor, dim: int = 0) -> list[SharedTensor]:
    """unbind.int"""
    return [select(x, dim, i) for i in range(x.shape[dim])]


def diagonal(x: SharedTensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> SharedTensor:
    """diagonal"""
    first, second = axis(x, dim1), axis(x, dim2)
    return _viewed(x, lambda p: p.diagonal(offset, first, second))


def unfold(x: SharedTensor, dimension: int, size: int, step: int) -> SharedTensor:
    """unfold"""
    if not x.ndim:
        return _viewed(x, lambda p: p.unsqueeze(1)[:, :size])
    place = axis(x, dimension)
    return _viewed(x, lambda p: p.unfold(place, size, step))


def as_strided(
    x: SharedTensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> SharedTensor:
    """as_strided: every share is looked at with these strides.

    Raises UnsupportedOperation for a secret whose shares are not laid out as PyTorch would lay out their values, and
    for an offset into the memory of something that x is but a later part of: derivatives would look in the wrong place.
    """
    held = secret(x)
    later = held.terms.storage_offset() != held.whole.storage_offset() and storage_offset is not None
    if held.terms.stride()[1:] != x.stride() or later:
        raise UnsupportedOperation("as_strided: the shares of this view are laid out in another way; clone() it first")

    def look(p: Tensor) -> Tensor:
        return p.as_strided((p.shape[0], *size), (p.stride(0), *stride), p.storage_offset() + (storage_offset or 0))

    return _viewed(x, look)


def copied(view: Callable[..., Any]) -> Callable[..., Any]:
    """The handler of the form of a view that gives a copy (transpose_copy and its kin)."""

    def handler(x: SharedTensor, *args: Any, **kwargs: Any) -> Any:
        found = view(x, *args, **kwargs)
        return [_copy(part) for part in found] if isinstance(found, list) else _copy(found)

    return handler


def written(view: Callable[..., SharedTensor]) -> Callable[..., SharedTensor]:
    """The handler of the form of a view that gives a copy of x with ``source`` where the view is (select_scatter, ...).

    Settles both.
    """

    def handler(x: Tensor, source: Tensor, *args: Any, **kwargs: Any) -> SharedTensor:
        session = session_of(x, source)
        whole = _copy(wrap(as_secret(x, session).settle(), x.dtype))
        write(view(whole, *args, **kwargs), as_secret(source, session), source.dtype)
        return whole

    return handler


def _copy(x: SharedTensor) -> SharedTensor:
    return wrap(secret(x).linear(lambda p: p.clone(memory_format=torch.contiguous_format)), x.dtype)


def _resolve(size: Sequence[int], numel: int) -> list[int]:
    """Replace a -1 by the size that it stands for: the payload has S times the elements."""
    known = 1
    for s in size:
        known *= s if s != -1 else 1
    return [s if s != -1 else (numel // known if known else 0) for s in size]


def in_place(view: Callable[..., SharedTensor], op: Any) -> Callable[..., SharedTensor]:
    """The handler of ``op``, which makes its own argument a view of what it was (squeeze_ and its kin)."""

    def handler(x: SharedTensor, *args: Any) -> SharedTensor:
        x._secret = secret(view(x, *args))
        with torch._C._DisableTorchDispatch():
            op(x, *args)
        return x

    return handler
