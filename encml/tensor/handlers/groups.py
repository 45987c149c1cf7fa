"""Reductions of groups of elements that a public index makes: scatter_reduce, index_reduce."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.handlers.algebra import prod_dim
from encml.tensor.handlers.choosing import where
from encml.tensor.handlers.common import as_secret, by_public, session_of, wrap
from encml.tensor.handlers.copies import index, index_put, join, moved, must_be_public
from encml.tensor.handlers.ordering import amax, amin
from encml.tensor.shared import SharedTensor, secret

aten = torch.ops.aten


def scatter_reduce(
    x: Tensor, dim: int, places: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> SharedTensor:
    """scatter_reduce.two with a public index. Sums and means: local. Others: as amax or prod of the largest group."""
    must_be_public([places])
    if reduce in ("sum", "mean"):
        total = moved(aten.scatter_reduce.two, 0, 3)(x, dim, places, source, "sum", include_self=include_self)
        return total if reduce == "sum" else _divided(total, dim, places, include_self)
    if not places.numel():
        return wrap(as_secret(x, session_of(x, source)).linear(torch.clone), x.dtype)
    session = session_of(x, source)
    held = [wrap(as_secret(v, session), x.dtype) for v in (x, source)]
    flat = join(torch.cat)([wrap(secret(v).linear(lambda p: p.reshape(len(p), -1)), x.dtype) for v in held])
    targets, groups = _groups(x.shape, dim, places, source.shape)
    # Groups are filled up with their first element.
    again = groups == groups[:, :1]
    again[:, 0] = False
    if include_self:
        groups, again = torch.cat([targets[:, None], groups], 1), F.pad(again, (1, 0))
    candidates = index(flat, [groups])
    if reduce == "prod":
        reduced = prod_dim(where(again, torch.ones((), dtype=x.dtype), candidates), 1)
    elif reduce in ("amax", "amin"):
        reduced = (amax if reduce == "amax" else amin)(candidates, [1])
    else:
        raise UnsupportedOperation(f"scatter_reduce: {reduce!r}; sum, mean, prod, amax and amin are supported")
    own = wrap(secret(held[0]).linear(lambda p: p.reshape(len(p), -1)), x.dtype)
    put = index_put(own, [targets], reduced)
    return wrap(secret(put).linear(lambda p: p.reshape(len(p), *x.shape)), x.dtype)


def index_reduce(
    x: Tensor, dim: int, places: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> SharedTensor:
    """index_reduce with a public index: see ``scatter_reduce``."""
    must_be_public([places])
    along = [1] * max(source.ndim, 1)
    along[dim] = places.numel()
    spread = places.reshape(along).expand(source.shape) if source.ndim else places.reshape(())
    return scatter_reduce(x, dim, spread, source, reduce, include_self=include_self)


def _divided(total: SharedTensor, dim: int, places: Tensor, include_self: bool) -> SharedTensor:
    ones = torch.ones(places.shape, dtype=torch.float64)
    counts = torch.full(total.shape, float(include_self), dtype=torch.float64).scatter_add(dim, places, ones)
    return wrap(by_public(torch.mul, secret(total), counts.clamp_min(1).reciprocal()), total.dtype)


def _groups(shape: torch.Size, dim: int, places: Tensor, source: torch.Size) -> tuple[Tensor, Tensor]:
    """Which elements of a target of ``shape`` are met (n), and by which of target and source laid end to end (n, m)."""
    if not shape:
        return torch.zeros(1, dtype=torch.int64), 1 + torch.arange(places.numel())[None]
    to = torch.meshgrid(*(torch.arange(n) for n in places.shape), indexing="ij")
    start = _ravel([*to[: dim % len(shape)], places, *to[dim % len(shape) + 1 :]], shape).flatten()
    origin = _ravel(list(to), source).flatten() + shape.numel()
    order = torch.argsort(start, stable=True)
    targets, counts = torch.unique(start, return_counts=True)
    first = counts.cumsum(0) - counts
    slots = torch.arange(int(counts.max()))
    chosen = first[:, None] + torch.where(slots < counts[:, None], slots, 0)
    return targets, origin[order][chosen]


def _ravel(coordinates: list[Tensor], shape: torch.Size) -> Tensor:
    flat = torch.zeros_like(coordinates[0])
    for size, coordinate in zip(shape, coordinates, strict=True):
        flat = flat * size + coordinate
    return flat
