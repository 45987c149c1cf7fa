"""Normalisations by mean and variance, vector norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import layernorms, norms, vectors

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    # By channel
    aten.native_batch_norm.default: norms.batch_norm,
    aten.native_batch_norm_backward.default: norms.batch_norm_backward,
    aten._native_batch_norm_legit.default: norms.batch_norm,
    aten._native_batch_norm_legit.no_stats: norms.without_statistics,
    aten._native_batch_norm_legit_no_training.default: norms.evaluation,
    aten._batch_norm_with_update.default: norms.with_reserve(True),
    aten._batch_norm_no_update.default: norms.with_reserve(False),
    aten.batch_norm_backward.default: norms.backward_with_reserve,
    # Within an example
    aten.native_layer_norm.default: layernorms.layer_norm,
    aten.native_layer_norm_backward.default: layernorms.layer_norm_backward,
    aten.native_group_norm.default: layernorms.group_norm,
    aten.native_group_norm_backward.default: layernorms.group_norm_backward,
    aten._fused_rms_norm.default: layernorms.rms_norm,
    aten._fused_rms_norm_backward.default: layernorms.rms_norm_backward,
    # Variances and lengths
    aten.var.correction: vectors.var,
    aten.std.correction: vectors.std,
    aten.var_mean.correction: vectors.var_mean,
    aten.std_mean.correction: vectors.std_mean,
    aten.linalg_vector_norm.default: vectors.vector_norm,
    aten.norm.Scalar: vectors.norm,
    aten.norm.ScalarOpt_dim: vectors.norm,
    aten.dist.default: vectors.dist,
}
