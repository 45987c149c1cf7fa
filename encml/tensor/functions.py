"""What must be caught above autograd: functions that keep a secret mask for backward, and traps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import SecretError, UnsupportedOperation
from encml.tensor.handlers import compare, creation
from encml.tensor.refusals import refuse_values
from encml.tensor.shared import SharedTensor, secret


class ReLU(torch.autograd.Function):
    """relu that keeps its secret mask, so that backward costs one product and no comparison."""

    @staticmethod
    def forward(ctx: Any, x: SharedTensor) -> SharedTensor:
        with x.session.ledger.operation("relu"):
            value, mask = compare.relu_with_mask(x)
        ctx.save_for_backward(mask)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (mask,) = ctx.saved_tensors
        with mask.session.ledger.operation("relu_backward"):
            # As a torch operation, so that it can be differentiated again.
            return torch.mul(gradient, mask)


def relu(input: SharedTensor, inplace: bool = False) -> SharedTensor:
    """F.relu, torch.relu, Tensor.relu."""
    if inplace:
        return relu_(input)
    if torch.is_grad_enabled() and input.requires_grad:
        result: SharedTensor = ReLU.apply(input)  # type: ignore[no-untyped-call]
        return result
    return torch.ops.aten.relu.default(input)  # type: ignore[no-any-return]


def relu_(input: SharedTensor) -> SharedTensor:
    """relu_: in place where no gradient flows, as a copy of relu's result where one does."""
    if torch.is_grad_enabled() and input.requires_grad:
        input.copy_(relu(input))
        return input
    return torch.ops.aten.relu_.default(input)  # type: ignore[no-any-return]


def dropout(input: SharedTensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> SharedTensor:
    """F.dropout, torch.dropout: the identity where nothing is dropped; else refused."""
    if not training or p == 0:
        return input
    raise UnsupportedOperation(
        "dropout on secrets has no secret-shared version yet; call model.eval(), or leave it out of training"
    )


def set_data(x: Tensor, value: Tensor) -> None:
    """``x.data = value``: takes over the secret, which PyTorch would leave behind."""
    if not isinstance(x, SharedTensor):
        raise SecretError("a secret cannot become the data of a plain tensor; share that tensor instead")
    if not isinstance(value, SharedTensor):
        raise SecretError("plain values cannot become the data of a SharedTensor; use copy_() or share them")
    if value.shape != x.shape or value.dtype != x.dtype:
        raise UnsupportedOperation(
            f"data of shape {tuple(value.shape)} and {value.dtype} for a SharedTensor of shape {tuple(x.shape)} and "
            f"{x.dtype}: they must be the same"
        )
    if value.stride() != x.stride():
        # A SharedTensor keeps its strides for life.
        laid_out = creation.new_empty_strided(value, x.shape, x.stride())
        secret(laid_out).overwrite(secret(value))
        value = laid_out
    x._secret = value._secret


def _refuse_shared_memory(*_: object, **__: object) -> NoReturn:
    raise UnsupportedOperation("share_memory_(): shares stay in the process of their party")


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: relu,
    torch.relu: relu,
    torch.Tensor.relu: relu,
    F.relu_: relu_,
    torch.relu_: relu_,
    torch.Tensor.relu_: relu_,
    F.dropout: dropout,
    torch.dropout: dropout,
    torch.Tensor.data.__set__: set_data,  # type: ignore[attr-defined]  # a property of the C base
    torch.Tensor.share_memory_: _refuse_shared_memory,
    **dict.fromkeys(
        (
            torch.Tensor.item,
            torch.Tensor.tolist,
            torch.Tensor.numpy,
            torch.Tensor.equal,
            torch.Tensor.allclose,
            torch.Tensor.is_nonzero,
            torch.Tensor.untyped_storage,
            torch.Tensor.storage,
            torch.Tensor.data_ptr,
            torch.equal,
            torch.allclose,
            torch.is_nonzero,
        ),
        refuse_values,
    ),
}
"""Python-level functions -> their secret-shared versions; aten operators are in encml.tensor.table."""
