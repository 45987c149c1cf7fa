"""What is ordered or chosen by value: abs, clamp, where, max, argmax, sort, topk; look-ups by a secret index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import choosing, lookup, ordering

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    # Signs
    aten.abs.default: choosing.absolute,
    aten.sign.default: choosing.sign,
    aten.sgn.default: choosing.sign,
    aten.heaviside.default: choosing.heaviside,
    # Bounds
    aten.clamp.default: choosing.clamp,
    aten.clamp.Tensor: choosing.clamp,
    aten.clamp_min.default: choosing.clamp,
    aten.clamp_min.Tensor: choosing.clamp,
    aten.clamp_max.default: choosing.clamp_max,
    aten.clamp_max.Tensor: choosing.clamp_max,
    aten.hardtanh.default: choosing.hardtanh,
    aten.hardtanh_backward.default: choosing.hardtanh_backward,
    aten.hardsigmoid.default: choosing.hardsigmoid,
    aten.hardsigmoid_backward.default: choosing.hardsigmoid_backward,
    aten.hardswish.default: choosing.hardswish,
    aten.hardswish_backward.default: choosing.hardswish_backward,
    # Rectifiers
    aten.threshold.default: choosing.threshold,
    aten.leaky_relu.default: choosing.leaky_relu,
    aten.leaky_relu_backward.default: choosing.leaky_relu_backward,
    aten.rrelu_with_noise.default: choosing.rrelu,
    aten.rrelu_with_noise_backward.default: choosing.rrelu_backward,
    aten._prelu_kernel.default: choosing.prelu,
    aten._prelu_kernel_backward.default: choosing.prelu_backward,
    aten.hardshrink.default: choosing.hardshrink,
    aten.hardshrink_backward.default: choosing.shrink_backward,
    aten.softshrink.default: choosing.softshrink,
    aten.softshrink_backward.default: choosing.shrink_backward,
    # Two tensors
    aten.maximum.default: choosing.maximum,
    aten.minimum.default: choosing.minimum,
    aten.fmax.default: choosing.maximum,
    aten.fmin.default: choosing.minimum,
    aten.where.self: choosing.where,
    aten.masked_fill.Scalar: choosing.masked_fill,
    aten.masked_fill.Tensor: choosing.masked_fill,
    # Largest and smallest
    aten.max.dim: ordering.max_dim,
    aten.min.dim: ordering.min_dim,
    aten.max.default: ordering.amax,
    aten.min.default: ordering.amin,
    aten.amax.default: ordering.amax,
    aten.amin.default: ordering.amin,
    aten.aminmax.default: ordering.aminmax,
    aten.argmax.default: ordering.argmax,
    aten.argmin.default: ordering.argmin,
    aten.cummax.default: ordering.cummax,
    aten.cummin.default: ordering.cummin,
    # By rank
    aten.sort.default: ordering.sort,
    aten.sort.stable: ordering.sort_stable,
    aten.topk.default: ordering.topk,
    aten.kthvalue.default: ordering.kthvalue,
    aten.median.default: ordering.median,
    aten.median.dim: ordering.median_dim,
    aten.nanmedian.default: ordering.median,
    aten.nanmedian.dim: ordering.median_dim,
    # Look-ups; by_index in table/rearranging.py lists those that take a public index as well
    aten.embedding.default: lookup.embedding,
    aten.embedding_dense_backward.default: lookup.embedding_backward,
}
