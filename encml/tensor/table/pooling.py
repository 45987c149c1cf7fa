"""Average and maximum pooling, padding and resampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import pooling

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    # Averages
    aten.avg_pool2d.default: pooling.average(2),
    aten.avg_pool3d.default: pooling.average(3),
    aten.avg_pool2d_backward.default: pooling.average_backward(2),
    aten.avg_pool3d_backward.default: pooling.average_backward(3),
    aten._adaptive_avg_pool2d.default: pooling.adaptive_average(2),
    aten._adaptive_avg_pool3d.default: pooling.adaptive_average(3),
    aten._adaptive_avg_pool2d_backward.default: pooling.adaptive_average_backward(2),
    aten._adaptive_avg_pool3d_backward.default: pooling.adaptive_average_backward(3),
    # Maxima
    aten.max_pool2d_with_indices.default: pooling.maximum(aten.max_pool2d_with_indices, 2),
    aten.max_pool3d_with_indices.default: pooling.maximum(aten.max_pool3d_with_indices, 3),
    aten.max_pool2d_with_indices_backward.default: pooling.maximum_backward(2),
    aten.max_pool3d_with_indices_backward.default: pooling.maximum_backward(3),
    aten.adaptive_max_pool2d.default: pooling.adaptive_maximum(aten.adaptive_max_pool2d, 2),
    aten.adaptive_max_pool3d.default: pooling.adaptive_maximum(aten.adaptive_max_pool3d, 3),
    aten.adaptive_max_pool2d_backward.default: pooling.adaptive_maximum_backward(2),
    aten.adaptive_max_pool3d_backward.default: pooling.adaptive_maximum_backward(3),
}
