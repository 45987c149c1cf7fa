"""Orthogonal polynomials of a secret, of a public degree, by their recurrences: a product for each degree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.public import Operand
from encml.tensor.shared import SharedTensor


@dataclass(frozen=True)
class Family:
    """p_0 = 1, p_1 = first[0] x + first[1], p_{k+1} = (a x + b) p_k - c p_{k-1} with a, b, c = step(k)."""

    first: tuple[float, float]
    step: Callable[[int], tuple[float, float, float]]


CHEBYSHEV_T, CHEBYSHEV_U, CHEBYSHEV_V, CHEBYSHEV_W = (
    Family(first, lambda k: (2, 0, 1)) for first in ((1, 0), (2, 0), (2, -1), (2, 1))
)
SHIFTED_T, SHIFTED_U, SHIFTED_V, SHIFTED_W = (
    Family(first, lambda k: (4, -2, 1)) for first in ((2, -1), (4, -2), (4, -3), (4, -1))
)
HERMITE_H = Family((2, 0), lambda k: (2, 0, 2 * k))
HERMITE_HE = Family((1, 0), lambda k: (1, 0, k))
LAGUERRE_L = Family((-1, 1), lambda k: (-1 / (k + 1), (2 * k + 1) / (k + 1), k / (k + 1)))
LEGENDRE_P = Family((1, 0), lambda k: ((2 * k + 1) / (k + 1), 0, k / (k + 1)))


def polynomial(family: Family) -> Callable[..., Tensor]:
    """The handler of one family: of x and the degree n, a number or a public tensor of whole numbers."""

    def handler(x: Tensor, n: Operand) -> Tensor:
        if isinstance(n, SharedTensor):
            raise UnsupportedOperation("a polynomial of a secret degree; supported are public ones")
        degrees = torch.as_tensor(n).to(torch.int64)
        wide = x.expand(torch.broadcast_shapes(x.shape, degrees.shape))  # type: ignore[no-untyped-call]
        before, now = torch.ones_like(wide), wide * family.first[0] + family.first[1]
        result = torch.where(degrees < 0, torch.zeros_like(wide), before)
        for k in range(1, (int(degrees.max()) if degrees.numel() else 0) + 1):
            result = torch.where(degrees == k, now, result)
            a, b, c = family.step(k)
            before, now = now, (wide * a + b) * now - before * c
        return result

    return handler
