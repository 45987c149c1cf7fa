"""What must be caught above autograd: functions that keep a secret mask for backward, and traps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import SecretError, UnsupportedOperation
from encml.tensor.handlers import compare
from encml.tensor.handlers.arithmetic import mul
from encml.tensor.shared import ADVICE, SharedTensor, secret


class ReLU(torch.autograd.Function):
    """relu that keeps its secret mask, so that backward costs one product and no comparison."""

    @staticmethod
    def forward(ctx: Any, x: SharedTensor) -> SharedTensor:
        with x.session.ledger.operation("relu"):
            value, mask = compare.relu_with_mask(x)
        ctx.save_for_backward(mask)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> SharedTensor:
        (mask,) = ctx.saved_tensors
        with mask.session.ledger.operation("relu_backward"):
            return mul(gradient, mask)


def relu(x: SharedTensor, inplace: bool = False) -> SharedTensor:
    """F.relu, torch.relu, Tensor.relu."""
    if inplace:
        return relu_(x)
    if torch.is_grad_enabled() and x.requires_grad:
        result: SharedTensor = ReLU.apply(x)  # type: ignore[no-untyped-call]
        return result
    return torch.ops.aten.relu.default(x)  # type: ignore[no-any-return]


def relu_(x: SharedTensor) -> SharedTensor:
    """relu_: in place where no gradient flows, as a copy of relu's result where one does."""
    if torch.is_grad_enabled() and x.requires_grad:
        x.copy_(relu(x))
        return x
    return torch.ops.aten.relu_.default(x)  # type: ignore[no-any-return]


def set_data(x: Tensor, value: Tensor) -> None:
    """``x.data = value``: takes over the secret, which PyTorch would leave behind."""
    if not isinstance(x, SharedTensor):
        raise SecretError("a secret cannot become the data of a plain tensor; share that tensor instead")
    if not isinstance(value, SharedTensor):
        raise SecretError("plain values cannot become the data of a SharedTensor; use copy_() or share them")
    if value.shape != x.shape:
        raise UnsupportedOperation(f"data of shape {tuple(value.shape)} for a SharedTensor of shape {tuple(x.shape)}")
    secret(x).adopt(secret(value))


def _refuse_values(*_: object, **__: object) -> NoReturn:
    raise SecretError(f"a SharedTensor's values are not visible; {ADVICE}")


def _refuse_shared_memory(*_: object, **__: object) -> NoReturn:
    raise UnsupportedOperation("share_memory_(): shares stay in the process of their party")


def _refuse_dropout(*_: object, **__: object) -> NoReturn:
    raise UnsupportedOperation(
        "dropout on secrets is not supported yet; call model.eval(), or leave it out of training"
    )


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: relu,
    torch.relu: relu,
    torch.Tensor.relu: relu,
    F.relu_: relu_,
    torch.relu_: relu_,
    torch.Tensor.relu_: relu_,
    torch.Tensor.data.__set__: set_data,  # type: ignore[attr-defined]  # a property of the C base
    torch.Tensor.share_memory_: _refuse_shared_memory,
    torch.Tensor.item: _refuse_values,
    torch.Tensor.tolist: _refuse_values,
    torch.Tensor.numpy: _refuse_values,
    torch.equal: _refuse_values,
    torch.allclose: _refuse_values,
    F.dropout: _refuse_dropout,
}
