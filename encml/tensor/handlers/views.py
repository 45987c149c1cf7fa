"""Views: the same operation on the payload, behind its leading axis, as a true view of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from encml.tensor.handlers.common import wrap
from encml.tensor.shared import SharedTensor, secret


def _viewed(x: SharedTensor, view: Callable[[Tensor], Tensor]) -> SharedTensor:
    base = secret(x).settle()
    base.viewed = True
    result = base.like(view(base.payload))
    result.viewed = True
    return wrap(result, x.dtype)


def _shift(dim: int) -> int:
    """A dimension of the tensor as one of its payload; negative ones count from the end in both."""
    return dim + 1 if dim >= 0 else dim


def same(x: SharedTensor) -> SharedTensor:
    """detach, alias: another tensor with the very same secret."""
    return wrap(secret(x), x.dtype)


def view(x: SharedTensor, size: Sequence[int]) -> SharedTensor:
    """view, _unsafe_view."""
    return _viewed(x, lambda p: p.view(p.shape[0], *_resolve(size, x.numel())))


def transpose(x: SharedTensor, a: int, b: int) -> SharedTensor:
    """transpose.int"""
    return _viewed(x, lambda p: p.transpose(_shift(a), _shift(b))) if x.ndim else same(x)


def t(x: SharedTensor) -> SharedTensor:
    """t"""
    return _viewed(x, lambda p: p.transpose(1, 2)) if x.ndim == 2 else same(x)


def permute(x: SharedTensor, dims: Sequence[int]) -> SharedTensor:
    """permute"""
    return _viewed(x, lambda p: p.permute(0, *(dim % x.ndim + 1 for dim in dims)))


def expand(x: SharedTensor, size: Sequence[int], implicit: bool = False) -> SharedTensor:
    """expand"""
    missing = len(size) - x.ndim
    return _viewed(x, lambda p: p[(slice(None), *(None,) * missing)].expand(-1, *size))


def unsqueeze(x: SharedTensor, dim: int) -> SharedTensor:
    """unsqueeze"""
    return _viewed(x, lambda p: p.unsqueeze(_shift(dim)))


def squeeze(x: SharedTensor, dim: int | Sequence[int] | None = None) -> SharedTensor:
    """squeeze, squeeze.dim, squeeze.dims"""
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    shifted = tuple(d % max(x.ndim, 1) + 1 for d in dims) if x.ndim else ()
    return _viewed(x, lambda p: p.squeeze(shifted))


def select(x: SharedTensor, dim: int, index: int) -> SharedTensor:
    """select.int"""
    return _viewed(x, lambda p: p.select(_shift(dim), index))


def slice_(
    x: SharedTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> SharedTensor:
    """slice.Tensor"""
    dim %= x.ndim
    length = x.shape[dim]
    return _viewed(x, lambda p: p[(slice(None),) * (dim + 1) + (slice(*slice(start, end, step).indices(length)),)])


def split(x: SharedTensor, size: int | Sequence[int], dim: int = 0) -> list[SharedTensor]:
    """split.Tensor, split_with_sizes"""
    dim %= x.ndim
    length = x.shape[dim]
    sizes = list(size) if not isinstance(size, int) else [min(size, length - s) for s in range(0, length, size)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice_(x, dim, start, start + count) for start, count in zip(starts, sizes, strict=True)]


def unbind(x: SharedTensor, dim: int = 0) -> list[SharedTensor]:
    """unbind.int"""
    return [select(x, dim, i) for i in range(x.shape[dim])]


def diagonal(x: SharedTensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> SharedTensor:
    """diagonal"""
    return _viewed(x, lambda p: p.diagonal(offset, _shift(dim1), _shift(dim2)))


def unfold(x: SharedTensor, dimension: int, size: int, step: int) -> SharedTensor:
    """unfold"""
    return _viewed(x, lambda p: p.unfold(_shift(dimension), size, step))


def _resolve(size: Sequence[int], numel: int) -> list[int]:
    """Replace a -1 by the size that it stands for: the payload has S times the elements."""
    known = 1
    for s in size:
        known *= s if s != -1 else 1
    return [s if s != -1 else (numel // known if known else 0) for s in size]
