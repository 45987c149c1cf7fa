"""What fixed point makes certain: it has no NaN and no infinity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encml.tensor.shared import SharedTensor


def isfinite(input: SharedTensor) -> Tensor:
    """torch.isfinite: public, true of every secret. PyTorch would compare with infinity."""
    return torch.ones(input.shape, dtype=torch.bool)


def nan_to_num(input: SharedTensor, *_: object, **__: object) -> Tensor:
    """torch.nan_to_num: a copy. PyTorch's derivative would look for infinities."""
    return input.clone()


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.isfinite, torch.Tensor.isfinite), isfinite),
    **dict.fromkeys((torch.nan_to_num, torch.Tensor.nan_to_num), nan_to_num),
}
