"""Losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import losses

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.huber_loss.default: losses.huber_loss,
    aten.huber_loss_backward.default: losses.huber_loss_backward,
    aten.smooth_l1_loss.default: losses.smooth_l1_loss,
    aten.smooth_l1_loss_backward.default: losses.smooth_l1_loss_backward,
    aten.binary_cross_entropy.default: losses.binary_cross_entropy,
    aten.binary_cross_entropy_backward.default: losses.binary_cross_entropy_backward,
    aten.binary_cross_entropy_with_logits.default: losses.binary_cross_entropy_with_logits,
    aten.soft_margin_loss.default: losses.soft_margin_loss,
    aten.soft_margin_loss_backward.default: losses.soft_margin_loss_backward,
    aten.nll_loss_forward.default: losses.nll_loss,
    aten.nll_loss_backward.default: losses.nll_loss_backward,
    aten.nll_loss2d_forward.default: losses.nll_loss,
    aten.nll_loss2d_backward.default: losses.nll_loss_backward,
}
