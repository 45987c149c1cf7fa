"""Convolutions, transposed ones too, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import convolution

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: convolution.convolution,
    aten.convolution_backward.default: convolution.convolution_backward,
    aten.convolution_overrideable.default: convolution.convolution,
}
