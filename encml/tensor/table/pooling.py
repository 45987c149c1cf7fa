"""Average and maximum pooling, padding and resampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import maxima, pooling, resampling

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
    aten.max_pool2d_with_indices.default: maxima.maximum(aten.max_pool2d_with_indices, 2),
    aten.max_pool3d_with_indices.default: maxima.maximum(aten.max_pool3d_with_indices, 3),
    aten.max_pool2d_with_indices_backward.default: maxima.maximum_backward(2),
    aten.max_pool3d_with_indices_backward.default: maxima.maximum_backward(3),
    aten.adaptive_max_pool2d.default: maxima.adaptive_maximum(aten.adaptive_max_pool2d, 2),
    aten.adaptive_max_pool3d.default: maxima.adaptive_maximum(aten.adaptive_max_pool3d, 3),
    aten.adaptive_max_pool2d_backward.default: maxima.adaptive_maximum_backward(2),
    aten.adaptive_max_pool3d_backward.default: maxima.adaptive_maximum_backward(3),
    aten.max_unpool2d.default: maxima.unpool(2),
    aten.max_unpool3d.default: maxima.unpool(3),
    # Windows as columns
    aten.im2col.default: resampling.im2col,
    aten.col2im.default: resampling.col2im,
    # Padding by what is there
    aten.reflection_pad1d.default: resampling.pad(aten.reflection_pad1d, 1),
    aten.reflection_pad2d.default: resampling.pad(aten.reflection_pad2d, 2),
    aten.reflection_pad3d.default: resampling.pad(aten.reflection_pad3d, 3),
    aten.replication_pad1d.default: resampling.pad(aten.replication_pad1d, 1),
    aten.replication_pad2d.default: resampling.pad(aten.replication_pad2d, 2),
    aten.replication_pad3d.default: resampling.pad(aten.replication_pad3d, 3),
    aten.reflection_pad1d_backward.default: resampling.pad_backward(aten.reflection_pad1d, 1),
    aten.reflection_pad2d_backward.default: resampling.pad_backward(aten.reflection_pad2d, 2),
    aten.reflection_pad3d_backward.default: resampling.pad_backward(aten.reflection_pad3d, 3),
    aten.replication_pad1d_backward.default: resampling.pad_backward(aten.replication_pad1d, 1),
    aten.replication_pad2d_backward.default: resampling.pad_backward(aten.replication_pad2d, 2),
    aten.replication_pad3d_backward.default: resampling.pad_backward(aten.replication_pad3d, 3),
    # Upsampling
    aten.upsample_nearest1d.default: resampling.upsample(aten.upsample_nearest1d),
    aten.upsample_nearest2d.default: resampling.upsample(aten.upsample_nearest2d),
    aten.upsample_nearest3d.default: resampling.upsample(aten.upsample_nearest3d),
    aten._upsample_nearest_exact1d.default: resampling.upsample(aten._upsample_nearest_exact1d),
    aten._upsample_nearest_exact2d.default: resampling.upsample(aten._upsample_nearest_exact2d),
    aten._upsample_nearest_exact3d.default: resampling.upsample(aten._upsample_nearest_exact3d),
    aten.upsample_linear1d.default: resampling.upsample(aten.upsample_linear1d),
    aten.upsample_bilinear2d.default: resampling.upsample(aten.upsample_bilinear2d),
    aten.upsample_trilinear3d.default: resampling.upsample(aten.upsample_trilinear3d),
    aten.upsample_bicubic2d.default: resampling.upsample(aten.upsample_bicubic2d),
    aten._upsample_bilinear2d_aa.default: resampling.upsample(aten._upsample_bilinear2d_aa),
    aten._upsample_bicubic2d_aa.default: resampling.upsample(aten._upsample_bicubic2d_aa),
    aten.upsample_nearest1d_backward.default: resampling.upsample_backward(aten.upsample_nearest1d),
    aten.upsample_nearest2d_backward.default: resampling.upsample_backward(aten.upsample_nearest2d),
    aten.upsample_nearest3d_backward.default: resampling.upsample_backward(aten.upsample_nearest3d),
    aten._upsample_nearest_exact1d_backward.default: resampling.upsample_backward(aten._upsample_nearest_exact1d),
    aten._upsample_nearest_exact2d_backward.default: resampling.upsample_backward(aten._upsample_nearest_exact2d),
    aten._upsample_nearest_exact3d_backward.default: resampling.upsample_backward(aten._upsample_nearest_exact3d),
    aten.upsample_linear1d_backward.default: resampling.upsample_backward(aten.upsample_linear1d),
    aten.upsample_bilinear2d_backward.default: resampling.upsample_backward(aten.upsample_bilinear2d),
    aten.upsample_trilinear3d_backward.default: resampling.upsample_backward(aten.upsample_trilinear3d),
    aten.upsample_bicubic2d_backward.default: resampling.upsample_backward(aten.upsample_bicubic2d),
    aten._upsample_bilinear2d_aa_backward.default: resampling.upsample_backward(aten._upsample_bilinear2d_aa),
    aten._upsample_bicubic2d_aa_backward.default: resampling.upsample_backward(aten._upsample_bicubic2d_aa),
}
