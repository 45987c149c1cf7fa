"""What forward-mode differentiation asks about tensors and their tangents: shapes and layout, which are public."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.tensor.handlers.creation import new_empty_strided
from encml.tensor.shared import SharedTensor


def same_size(x: Tensor, y: Tensor) -> bool:
    """is_same_size"""
    return x.shape == y.shape


def same_storage(x: Tensor, y: Tensor) -> bool:
    """_has_same_storage_numel"""
    return _span(x) == _span(y)


def zeros_laid_out_as(x: Tensor, other: Tensor, *, self_num_batch_dims: int = 0) -> Tensor:
    """_new_zeros_with_same_feature_meta: zeros of x's kind, of the other's shape and layout, behind x's batch."""
    batch = x.shape[:self_num_batch_dims]
    size, stride = (*batch, *other.shape), list(other.stride())
    step = _span(other)
    for count in reversed(batch):
        stride.insert(0, step)
        step *= count
    if isinstance(x, SharedTensor):
        return new_empty_strided(x, size, stride)
    return torch.empty_strided(size, stride, dtype=x.dtype).zero_()


def _span(x: Tensor) -> int:
    """How many elements of memory it reaches over."""
    return 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
