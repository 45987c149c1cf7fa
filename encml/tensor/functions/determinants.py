"""Determinants: PyTorch's derivatives look into LU factors, which no one may see; ours keep the inverse instead."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encml.tensor.functions.common import differentiable_once
from encml.tensor.handlers import solving
from encml.tensor.shared import SharedTensor

SignAndLogarithm = namedtuple("SignAndLogarithm", ["sign", "logabsdet"])


class _Determinant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: SharedTensor) -> Tensor:
        with a.session.whole(), a.session.ledger.operation("linalg_det"):
            result, inverse = solving.determinant(a)
        ctx.save_for_backward(result, inverse)
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result, inverse = ctx.saved_tensors
        slope: Tensor = (gradient * result)[..., None, None] * inverse.mT
        return slope


class _SignAndLogarithm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: SharedTensor) -> tuple[Tensor, Tensor]:
        with a.session.whole(), a.session.ledger.operation("linalg_slogdet"):
            sign, logarithm, inverse = solving.sign_and_logarithm(a)
        ctx.save_for_backward(inverse)
        return sign, logarithm

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, _: Tensor, gradient: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        slope: Tensor = gradient[..., None, None] * inverse.mT
        return slope


def det(input: SharedTensor) -> Tensor:
    """torch.linalg.det, torch.det: see ``encml.tensor.handlers.solving``."""
    result: Tensor = _Determinant.apply(input)  # type: ignore[no-untyped-call]
    return result


def slogdet(input: SharedTensor) -> SignAndLogarithm:
    """torch.linalg.slogdet, torch.slogdet"""
    return SignAndLogarithm(*_SignAndLogarithm.apply(input))  # type: ignore[no-untyped-call]


def logdet(input: SharedTensor) -> Tensor:
    """torch.logdet, of matrices with a positive determinant."""
    logarithm: Tensor = slogdet(input).logabsdet
    return logarithm


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.linalg.det, torch.det, torch.Tensor.det), det),
    **dict.fromkeys((torch.linalg.slogdet, torch.slogdet, torch.Tensor.slogdet), slogdet),
    **dict.fromkeys((torch.logdet, torch.Tensor.logdet), logdet),
}
