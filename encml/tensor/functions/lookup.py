"""Look-ups by a secret index that PyTorch would take apart by looking at the index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import InvalidTensor
from encml.tensor.handlers.lookup import one_hot_of
from encml.tensor.shared import SharedTensor


def one_hot(tensor: SharedTensor, num_classes: int = -1) -> SharedTensor:
    """F.one_hot of a secret index: (*shape, num_classes) of int64; all 0 where the index is out of range.

    The number of classes must be given. Two comparisons and a few bits an element, then 8 B a party for each class.
    """
    session = tensor.session
    with session.whole(), session.ledger.operation("one_hot"):
        return one_hot_of(tensor, num_classes)


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """torch.take_along_dim, by a secret index as torch.gather: without negative ones, counted from the end."""
    if not isinstance(indices, SharedTensor):
        with torch._C.DisableTorchFunctionSubclass():
            return torch.take_along_dim(input, indices, dim)
    if dim is None:
        return torch.gather(input.reshape(-1), 0, indices.reshape(-1))
    if input.ndim != indices.ndim:
        raise InvalidTensor(f"take_along_dim: found {input.ndim} and {indices.ndim} dimensions, expected as many")
    place = dim % input.ndim
    others = ([*t.shape[:place], 1, *t.shape[place + 1 :]] for t in (input, indices))
    shape = torch.broadcast_shapes(*others)  # type: ignore[no-untyped-call]
    wide = (t.expand(*shape[:place], t.shape[place], *shape[place + 1 :]) for t in (input, indices))
    source, index = wide
    return torch.gather(source, place, index)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.one_hot: one_hot,
    torch.take_along_dim: take_along_dim,
    torch.Tensor.take_along_dim: take_along_dim,
}
