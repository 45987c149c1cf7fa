"""sin(pi x)/(pi x) and its derivative: by a quotient, and where |x| < 1/4, where that loses digits, by its series."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.tensor.shared import SharedTensor

_NEAR = 0.25


def sinc(x: SharedTensor) -> Tensor:
    """sinc, off by a few ulp."""
    turned = x * math.pi
    far = torch.sin(turned) / turned
    return torch.where(_is_near(x), _series(x, 1), far)


def slope(x: SharedTensor, value: Tensor) -> Tensor:
    """The derivative at x, where sinc has ``value``: (cos(pi x) - value)/x."""
    far = (torch.cos(x * math.pi) - value) / x
    return torch.where(_is_near(x), x * _series(x, 2), far)


def _is_near(x: SharedTensor) -> Tensor:
    return torch.lt(torch.abs(x), _NEAR)


def _series(x: SharedTensor, first: int) -> Tensor:
    """1 - (pi x)^2/3! + (pi x)^4/5! - ..., or, for ``first`` 2, what its derivative is of x."""
    square = x * x
    terms = range(5)
    if first == 1:
        coefficients = [(-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k + 1) for k in terms]
    else:
        coefficients = [
            (-1) ** (k + 1) * math.pi ** (2 * k + 2) * (2 * k + 2) / math.factorial(2 * k + 3) for k in terms
        ]
    total: Tensor = square * coefficients[-1]
    for coefficient in reversed(coefficients[1:-1]):
        total = square * (total + coefficient)
    total = total + coefficients[0]
    return total
