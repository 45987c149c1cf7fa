"""Forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import tangents

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.is_same_size.default: tangents.same_size,
    aten._has_same_storage_numel.default: tangents.same_storage,
    aten._new_zeros_with_same_feature_meta.default: tangents.zeros_laid_out_as,
}
