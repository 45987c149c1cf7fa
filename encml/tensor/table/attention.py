"""Softmax and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import attention

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten._softmax.default: attention.softmax,
    aten._safe_softmax.default: attention.safe_softmax,
    aten._softmax_backward_data.default: attention.softmax_backward,
    aten._log_softmax.default: attention.log_softmax,
    aten._log_softmax_backward_data.default: attention.log_softmax_backward,
    aten.logsumexp.default: attention.logsumexp,
    aten.logcumsumexp.default: attention.logcumsumexp,
}
