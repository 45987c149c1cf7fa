"""torch.sinc: PyTorch's derivative divides small differences by small squares; ours is exact there, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encml.tensor.functions.common import differentiable_once
from encml.tensor.handlers import sinc as handlers
from encml.tensor.shared import SharedTensor


class _Sinc(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: SharedTensor) -> Tensor:
        with x.session.whole(), x.session.ledger.operation("sinc"):
            value = handlers.sinc(x)
        ctx.save_for_backward(x, value)
        return value

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, value = ctx.saved_tensors
        with x.session.whole(), x.session.ledger.operation("sinc_backward"):
            result: Tensor = gradient * handlers.slope(x, value)
        return result


def sinc(input: SharedTensor) -> Tensor:
    """torch.sinc, torch.special.sinc"""
    result: Tensor = _Sinc.apply(input)  # type: ignore[no-untyped-call]
    return result


FUNCTIONS: dict[Any, Callable[..., Any]] = dict.fromkeys((torch.sinc, torch.special.sinc, torch.Tensor.sinc), sinc)
