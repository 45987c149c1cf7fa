"""Dropout: a public random mask, the same at all parties, by which secrets are multiplied locally.

Which units are left out is known to every party and says nothing about the values. The masks come from a stream that
the parties agree on, once a session (1 round, 32 bytes a party), or from ``Session(seed=...)``; from then on a mask
costs no communication. torch.manual_seed does not choose the masks, but the state of PyTorch's generator says when one
is wanted again: torch.utils.checkpoint restores that state and gets the mask of the first pass (1 round, in which the
parties make sure that they mean the same). So parties that seed PyTorch's generator all do it alike, or not at all.

1 / (1 - p) is a factor of fixed point, exact to 2^-f: whole for p = 0.5, 0.75 or 0.8, where nothing needs rescaling;
otherwise the result is rescaled later, often together with a product (see encml.tensor.secret).

torch.func's transforms (grad, vmap) hide from everyone that a tensor is secret: there the mask is drawn by PyTorch's
own generator, which the parties of a real session must then have seeded alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.tensor.handlers.chance import coin_flips
from encml.tensor.shared import SharedTensor

_SELU_FLOOR = -1.7580993408473766
"""What SELU gives far below zero: what alpha dropout puts in place of what it drops (Klambauer et al. 2017)."""


def dropout(input: SharedTensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout, torch.dropout: every element is dropped with probability p, the others grow by 1 / (1 - p)."""
    return _drop(input, tuple(input.shape), p, training, inplace)


def _drop(input: SharedTensor, shape: tuple[int, ...], p: float, training: bool, inplace: bool) -> Tensor:
    _check(p)
    if not training or p == 0 or not input.numel():
        return input
    factor = _kept(input, shape, p).to(input.dtype)
    if p < 1:
        factor /= 1 - p
    return input.mul_(factor) if inplace else input * factor


def _drop_alpha(input: SharedTensor, shape: tuple[int, ...], p: float, training: bool, inplace: bool) -> Tensor:
    """Mean and variance of a standard normal input stay what they are: a (kept x + dropped floor - floor p)."""
    if p == 1:
        return _drop(input, shape, p, training, inplace)
    _check(p)
    if not training or p == 0 or not input.numel():
        return input
    kept = _kept(input, shape, p).to(input.dtype)
    a = 1 / math.sqrt((_SELU_FLOOR**2 * p + 1) * (1 - p))
    shift = (1 - kept - p) * (a * _SELU_FLOOR)
    return input.mul_(kept * a).add_(shift) if inplace else input * (kept * a) + shift


def _check(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def _kept(input: SharedTensor, shape: tuple[int, ...], p: float) -> Tensor:
    session = input.session
    with session.whole(), session.ledger.operation("dropout"):
        return coin_flips(session, shape, 1 - p)


def _by_element(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``rule`` for every element on its own."""
    return lambda input, p, training, inplace=False: rule(input, tuple(input.shape), p, training, inplace)


def _by_channel(rule: Callable[..., Tensor], unbatched: int | None = None) -> Callable[..., Tensor]:
    """``rule`` for whole channels (N, C, ...) at once, or (C, ...) where the input has ``unbatched`` dimensions."""

    def drop(input: SharedTensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        lead = 1 if input.ndim == unbatched else 2
        if input.ndim < lead and training:
            raise RuntimeError(f"feature dropout takes at least {lead} dimensions, found {input.ndim}")
        return rule(input, (*input.shape[:lead], *(1,) * (input.ndim - lead)), p, training, inplace)

    return drop


def _low_level(function: Callable[..., Tensor], inplace: bool = False) -> Callable[..., Tensor]:
    """torch.dropout and its kin, and those whose name ends in _."""
    return lambda input, p, train: function(input, p, train, inplace)


_ALPHA, _FEATURES, _FEATURE_ALPHA = _by_element(_drop_alpha), _by_channel(_drop), _by_channel(_drop_alpha)

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.dropout: dropout,
    F.dropout1d: _by_channel(_drop, unbatched=2),
    F.dropout2d: _FEATURES,
    F.dropout3d: _by_channel(_drop, unbatched=4),
    F.alpha_dropout: _ALPHA,
    F.feature_alpha_dropout: _FEATURE_ALPHA,
    torch.dropout: _low_level(dropout),
    torch.dropout_: _low_level(dropout, inplace=True),
    torch.alpha_dropout: _low_level(_ALPHA),
    torch.alpha_dropout_: _low_level(_ALPHA, inplace=True),
    torch.feature_dropout: _low_level(_FEATURES),
    torch.feature_dropout_: _low_level(_FEATURES, inplace=True),
    torch.feature_alpha_dropout: _low_level(_FEATURE_ALPHA),
    torch.feature_alpha_dropout_: _low_level(_FEATURE_ALPHA, inplace=True),
}
