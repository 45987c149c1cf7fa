"""Secrets opened for a look, and the float64 computation that runs beside them.

All three parties are in this process, so a value is the sum of what they hold: nothing is sent, no mask is drawn, and
the computation on shares goes on exactly as it would have. A secret that is worked out only when it is used (see
``Deferred``) is not worked out for a look; the plain operation that it came from says what it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from encml.ring.fixed import decode
from encml.tensor.handlers.attention import HIDDEN
from encml.tensor.handlers.norms import FINER
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret

_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
_blocks = itertools.count()


def opened(x: SharedTensor) -> Tensor:
    """The value of x (*shape), in float64, int64 or bool, with all the digits that are known.

    Pending products are taken as they are; hidden entries are -inf.
    """
    held = secret(x)
    finest: Secret = held.fact(FINER) or held
    values = as_kind(decode(finest.terms.sum(0), finest.fraction_bits, torch.float64), x.dtype)
    hidden = held.fact(HIDDEN)
    return values if hidden is None else values.masked_fill(hidden, -math.inf)


def as_kind(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 values as the kind of number that a SharedTensor of ``dtype`` holds."""
    if dtype.is_floating_point:
        return values
    return values != 0 if dtype == torch.bool else values.round().to(dtype)


def memory_of(x: SharedTensor) -> Hashable:
    """What x shares with its views."""
    held = secret(x)
    return held.memory if held.made else held


class Shadows:
    """What the float64 computation says of secrets: what they would be without any rounding since they were first seen.

    One plain tensor for each memory of a secret, so that views of secrets are views of shadows, and what is written
    into either is seen by both.
    """

    def __init__(self) -> None:
        self._twins: WeakKeyDictionary[Hashable, Tensor] = WeakKeyDictionary()
        self._fact = f"encml.check, block {next(_blocks)}"

    def __len__(self) -> int:
        """How many secrets' memories have a shadow."""
        return len(self._twins)

    def __contains__(self, x: SharedTensor) -> bool:
        """Whether x, or what it is a view of, has been seen."""
        held = secret(x)
        return held.memory in self._twins if held.made else held.fact(self._fact) is not None

    def of(self, x: SharedTensor) -> Tensor:
        """The shadow of x; when first seen, what it holds now."""
        held = secret(x)
        if not held.made:
            _, ideal = held.fact(self._fact) or (None, torch.zeros(x.shape, dtype=x.dtype))
            return ideal
        twin = self._twins.get(held.memory)
        if twin is None:
            whole = decode(held.whole.sum(0), held.fraction_bits, torch.float64)
            twin = self._twins[held.memory] = self._laid_out_as(x).copy_(whole)
            if held.fact(FINER) is not None:
                twin[0].copy_(opened(x))
        return as_kind(held.seen_in(twin)[0], x.dtype)

    def now(self, x: SharedTensor) -> Tensor:
        """The value of x, opened; of a secret that has not been worked out, what it would be."""
        held = secret(x)
        if held.made:
            return opened(x)
        exact, _ = held.fact(self._fact) or (torch.zeros(x.shape, dtype=x.dtype), None)
        return exact

    def set(self, x: SharedTensor, exact: Tensor, ideal: Tensor) -> None:
        """x and its views get the values ``ideal``; ``exact``: what x itself should be."""
        held = secret(x)
        if not held.made:
            held.keep(self._fact, (exact, ideal))
            return
        twin = self._twins.get(held.memory)
        if twin is None:
            twin = self._twins[held.memory] = self._laid_out_as(x)
        held.seen_in(twin)[0].copy_(ideal)

    @staticmethod
    def _laid_out_as(x: SharedTensor) -> Tensor:
        return torch.zeros_like(secret(x).whole[:1], dtype=torch.float64)


class Opened:
    """The secrets that go into one call: as they are before it, and, once ``settle`` was called, after it."""

    def __init__(self, secrets: Sequence[SharedTensor], shadows: Shadows) -> None:
        self._inputs = {id(x): x for x in secrets}
        self._values = {key: shadows.now(x) for key, x in self._inputs.items()}
        made = {key: secret(x).made for key, x in self._inputs.items()}
        self._bits = {key: secret(x).fraction_bits if made[key] else 0 for key, x in self._inputs.items()}
        self._settled = {
            key: not made[key] or (not secret(x).pending and secret(x).excess <= 0) for key, x in self._inputs.items()
        }

    def of(self, x: SharedTensor) -> Tensor:
        """The value that went into the call: rounded already, where the call did that in place."""
        return self._values[id(x)]

    def bits(self, x: SharedTensor) -> int:
        """The fraction bits of x before the call."""
        return self._bits[id(x)]

    def settled(self, x: SharedTensor) -> bool:
        """Whether x had no rounding ahead of it before the call."""
        return self._settled[id(x)]

    def settle(self, written: Collection[int]) -> float:
        """Look again at what the call did not write (``written``: by id); the largest change by rounding."""
        change = 0.0
        for key, x in self._inputs.items():
            if key not in written and not self._settled[key]:
                before, now = self._values[key], opened(x)
                self._values[key] = now
                moved = now.double() - before.double()
                change = max(change, largest(moved.masked_fill(now == before, 0)))
        return change


class Plain:
    """A plain operation in float64 on ``arguments`` (args, kwargs), each secret replaced by ``value_of`` it.

    What it writes in place, it writes into copies: ``copy_of`` a secret among the arguments.
    """

    def __init__(self, func: Callable[..., Any], arguments: Any, value_of: Callable[[SharedTensor], Tensor]) -> None:
        self._copies: dict[int, Tensor] = {}

        def plain(leaf: Any) -> Any:
            if isinstance(leaf, SharedTensor):
                copy = value_of(leaf).clone(memory_format=torch.preserve_format)
                return self._copies.setdefault(id(leaf), copy)
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                return leaf.detach().to(torch.float64)
            if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
                return torch.float64
            return leaf

        args, kwargs = tree_map(plain, arguments)
        self._leaves: list[Any] = []
        try:
            with torch.no_grad():
                self._leaves = tree_leaves(func(*args, **kwargs))
        except _REFUSALS:
            self._copies.clear()

    def leaf(self, place: int) -> Any:
        """One of the results, nested ones counted in order; None if PyTorch has no such operation on plain tensors."""
        return self._leaves[place] if place < len(self._leaves) else None

    def copy_of(self, x: SharedTensor) -> Tensor | None:
        """What the operation left of its copy of x; None if it could not run."""
        return self._copies.get(id(x))


def largest(values: Tensor) -> float:
    """The largest magnitude; inf where there is a NaN."""
    if not values.numel() or values.dtype == torch.bool:
        return 0.0
    found = float(values.abs().max())
    return math.inf if math.isnan(found) else found
