"""Distances of all pairs of vectors: cdist, pdist and their derivatives, by norms of differences."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cdist(x: Tensor, y: Tensor, order: float, mode: int | None = None) -> Tensor:
    """_cdist_forward: one norm for every pair. By products of matrices it would be cheaper, and lose digits."""
    return _norms(_differences(x, y), order)


def cdist_backward(gradient: Tensor, x: Tensor, y: Tensor, order: float, distances: Tensor) -> Tensor:
    """_cdist_backward: towards x."""
    return _slopes(gradient, _differences(x, y), order, distances).sum(-2)


def pdist(x: Tensor, order: float = 2) -> Tensor:
    """_pdist_forward: the upper triangle of cdist(x, x)."""
    first, second = _pairs(x)
    return _norms(x[first] - x[second], order)


def pdist_backward(gradient: Tensor, x: Tensor, order: float, distances: Tensor) -> Tensor:
    """_pdist_backward"""
    first, second = _pairs(x)
    slopes = _slopes(gradient, x[first] - x[second], order, distances)
    return torch.zeros_like(x).index_add(0, first, slopes).index_add(0, second, -slopes)


def _norms(difference: Tensor, order: float) -> Tensor:
    if order in (0, 1, 2) or math.isinf(order):
        length: Tensor = torch.linalg.vector_norm(difference, order, -1)
        return length
    # Powers of parts of the largest stay within range.
    size = torch.abs(difference)
    largest = torch.amax(size, -1, True)
    parts = torch.pow(size / torch.maximum(largest, torch.tensor(_LEAST, dtype=size.dtype)), order)
    norm: Tensor = largest.squeeze(-1) * torch.pow(parts.sum(-1), 1 / order)
    return norm


_LEAST = 2.0**-10


def _differences(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(-2) - y.unsqueeze(-3)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(len(x), len(x), 1)
    return first, second


def _slopes(gradient: Tensor, difference: Tensor, order: float, distances: Tensor) -> Tensor:
    """The derivative of the norm of each difference (..., n), times ``gradient``; 0 where the distance is 0."""
    upstream, length = gradient.unsqueeze(-1), distances.unsqueeze(-1)
    if order == 0:
        return difference * 0
    if order == 1:
        return torch.sign(difference) * upstream
    if order == 2:
        return difference * (upstream / length)
    size = torch.abs(difference)
    if math.isinf(order):
        return torch.sign(difference) * torch.eq(size, length) * upstream
    return torch.sign(difference) * torch.pow(size / length, order - 1) * upstream
