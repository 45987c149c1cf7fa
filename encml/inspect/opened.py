"""Secrets opened for a look, and the float64 computation that runs beside them.

All three parties are in this process, so a value is the sum of what they hold: nothing is sent, no mask is drawn, and
the computation on shares goes on exactly as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from encml.ring.fixed import decode
from encml.tensor.shared import SharedTensor, secret

_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


def opened(x: SharedTensor) -> Tensor:
    """The value of x (*shape), in float64, int64 or bool; pending products as they are."""
    held = secret(x)
    return as_kind(decode(held.terms.sum(0), held.fraction_bits, torch.float64), x.dtype)


def as_kind(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 values as the kind of number that a SharedTensor of ``dtype`` holds."""
    if dtype.is_floating_point:
        return values
    return values != 0 if dtype == torch.bool else values.round().to(dtype)


class Opened:
    """The secrets that go into one call: as they are before it, and, once ``settle`` was called, after it."""

    def __init__(self, secrets: Sequence[SharedTensor]) -> None:
        self._inputs = {id(x): x for x in secrets}
        self._values = {key: opened(x) for key, x in self._inputs.items()}
        self._bits = {key: secret(x).fraction_bits for key, x in self._inputs.items()}
        self._settled = {key: not secret(x).pending and secret(x).excess <= 0 for key, x in self._inputs.items()}

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
                change = max(change, largest(now.double() - before.double()))
        return change


class Shadows:
    """The float64 values that secrets would have had without any rounding since they were first seen.

    One plain tensor for each memory of a secret, so that views of secrets are views of shadows, and what is written
    into either is seen by both.
    """

    def __init__(self) -> None:
        self._twins: WeakKeyDictionary[Hashable, Tensor] = WeakKeyDictionary()

    def __len__(self) -> int:
        """How many secrets' memories have a shadow."""
        return len(self._twins)

    def of(self, x: SharedTensor) -> Tensor:
        """The shadow of x; when first seen, what it holds now."""
        held = secret(x)
        twin = self._twins.get(held.memory)
        if twin is None:
            whole = decode(held.whole.sum(0), held.fraction_bits, torch.float64)
            twin = self._twins[held.memory] = self._laid_out_as(x).copy_(whole)
        return as_kind(held.seen_in(twin)[0], x.dtype)

    def set(self, x: SharedTensor, values: Tensor) -> None:
        """x and its views get these values; later changes of ``values`` do not reach them."""
        held = secret(x)
        twin = self._twins.get(held.memory)
        if twin is None:
            twin = self._twins[held.memory] = self._laid_out_as(x)
        held.seen_in(twin)[0].copy_(values)

    @staticmethod
    def _laid_out_as(x: SharedTensor) -> Tensor:
        return torch.zeros_like(secret(x).whole[:1], dtype=torch.float64)


def plainly(func: Callable[..., Any], arguments: Any, value_of: Callable[[SharedTensor], Tensor]) -> Any:
    """The plain operation in float64 on ``arguments`` (args, kwargs), each secret replaced by ``value_of`` it.

    What the operation writes in place, it writes into copies; then the result is those. None if PyTorch has no such
    operation on plain tensors.
    """

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, SharedTensor):
            return value_of(leaf).clone(memory_format=torch.preserve_format)
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.detach().to(torch.float64)
        if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
            return torch.float64
        return leaf

    args, kwargs = tree_map(plain, arguments)
    try:
        with torch.no_grad():
            return func(*args, **kwargs)
    except _REFUSALS:
        return None


def largest(values: Tensor) -> float:
    """The largest magnitude; inf where there is a NaN."""
    if not values.numel() or values.dtype == torch.bool:
        return 0.0
    found = float(values.abs().max())
    return math.inf if math.isnan(found) else found
