"""Traps: Python-level functions that would go past the table of operators, or show a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from encml.errors import SecretError, UnsupportedOperation
from encml.tensor.refusals import refuse_values
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor


def backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Tensor.backward; a plain gradient becomes a public secret, for secret ones will be added to it.

    From the edge of the graph, not the tensor: for a tensor PyTorch turns the functions here off until it is done, and
    what a checkpoint computes anew would go past them.
    """
    if isinstance(self, SharedTensor) and gradient is not None and not isinstance(gradient, SharedTensor):
        gradient = SharedTensor(Secret.of_public(self.session, gradient), gradient.dtype)
    if isinstance(self, SharedTensor) and self.requires_grad and (gradient is not None or self.numel() == 1):
        given = torch.ones_like(self) if gradient is None else gradient
        torch.autograd.backward(get_gradient_edge(self), given, retain_graph, create_graph, inputs=inputs)
        return
    with torch._C.DisableTorchFunctionSubclass():
        torch.Tensor.backward(self, gradient, retain_graph, create_graph, inputs)  # type: ignore[no-untyped-call]


def set_data(x: Tensor, value: Tensor) -> None:
    """``x.data = value``, which Module.to and its kin use: takes over the secret, which PyTorch would leave behind."""
    if not isinstance(x, SharedTensor):
        raise SecretError("a secret cannot become the data of a plain tensor; share that tensor instead")
    if not isinstance(value, SharedTensor):
        raise SecretError("plain values cannot become the data of a SharedTensor; use copy_() or share them")
    with torch._C.DisableTorchFunctionSubclass():
        torch.Tensor.data.__set__(x, value)  # type: ignore[attr-defined]  # its shape, strides and dtype
    x._secret = value._secret


def _refuse_shared_memory(*_: object, **__: object) -> NoReturn:
    raise UnsupportedOperation("share_memory_(): shares stay in the process of their party")


_OTHERS = tuple(
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if kind not in (torch.optim.Optimizer, torch.optim.SGD, torch.optim.ASGD)
)
"""Stock optimizers but for those whose updates are sums and products."""


def refuse_optimizer(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """A hook before every optimizer's step: stock ones that fixed point cannot hold do not touch secrets.

    They divide by roots of squares that are 0 at 2^-f, and then explode, or ask for operations that there are none of.
    Raises UnsupportedOperation.
    """
    if isinstance(optimizer, _OTHERS) and any(
        isinstance(parameter, SharedTensor) for group in optimizer.param_groups for parameter in group["params"]
    ):
        name = type(optimizer).__name__
        same = name in ("Adam", "AdamW")
        fit = f"encml.optim.{name}, which takes its arguments," if same else "encml.optim.Adam"
        raise UnsupportedOperation(
            f"torch.optim.{name} is not fit for secret parameters, which are fixed-point numbers; use {fit} or "
            "torch.optim.SGD"
        )


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.backward: backward,
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
            torch.Tensor.apply_,
            torch.Tensor.map_,
            torch.Tensor.map2_,
            torch.Tensor.__dlpack__,
            torch.Tensor.__reduce_ex__,
            torch.equal,
            torch.allclose,
            torch.is_nonzero,
        ),
        refuse_values,
    ),
}
