"""Losses that need no more than products."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.tensor.handlers.arithmetic import mul, scale, sub
from encml.tensor.handlers.common import wrap
from encml.tensor.handlers.linear import mean_all, sum_all
from encml.tensor.shared import SharedTensor, secret

_NONE, _MEAN = 0, 1


def mse_loss(x: Tensor, y: Tensor, reduction: int = _MEAN) -> SharedTensor:
    """mse_loss: the squares are summed up before they are rescaled, so a mean or sum is settled as one element."""
    difference = sub(x, y)
    squares = mul(difference, difference)
    if reduction == _NONE:
        return squares
    return mean_all(squares) if reduction == _MEAN else sum_all(squares)


def mse_loss_backward(gradient: Tensor, x: Tensor, y: Tensor, reduction: int) -> SharedTensor:
    """mse_loss_backward: 2 (x - y) g, divided by the number of elements for a mean."""
    difference = sub(x, y)
    scaled = mul(difference, gradient)
    factor = 2.0 / difference.numel() if reduction == _MEAN and difference.numel() else 2
    return wrap(scale(secret(scaled), factor), torch.promote_types(x.dtype, y.dtype))
