"""Largest and smallest elements, sorting and what is picked by rank, with secret indices (int64).

An index that comes out of these remembers what it was made of (see ``encml.tensor.handlers.lookup``): gather, scatter
and every backward that uses it compare nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from encml.errors import InvalidTensor, UnsupportedOperation
from encml.mpc import comparison, ordering
from encml.mpc.comparison import SecretBits
from encml.mpc.flags import packed, unpacked
from encml.mpc.sharing import public
from encml.mpc.sorting import arrange
from encml.tensor.handlers.common import axis, wrap
from encml.tensor.handlers.lookup import ARRANGED, ONE_HOT, Arranged, memory_of
from encml.tensor.handlers.signs import EXTREME, Extreme, laid_out
from encml.tensor.secret import Deferred, Secret
from encml.tensor.shared import SharedTensor, secret

Dims = int | Sequence[int] | None


# Largest and smallest ---------------------------------------------------------------------------------------------


def max_dim(x: SharedTensor, dim: int, keepdim: bool = False) -> tuple[SharedTensor, SharedTensor]:
    """max.dim: (largest elements, where each stands first).

    See ``encml.mpc.ordering.maximum_cost``; 10 log2 k rounds and 27.3 (k - 1) B a party and column, or as few as 13
    rounds where columns are few. The index is worked out when it is used: 2 rounds, 8 log2 k B a party.
    """
    return _extreme(x, dim, keepdim, 1)


def min_dim(x: SharedTensor, dim: int, keepdim: bool = False) -> tuple[SharedTensor, SharedTensor]:
    """min.dim"""
    return _extreme(x, dim, keepdim, -1)


def amax(x: SharedTensor, dim: Dims = (), keepdim: bool = False) -> SharedTensor:
    """amax, and max of all elements."""
    return wrap(_largest(x, dim, keepdim, (1,))[0], x.dtype)


def amin(x: SharedTensor, dim: Dims = (), keepdim: bool = False) -> SharedTensor:
    """amin, and min of all elements."""
    return wrap(_largest(x, dim, keepdim, (-1,))[0], x.dtype)


def aminmax(x: SharedTensor, *, dim: Dims = None, keepdim: bool = False) -> tuple[SharedTensor, SharedTensor]:
    """aminmax: both in the rounds of one."""
    low, high = _largest(x, dim, keepdim, (-1, 1))
    return wrap(low, x.dtype), wrap(high, x.dtype)


def argmax(x: SharedTensor, dim: int | None = None, keepdim: bool = False) -> SharedTensor:
    """argmax: where the largest element stands first, as a secret int64."""
    return _place(x, dim, keepdim, 1)


def argmin(x: SharedTensor, dim: int | None = None, keepdim: bool = False) -> SharedTensor:
    """argmin"""
    return _place(x, dim, keepdim, -1)


def _columns(x: SharedTensor, dims: Dims) -> tuple[Tensor, list[int], list[int]]:
    """(payload (S, k, n), shape of the columns, the same with dimensions of 1): k along ``dims``, all if none."""
    named = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
    places = sorted({axis(x, d) for d in named}) if x.ndim else []
    payload = secret(x).replicate()
    kept = [1 if d + 1 in places else size for d, size in enumerate(x.shape)]
    rest = [size for d, size in enumerate(x.shape) if d + 1 not in places]
    k, n = math.prod(x.shape[place - 1] for place in places), math.prod(rest)
    if k == 0:
        raise InvalidTensor(
            f"no largest of no elements, of shape {tuple(x.shape)}: reduce over a dimension that has some"
        )
    return payload.movedim(places, list(range(1, len(places) + 1))).reshape(len(payload), k, n), rest, kept


def _bits(x: SharedTensor) -> int:
    """In how many bits elements are compared."""
    return x.session.compared_bits(secret(x).fraction_bits)


def _largest(x: SharedTensor, dims: Dims, keepdim: bool, ways: tuple[int, ...]) -> list[Secret]:
    """The largest (way 1) or smallest (-1) elements, side by side."""
    payload, rest, kept = _columns(x, dims)
    columns = torch.cat([payload if way > 0 else -payload for way in ways], 2)
    found = ordering.maximum(x.session.parties, columns, bits=_bits(x))
    shape = kept if keepdim else rest
    parts = found.view(len(found), len(ways), *shape).unbind(1)
    value, named = secret(x), dims if isinstance(dims, int) else tuple(dims or ())

    def reduced(t: Tensor) -> Tensor:
        return torch.amax(t, named, keepdim)

    return [
        laid_out(value.like(part if way > 0 else -part), reduced, x).keep(EXTREME, Extreme.of(value, way, kept))
        for way, part in zip(ways, parts, strict=True)
    ]


def _extreme(x: SharedTensor, dim: int, keepdim: bool, way: int) -> tuple[SharedTensor, SharedTensor]:
    value, parties = secret(x), x.session.parties
    payload, rest, kept = _columns(x, dim)
    # One entry is its own maximum, but the result has memory of its own.
    columns = payload.clone() if payload.shape[1] == 1 else payload
    found, hot = ordering.maximum_and_winner(parties, columns if way > 0 else -columns, bits=_bits(x))
    shape = kept if keepdim else rest
    found = found.view(len(found), *shape)
    values = laid_out(value.like(found if way > 0 else -found), lambda t: torch.max(t, dim, keepdim).values, x)
    values.keep(EXTREME, Extreme.of(value, way, kept))
    return wrap(values, x.dtype), _index(x, hot, shape)


def _index(x: SharedTensor, hot: SecretBits, shape: Sequence[int]) -> SharedTensor:
    """Where the bits (k, columns) are 1, as a secret index that is worked out when it is used."""
    session = x.session

    def make() -> Secret:
        places = ordering.position(session.parties, hot)
        return Secret(session, 0, payload=places.view(len(places), *shape))

    blank = torch.empty((session.parties.shares_here, *shape), dtype=torch.int64, device=session.parties.device)
    index = wrap(Secret(session, 0, payload=blank), torch.int64)
    index._secret = Deferred(session, make).keep(ONE_HOT, hot)
    return index


def _place(x: SharedTensor, dim: int | None, keepdim: bool, way: int) -> SharedTensor:
    payload, rest, kept = _columns(x, dim)
    hot = ordering.winner(x.session.parties, payload if way > 0 else -payload, bits=_bits(x), operation="argmax")
    return _index(x, hot, kept if keepdim else rest)


# Running -----------------------------------------------------------------------------------------------------------


def cummax(x: SharedTensor, dim: int) -> tuple[SharedTensor, SharedTensor]:
    """cummax: (largest so far, where it stood last). 10 log2 k rounds, 38.8 k log2 k B a party and column."""
    return _running(x, dim, 1)


def cummin(x: SharedTensor, dim: int) -> tuple[SharedTensor, SharedTensor]:
    """cummin"""
    return _running(x, dim, -1)


def _running(x: SharedTensor, dim: int, way: int) -> tuple[SharedTensor, SharedTensor]:
    """Prefixes of doubling length: what stands ``span`` before wins if it is larger (Hillis and Steele 1986)."""
    value, parties, place = secret(x), x.session.parties, axis(x, dim)
    payload = value.replicate()
    columns = payload.movedim(place, 1) if x.ndim else payload[:, None]
    k = columns.shape[1]
    numbers = torch.arange(k).view(k, *(1,) * (columns.ndim - 2)).expand(columns.shape[1:]).contiguous()
    best = torch.stack([columns if way > 0 else -columns, public(parties, numbers)], 1)
    span = 1
    while span < k and best.numel():
        earlier, later = best[:, :, : k - span], best[:, :, span:]
        bits = unpacked(comparison.negative(parties, later[:, 0] - earlier[:, 0], _bits(x), "cummax"))
        both = packed(bits[:, None].expand(-1, 2, *bits.shape[1:]))
        better = later + comparison.select(parties, both, earlier - later, "cummax")
        best, span = torch.cat([best[:, :, :span], better], 2), 2 * span

    def back(terms: Tensor) -> Tensor:
        return (terms.movedim(1, place) if x.ndim else terms[:, 0]).contiguous()

    found, places = best.unbind(1)
    index = Secret(x.session, 0, payload=back(places))
    return wrap(value.like(back(found if way > 0 else -found)), x.dtype), wrap(index, torch.int64)


# By rank ----------------------------------------------------------------------------------------------------------


def sort(
    x: SharedTensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[SharedTensor, SharedTensor]:
    """sort, msort, argsort: always stable. See ``encml.mpc.sorting.arrange``: 12 rounds for few elements."""
    return _ranked(x, dim, None, descending)


def sort_stable(
    x: SharedTensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[SharedTensor, SharedTensor]:
    """sort.stable"""
    return _ranked(x, dim, None, descending)


def topk(
    x: SharedTensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[SharedTensor, SharedTensor]:
    """topk, always sorted: comparisons only as far as the k first ranks need them."""
    size = _length(x, dim)
    if not 0 <= k <= size:
        raise InvalidTensor(f"topk: found k = {k}, expected 0 to {size}, the elements along dimension {dim}")
    return _ranked(x, dim, range(k), largest)


def kthvalue(x: SharedTensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[SharedTensor, SharedTensor]:
    """kthvalue: the k-th smallest, k from 1."""
    size = _length(x, dim)
    if not 1 <= k <= size:
        raise InvalidTensor(f"kthvalue: found k = {k}, expected 1 to {size}, the elements along dimension {dim}")
    return _ranked(x, dim, range(k - 1, k), False, squeeze=not keepdim)


def median_dim(x: SharedTensor, dim: int = -1, keepdim: bool = False) -> tuple[SharedTensor, SharedTensor]:
    """median.dim, nanmedian.dim: the lower one of two in the middle."""
    size = _length(x, dim)
    if not size:
        raise InvalidTensor(f"median of no elements, of shape {tuple(x.shape)}")
    return _ranked(x, dim, range((size - 1) // 2, (size - 1) // 2 + 1), False, squeeze=not keepdim)


def median(x: SharedTensor) -> SharedTensor:
    """median, nanmedian of all elements."""
    flat = wrap(secret(x).linear(lambda terms: terms.reshape(len(terms), -1)), x.dtype)
    return median_dim(flat, 0)[0]


def _length(x: SharedTensor, dim: int) -> int:
    return x.shape[axis(x, dim) - 1] if x.ndim else 1


def _ranked(
    x: SharedTensor, dim: int, wanted: range | None, descending: bool, squeeze: bool = False
) -> tuple[SharedTensor, SharedTensor]:
    """The wanted ranks along a dimension, and where they stood."""
    value, session = secret(x), x.session
    payload = value.payload
    place, size = axis(x, dim), _length(x, dim)
    # Values are below 2^(62 - 2f), and what they leave is for telling equal ones apart.
    spare, needed = 2 * session.fraction_bits - value.fraction_bits, (size - 1).bit_length() if size else 0
    if needed > spare:
        raise UnsupportedOperation(
            f"sorting {size} elements takes {needed} bits beside those of the values, and {session.fraction_bits} "
            f"fraction bits leave {spare}"
        )
    columns = payload.movedim(place, 1) if x.ndim else payload[:, None]
    others = columns.shape[2:]
    flat = columns.reshape(len(columns), size, others.numel())
    arrangement, values, places = arrange(session.parties, -flat if descending else flat, wanted)
    kept = values.shape[1]

    def back(terms: Tensor) -> Tensor:
        wide = terms.reshape(len(terms), kept, *others)
        return (wide[:, 0] if squeeze or not x.ndim else wide.movedim(1, place)).contiguous()

    ranked, index = value.like(back(-values if descending else values)), Secret(session, 0, payload=back(places))
    if wanted is None:
        ranked, index = (laid_out(part, lambda t: torch.sort(t, dim).values, x) for part in (ranked, index))
    if x.ndim:
        shape = tuple(kept if d + 1 == place else n for d, n in enumerate(x.shape))
        index.keep(ARRANGED, Arranged(arrangement, place - 1, shape, memory_of(index.shape, index.terms.stride()[1:])))
    return wrap(ranked, x.dtype), wrap(index, torch.int64)
