"""Dropout: a public random mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from encml.errors import UnsupportedOperation
from encml.tensor.shared import SharedTensor


def dropout(input: SharedTensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> SharedTensor:
    """F.dropout, torch.dropout: the identity where nothing is dropped; else refused."""
    if not training or p == 0:
        return input
    raise UnsupportedOperation(
        "dropout on secrets has no secret-shared version yet; call model.eval(), or leave it out of training"
    )


FUNCTIONS: dict[Any, Callable[..., Any]] = {F.dropout: dropout, torch.dropout: dropout}
