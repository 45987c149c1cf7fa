"""Reading and writing by a secret index.

An index is a SharedTensor of int64 (share a LongTensor) or of floats that hold whole numbers. It is never opened: its
bits become one secret bit for every place that it may mean, of which one is 1, and those bits choose. So a look-up
costs in proportion to the number of places. What has no place (negative numbers, too large ones) reads zeros and writes
nothing, where PyTorch raises an error: nobody sees that it happened.

Indices that an operation here gave out (argmax, max, sort, topk, ...) know how they came to be, so that nothing is
worked out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from encml.errors import InvalidTensor, UnsupportedOperation
from encml.mpc import comparison
from encml.mpc.circuits import bits_at, one_hot
from encml.mpc.comparison import SecretBits
from encml.mpc.flags import inverted, packed, unpacked
from encml.mpc.sharing import public
from encml.mpc.sorting import Arrangement
from encml.ring.devices import beside
from encml.ring.layout import stack
from encml.tensor.handlers.arithmetic import add, add_secrets, mul, scale
from encml.tensor.handlers.choosing import masked_fill
from encml.tensor.handlers.common import as_secret, axis, bilinear, by_public, session_of, wrap
from encml.tensor.public import Number
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret

Handler = Callable[..., Any]

Memory = list[tuple[int, int]]

ONE_HOT = "one-hot"
"""The name of a fact about an index: bits (places, elements), elements as in its contiguous memory."""
ARRANGED = "arranged"
"""The name of a fact about an index: the ``Arranged`` that it describes."""


_MASKS = "a secret mask does not say how many elements it picks: use torch.where, or write one number by x[mask] = 0"


@dataclass(frozen=True, slots=True, repr=False)
class Arranged:
    """Indices along ``dim`` of an index of ``shape`` that are what an arrangement of columns did.

    ``memory`` tells a view that shows all of it as it is, but for dimensions of 1 (see ``memory_of``).
    """

    arrangement: Arrangement
    dim: int
    shape: tuple[int, ...]
    memory: Memory


def memory_of(shape: Sequence[int], stride: Sequence[int]) -> Memory:
    """Sizes and strides of the dimensions that matter."""
    return [(size, step) for size, step in zip(shape, stride, strict=True) if size != 1]


def by_index(plain: Handler, hidden: Handler, place: int) -> Handler:
    """The handler of an operator whose argument number ``place`` may be a public or a secret index."""

    def handler(*args: Any, **kwargs: Any) -> Any:
        index = args[place]
        several = index if isinstance(index, list | tuple) else (index,)
        chosen = hidden if any(isinstance(i, SharedTensor) for i in several) else plain
        return chosen(*args, **kwargs)

    return handler


def bits_of(index: SharedTensor, places: int, operation: str = "look_up") -> SecretBits:
    """One-hot bits (places, elements) of an index, elements in logical order; all 0 where it is out of range.

    Known from where the index comes from, or kept. Else 8 rounds or more (bits of the number, and two comparisons with
    the range, side by side), about 60 B a party and element, then log2 log2 places rounds and a bit for each place.
    """
    value, elements = secret(index), index.numel()
    steady = index.is_contiguous()
    known: SecretBits | None = value.fact_in_memory(ONE_HOT) if steady else None
    if known is not None and known.shape == (places, elements):
        return known
    if index.dtype == torch.bool:
        raise UnsupportedOperation(_MASKS)
    parties = index.session.parties
    payload, low = value.payload.flatten(1) if index.ndim else value.payload[:, None], value.fraction_bits
    last = public(parties, torch.tensor((places << low) - 1))[:, None]
    digits, outside = parties.together(
        lambda: bits_at(parties, payload, low, max((places - 1).bit_length(), 1), operation),
        # Below 0, or above the last place: never both.
        lambda: comparison.negative(parties, torch.stack([payload, last - payload], 1), operation=operation),
    )
    flags = unpacked(outside)
    inside = packed(inverted(parties, flags[:, 0] ^ flags[:, 1])).plane
    planes = one_hot(parties, digits, operation, inside)[:, :places]
    rows = unpacked(SecretBits(planes.flatten(0, 1), (elements,)))
    bits = packed(rows.view(len(planes), places, elements))
    if steady:
        value.keep(ONE_HOT, bits)
    return bits


def one_hot_rows(index: SharedTensor, places: int, dtype: torch.dtype) -> SharedTensor:
    """One-hot numbers (places, elements) of an index. 2 rounds and 8 B a party for each, after ``bits_of``."""
    bits = bits_of(index, places)
    payload = comparison.to_arithmetic(index.session.parties, bits, "look_up")
    return wrap(Secret(index.session, 0, payload=payload), dtype)


def one_hot_of(index: SharedTensor, num_classes: int = -1) -> SharedTensor:
    """F.one_hot of a secret index: (*shape, num_classes) of int64. The number of classes must be given."""
    if num_classes <= 0:
        raise InvalidTensor(
            f"one_hot: found num_classes={num_classes}; a secret index does not show how many classes there are, give "
            "their number"
        )
    rows = one_hot_rows(index, num_classes, torch.int64)
    return wrap(secret(rows).linear(lambda t: t.movedim(1, -1).reshape(len(t), *index.shape, num_classes)), rows.dtype)


# Along a dimension, an index for every element --------------------------------------------------------------------


def gather(x: Tensor, dim: int, index: SharedTensor, *, sparse_grad: bool = False) -> SharedTensor:
    """gather by a secret index: sum_j [index = j] x_j. 2 rounds and 5.3 B a party for each place of each index.

    By the indices of a sort of tensors of this shape: 3 rounds and 16 B a party and element of x.
    """
    session, place = session_of(x, index), axis(x, dim)
    value, columns = as_secret(x, session), _Columns(x, place, index)
    payload = columns.front(value.replicate())
    if columns.arrangement is not None:
        chosen = columns.wide(columns.arrangement.apply(columns.flat(payload), "look_up"))
    else:
        bits = columns.bits()
        wide = columns.cut(payload)[:, :, None].expand(-1, *bits.shape)
        chosen = comparison.select(session.parties, bits, wide, "look_up", [bits.shape[0]])[:, 0]
    return wrap(value.like(columns.back(chosen, index.shape)), x.dtype)


def scatter_add(x: Tensor, dim: int, index: SharedTensor, source: Tensor) -> SharedTensor:
    """scatter_add by a secret index: x_j + sum_i [index_i = j] source_i. Costs as ``gather``."""
    session, place = session_of(x, index, source), axis(x, dim)
    value, columns = as_secret(source, session), _Columns(x, place, index)
    payload = columns.cut(columns.front(value.replicate())[:, : columns.size])
    if columns.arrangement is not None:
        added = columns.wide(columns.arrangement.undo(columns.flat(payload), "look_up"))
    else:
        bits = columns.bits()
        places, size = bits.shape[:2]
        wide = payload[:, None].expand(-1, *bits.shape).flatten(1, 2)
        flat = SecretBits(bits.plane, (places * size, *columns.rest))
        added = comparison.select(session.parties, flat, wide, "look_up", [size] * places)
    whole = added.new_zeros((len(added), *columns.front_shape(x)))
    columns.cut(whole).copy_(added)
    result = value.like(columns.back(whole, x.shape))
    return wrap(result if _is_zero(x) else add_secrets(as_secret(x, session), result), x.dtype)


class _Columns:
    """An operand and a secret index with the dimension ``place`` (behind the leading axis) in front of the others."""

    def __init__(self, x: Tensor, place: int, index: SharedTensor) -> None:
        pairs = zip(x.shape, index.shape, strict=False)
        within = all(size <= most for d, (most, size) in enumerate(pairs) if d != place - 1)
        if max(x.ndim, 1) != max(index.ndim, 1) or not within:
            raise InvalidTensor(
                f"an index of shape {tuple(index.shape)} for a tensor of shape {tuple(x.shape)}: expected as many "
                f"dimensions, none larger but dimension {place - 1}"
            )
        self._place, self._index = place, index
        self._places = x.shape[place - 1] if x.ndim else 1
        shape = tuple(index.shape) or (1,)
        self.size = shape[place - 1]
        self.rest = (*shape[: place - 1], *shape[place:])
        fact: Arranged | None = secret(index).fact_in_memory(ARRANGED)
        self.arrangement: Arrangement | None = None
        if fact is not None and (fact.dim, fact.shape) == (place - 1, shape):
            others = (*x.shape[: place - 1], *x.shape[place:])
            same = fact.memory == memory_of(index.shape, index.stride())
            if same and fact.arrangement.rows == self._places and others == self.rest:
                self.arrangement = fact.arrangement

    def front(self, payload: Tensor) -> Tensor:
        """A payload (S, *shape) as (S, along the dimension, *others)."""
        return payload.movedim(self._place, 1) if payload.ndim > 1 else payload[:, None]

    def flat(self, payload: Tensor) -> Tensor:
        """(S, along the dimension, *others) as (S, along the dimension, columns)."""
        return payload.reshape(*payload.shape[:2], math.prod(self.rest))

    def wide(self, payload: Tensor) -> Tensor:
        """The inverse of ``flat``."""
        return payload.view(*payload.shape[:2], *self.rest)

    def front_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of ``front`` of x's payload, behind the leading axis."""
        return (self._places, *x.shape[: self._place - 1], *x.shape[self._place :])

    def back(self, payload: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of ``front``, to (S, *shape)."""
        return payload.movedim(1, self._place).reshape(len(payload), *shape).contiguous()

    def cut(self, payload: Tensor) -> Tensor:
        """What the index reaches of the other dimensions, as a view."""
        return payload[(slice(None), slice(None), *(slice(size) for size in self.rest))]

    def bits(self) -> SecretBits:
        """One-hot bits of the index: (places, along the dimension, *others)."""
        flags = unpacked(bits_of(self._index, self._places))
        shape = tuple(self._index.shape) or (1,)
        return packed(flags.view(*flags.shape[:2], *shape).movedim(self._place + 1, 2))


def scatter(x: Tensor, dim: int, index: SharedTensor, source: Tensor | Number) -> SharedTensor:
    """scatter.src, scatter.value by a secret index that names no place twice: x + scatter_add(source - gather(x))."""
    if not isinstance(source, Tensor):
        source = torch.full(index.shape, source, dtype=x.dtype)
    elif source.shape != index.shape:
        source = source[tuple(slice(size) for size in index.shape)]
    if _is_zero(x):
        return scatter_add(x, dim, index, source)
    session = session_of(x, index, source)
    change = add_secrets(as_secret(source, session), secret(gather(x, dim, index)), -1)
    return scatter_add(x, dim, index, wrap(change, x.dtype))


# Whole rows -------------------------------------------------------------------------------------------------------


def rows_of(x: Tensor, dim: int, index: SharedTensor) -> SharedTensor:
    """The slices of x along ``dim`` that a secret index of any shape names, in place of that dimension.

    One-hot rows times x: 8 B a party for each place of each index and 8 B for each element of the result.
    """
    session_of(x, index)
    place = axis(x, dim) - 1
    rows = one_hot_rows(index, x.shape[place], x.dtype)

    def pick(hot: Tensor, values: Tensor) -> Tensor:
        picked = hot.t() @ values.movedim(place, 0).reshape(len(hot), -1)
        rest = (*values.shape[:place], *values.shape[place + 1 :])
        return (
            picked.view((*index.shape, *rest))
            .movedim(tuple(range(index.ndim)), tuple(range(place, place + index.ndim)))
            .contiguous()
        )

    return wrap(bilinear(pick, rows, x), x.dtype)


def add_rows(x: Tensor, dim: int, index: SharedTensor, source: Tensor, *, alpha: Number = 1) -> SharedTensor:
    """index_add by a secret index: x plus what ``rows_of`` would give back, its adjoint."""
    session = session_of(x, index, source)
    place, shape = axis(x, dim) - 1, tuple(x.shape)
    rows = one_hot_rows(index, shape[place], source.dtype)

    def put(hot: Tensor, values: Tensor) -> Tensor:
        columns = values.movedim(tuple(range(place, place + index.ndim)), tuple(range(index.ndim)))
        summed = hot @ columns.reshape(hot.shape[1], -1)
        return summed.view(len(hot), *shape[:place], *shape[place + 1 :]).movedim(0, place).contiguous()

    added = bilinear(put, rows, source)
    if alpha != 1:
        added = scale(added, alpha)
    return wrap(added if _is_zero(x) else add_secrets(as_secret(x, session), added), x.dtype)


def index_rows(x: Tensor, indices: Sequence[Tensor | None]) -> SharedTensor:
    """index.Tensor with one secret index, as x[index] or x[:, index]."""
    dim, index = _only_index(indices)
    return rows_of(x, dim, index)


def put_rows(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> SharedTensor:
    """index_put with one secret index, which names no place twice unless values add up.

    With a secret mask instead, it takes one number only: how many it would need is secret.
    """
    dim, index = _only_index(indices)
    place = axis(x, dim) - 1
    if index.dtype == torch.bool:
        if values.numel() != 1:
            raise UnsupportedOperation(f"{_MASKS}; found {values.numel()} values")
        return _fill(x, place, index, values, accumulate)
    values = values.expand((*x.shape[:place], *index.shape, *x.shape[place + 1 :]))
    if not accumulate and not _is_zero(x):
        session = session_of(x, index, values)
        change = add_secrets(as_secret(values, session), secret(rows_of(x, dim, index)), -1)
        values = wrap(change, x.dtype)
    return add_rows(x, dim, index, values)


def _fill(x: Tensor, place: int, mask: SharedTensor, value: Tensor, accumulate: bool) -> SharedTensor:
    """x[mask] = value, or += value, for a secret mask of dimensions of x from ``place`` on."""
    after = x.ndim - place - mask.ndim
    if after < 0 or tuple(x.shape[place : place + mask.ndim]) != tuple(mask.shape):
        raise InvalidTensor(f"a mask of shape {tuple(mask.shape)} does not index {tuple(x.shape)} at dimension {place}")
    wide = wrap(secret(mask).linear(lambda t: t[(..., *(None,) * after)]), mask.dtype)
    one = _reshaped(value, ())
    return add(x, mul(wide, one)) if accumulate else masked_fill(x, wide, one)


def take(x: Tensor, index: SharedTensor) -> SharedTensor:
    """take by a secret index into all elements."""
    return rows_of(_reshaped(x, (x.numel(),)), 0, index)


def put(x: Tensor, index: SharedTensor, source: Tensor, accumulate: bool = False) -> SharedTensor:
    """put by a secret index into all elements, which names no place twice unless values add up."""
    values = _reshaped(source, index.shape)
    return _reshaped(put_rows(_reshaped(x, (x.numel(),)), [index], values, accumulate), x.shape)


def embedding(
    weight: Tensor, index: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> SharedTensor:
    """embedding, by a public index (local) or a secret one: see ``rows_of``."""
    if isinstance(index, SharedTensor):
        return rows_of(weight, 0, index)
    return wrap(secret(weight).linear(lambda terms: stack([term[index] for term in terms])), weight.dtype)


def embedding_backward(
    gradient: Tensor, index: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> SharedTensor:
    """embedding_dense_backward: gradients added up by row, none for the row ``padding_idx``."""
    session, width = session_of(gradient, index), gradient.shape[-1]
    if isinstance(index, SharedTensor):
        if scale_grad_by_freq:
            raise UnsupportedOperation("embedding: how often a secret index occurs is secret; scale_grad_by_freq=False")
        result = secret(add_rows(torch.zeros(num_weights, width, dtype=gradient.dtype), 0, index, gradient))
    else:
        flat = index.reshape(-1)

        def sums(terms: Tensor) -> Tensor:
            blank = terms.new_zeros((len(terms), num_weights, width))
            return blank.index_add_(1, beside(terms, flat), terms.reshape(len(terms), -1, width))

        result = as_secret(gradient, session).linear(sums)
        if scale_grad_by_freq:
            times = torch.bincount(flat, minlength=num_weights).clamp(min=1).double()
            result = by_public(torch.mul, result, (1 / times)[:, None])
    if padding_idx >= 0:
        keep = (torch.arange(num_weights) != padding_idx)[:, None]
        result = result.linear(lambda terms: terms * beside(terms, keep))
    return wrap(result, gradient.dtype)


# Parts ------------------------------------------------------------------------------------------------------------


@overload
def _reshaped(x: SharedTensor, shape: Sequence[int]) -> SharedTensor: ...
@overload
def _reshaped(x: Tensor, shape: Sequence[int]) -> Tensor: ...
def _reshaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    if not isinstance(x, SharedTensor):
        return x.reshape(tuple(shape))
    value = secret(x).linear(lambda terms: terms.reshape(len(terms), *shape))
    return wrap(value.keep("constant", secret(x).fact("constant")), x.dtype)


def _is_zero(x: Tensor) -> bool:
    """Whether everybody knows that x is 0, as a blank to scatter into is."""
    return secret(x).fact("constant") == 0 if isinstance(x, SharedTensor) else not x.any()


def _only_index(indices: Sequence[Tensor | None]) -> tuple[int, SharedTensor]:
    named = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    dim, index = named[0]
    if len(named) > 1 or not isinstance(index, SharedTensor):
        raise UnsupportedOperation("indexing by a secret: supported with one index at a time, as in x[index]")
    return dim, index
