"""Matrix products, secret by secret or with a public operand on either side; sums and means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.ring import kernels
from encml.tensor.handlers.arithmetic import scale
from encml.tensor.handlers.common import (
    axis,
    bilinear,
    result_dtype,
    supported_dtype,
    wrap,
)
from encml.tensor.shared import SharedTensor, secret


def matmul(x: Tensor, y: Tensor) -> SharedTensor:
    """mm, bmm, mv, dot: one ring element an output, whatever the inner dimension; pending."""
    return wrap(bilinear(kernels.matmul, x, y), result_dtype(x, y))


def sum_all(x: SharedTensor, *, dtype: torch.dtype | None = None) -> SharedTensor:
    """sum. No communication."""
    return wrap(secret(x).linear(lambda t: t.reshape(len(t), -1).sum(1)), _sum_dtype(x, dtype))


def sum_dims(
    x: SharedTensor, dims: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> SharedTensor:
    """sum.dim_IntList. No communication."""
    axes = [axis(x, d) for d in dims] if dims else list(range(1, x.ndim + 1))
    if x.ndim == 0:
        return wrap(secret(x).linear(torch.clone), _sum_dtype(x, dtype))
    return wrap(secret(x).linear(lambda t: t.sum(axes, keepdim)), _sum_dtype(x, dtype))


def _sum_dtype(x: SharedTensor, dtype: torch.dtype | None) -> torch.dtype:
    return supported_dtype(x, dtype or (x.dtype if x.dtype.is_floating_point else torch.int64))


def mean_all(x: SharedTensor, *, dtype: torch.dtype | None = None) -> SharedTensor:
    """mean. Local; rescaled later."""
    return _mean(sum_all(x, dtype=dtype), x)


def mean_dims(
    x: SharedTensor, dims: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> SharedTensor:
    """mean.dim. Local; rescaled later."""
    return _mean(sum_dims(x, dims, keepdim, dtype=dtype), x)


def _mean(total: SharedTensor, x: SharedTensor) -> SharedTensor:
    if not total.dtype.is_floating_point:
        raise UnsupportedOperation(f"mean of a {x.dtype} SharedTensor; convert it with .float() first")
    if not total.numel():
        return total
    if not x.numel():
        raise UnsupportedOperation(f"mean over no elements, of shape {tuple(x.shape)}: it would be NaN")
    return wrap(scale(secret(total), total.numel() / x.numel(), into_value=True), total.dtype)
