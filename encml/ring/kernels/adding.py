"""Bilinear maps that can add to a result that is there already."""

from __future__ import annotations

from functools import update_wrapper
from typing import Protocol

from torch import Tensor


class Onto(Protocol):
    """f(x, y), or ``total`` += f(x, y), which returns ``total``: a contiguous tensor."""

    def __call__(self, x: Tensor, y: Tensor, total: Tensor | None = None, /) -> Tensor: ...


class Adding:
    """A map of two tensors, linear in each, of which a sum of two values takes no more memory than one value.

    A product of secrets is such a sum: adding the second term to the first where that one is made saves a pass over
    memory, which costs as much as a convolution of few channels.
    """

    def __init__(self, f: Onto) -> None:
        self._f = f
        update_wrapper(self, f)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """f(x, y), in new memory, contiguous."""
        return self._f(x, y)

    def onto(self, total: Tensor, x: Tensor, y: Tensor) -> None:
        """total += f(x, y), for a contiguous total."""
        self._f(x, y, total)
