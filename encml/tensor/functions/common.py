"""What the functions above autograd share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.secret import settle_all
from encml.tensor.shared import SharedTensor


def settle_together(*tensors: Tensor) -> None:
    """Settle the pending products among the tensors in the same rounds; plain tensors are passed over.

    3 rounds and 8.75 B a party and element of what is pending (see ``Secret.settle``), once, where settling one after
    the other would take 3 rounds each.
    """
    held = [x for x in tensors if isinstance(x, SharedTensor)]
    if held:
        session = held[0].session
        with session.whole(), session.ledger.operation("settle"):
            settle_all(*(x._secret for x in held))


def transformed() -> bool:
    """Whether torch.func is at work here, which takes no autograd.Function that has not prepared for it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward of an autograd.Function: refuses create_graph, where PyTorch's own decorator may say nothing."""

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            name = type(ctx).__name__.removesuffix("Backward").lstrip("_")
            raise UnsupportedOperation(f"{name}: its gradient cannot be differentiated again; leave create_graph out")
        return backward(ctx, *gradients)

    return checked
