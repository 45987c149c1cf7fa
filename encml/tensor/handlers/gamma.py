"""lgamma, digamma and trigamma: Stirling's series from 8 on, recurrence below it, reflection below 0.

(Abramowitz and Stegun 1964, chapter 6.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.shared import SharedTensor

_STEPS = 8


def lgamma(x: SharedTensor) -> Tensor:
    """lgamma: log|gamma(x)|. Some 120 rounds; poles give large numbers."""
    y, mirrored = _right_half(x)
    z, small = _shifted(y)
    series = (1 / z) * (1 / 12 - torch.pow(1 / z, 2) * (1 / 360))
    stirling = (z - 0.5) * torch.log(z) - z + 0.5 * math.log(2 * math.pi) + series
    below = torch.where(small, y, torch.ones((), dtype=x.dtype))
    # Not the logarithm of the product, which loses digits of the smallest factor and leaves narrow ranges.
    steps = torch.sum(torch.log(torch.stack([below + k for k in range(_STEPS)])), 0)
    right = stirling - torch.where(small, steps, torch.zeros((), dtype=x.dtype))
    turned = math.log(math.pi) - torch.log(torch.abs(torch.sin(x * math.pi)))
    return torch.where(mirrored, turned - right, right)


def digamma(x: SharedTensor) -> Tensor:
    """digamma, the derivative of lgamma: one logarithm and nine reciprocals, in some 100 rounds."""
    y, mirrored = _right_half(x)
    z, small = _shifted(y)
    inverse = 1 / z
    square = inverse * inverse
    stirling = torch.log(z) - inverse * 0.5 - square * (1 / 12 - square * (1 / 120 - square * (1 / 252)))
    steps = torch.sum(1 / torch.stack([y + k for k in range(_STEPS)]), 0)
    right = stirling - torch.where(small, steps, torch.zeros((), dtype=x.dtype))
    turned = x * math.pi
    return torch.where(mirrored, right - math.pi * (torch.cos(turned) / torch.sin(turned)), right)


def trigamma(x: SharedTensor) -> Tensor:
    """polygamma of order 1, the derivative of digamma."""
    y, mirrored = _right_half(x)
    z, small = _shifted(y)
    inverse = 1 / z
    square = inverse * inverse
    stirling = inverse + square * 0.5 + inverse * square * (1 / 6 - square * (1 / 30 - square * (1 / 42)))
    steps = torch.sum(torch.square(1 / torch.stack([y + k for k in range(_STEPS)])), 0)
    right = stirling + torch.where(small, steps, torch.zeros((), dtype=x.dtype))
    turned = torch.square(math.pi / torch.sin(x * math.pi))
    return torch.where(mirrored, turned - right, right)


def polygamma(order: int, x: SharedTensor) -> Tensor:
    """polygamma of orders 0 and 1."""
    if order not in (0, 1):
        raise UnsupportedOperation(f"polygamma of order {order}: orders 0, digamma, and 1 are supported")
    return digamma(x) if order == 0 else trigamma(x)


def _right_half(x: Tensor) -> tuple[Tensor, Tensor]:
    mirrored = torch.lt(x, 0)
    return torch.where(mirrored, 1 - x, x), mirrored


def _shifted(y: Tensor) -> tuple[Tensor, Tensor]:
    small = torch.lt(y, _STEPS)
    return torch.where(small, y + _STEPS, y), small
