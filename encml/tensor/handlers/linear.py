"""Matrix products, convolutions and poolings: secret by secret, or with a public operand on either side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.ring import kernels
from encml.ring.kernels import Pair
from encml.tensor.handlers.arithmetic import add_secrets, scale
from encml.tensor.handlers.common import (
    as_secret,
    axis,
    bilinear,
    by_public,
    result_dtype,
    session_of,
    supported_dtype,
    wrap,
)
from encml.tensor.public import Number
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret


def matmul(x: Tensor, y: Tensor) -> SharedTensor:
    """mm, bmm, mv, dot: one ring element an output, whatever the inner dimension; pending."""
    return wrap(bilinear(torch.matmul, x, y), result_dtype(x, y))


def addmm(bias: Tensor, x: Tensor, y: Tensor, *, beta: Number = 1, alpha: Number = 1) -> SharedTensor:
    """addmm, addmv, baddbmm: beta * bias + alpha * (x @ y); the bias joins before the truncation."""
    session = session_of(bias, x, y)
    if isinstance(x, SharedTensor) or isinstance(y, SharedTensor):
        product = bilinear(torch.matmul, x, y)
    else:
        product = as_secret(torch.matmul(x, y), session)
    if alpha != 1:
        product = scale(product, alpha)
    dtype = result_dtype(bias, x, y)
    if beta == 0:
        return wrap(product, dtype)
    addend = as_secret(bias, session)
    return wrap(add_secrets(product, addend if beta == 1 else scale(addend, beta)), dtype)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> SharedTensor:
    """convolution in two dimensions; the bias joins before the truncation. Pending."""
    _only_conv2d(x, transposed)
    operands = [t for t in (x, weight, bias) if t is not None]
    session = session_of(*operands)
    settings = _settings(stride, padding, dilation, groups)
    if isinstance(x, SharedTensor) or isinstance(weight, SharedTensor):
        result = bilinear(partial(kernels.conv2d, **settings), x, weight)
    else:
        result = as_secret(F.conv2d(x, weight, **settings), session)
    if bias is not None:
        addend = as_secret(bias, session)
        addend = addend.like(addend.terms.reshape(-1, bias.numel(), 1, 1))
        result = add_secrets(result, addend, into_left=True)
    return wrap(result, result_dtype(*operands))


def convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """convolution_backward in two dimensions: both gradients are products of secrets, pending."""
    _only_conv2d(x, transposed)
    if not isinstance(gradient, SharedTensor):
        gradient = wrap(as_secret(gradient, session_of(x, weight)), gradient.dtype)
    settings = _settings(stride, padding, dilation, groups)
    to_x = to_weight = to_bias = None
    if output_mask[0]:
        adjoint = partial(kernels.conv2d_input_gradient, size=_pair(x.shape[2:]), **settings)
        to_x = _map2(adjoint, gradient, weight)
    if output_mask[1]:
        adjoint = partial(kernels.conv2d_weight_gradient, size=_pair(weight.shape[2:]), **settings)
        to_weight = _map2(adjoint, x, gradient)
    if output_mask[2]:
        to_bias = sum_dims(gradient, (0, 2, 3))
    return to_x, to_weight, to_bias


def avg_pool2d(
    x: SharedTensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> SharedTensor:
    """avg_pool2d: sums over windows, local; the division by 2^k elements only counts k more fraction bits."""
    kernel, steps, pads = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    factors = _pool_factors(x, kernel, steps, pads, ceil_mode, count_include_pad, divisor_override)
    output = (factors.shape[-2], factors.shape[-1])
    sums = secret(x).linear(partial(kernels.sum_pool2d, kernel=kernel, stride=steps, padding=pads, output=output))
    return wrap(_times_factors(sums, factors, fresh=True), x.dtype)


def avg_pool2d_backward(
    gradient: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> SharedTensor:
    """avg_pool2d_backward: the gradient, divided as in forward, goes back to every element of its window. Local."""
    if not isinstance(gradient, SharedTensor):
        gradient = wrap(as_secret(gradient, session_of(x)), x.dtype)
    kernel, steps, pads = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    factors = _pool_factors(x, kernel, steps, pads, ceil_mode, count_include_pad, divisor_override)
    shares = _times_factors(secret(gradient), factors)
    adjoint = partial(kernels.sum_pool2d_gradient, size=_pair(x.shape[-2:]), kernel=kernel, stride=steps, padding=pads)
    return wrap(shares.linear(adjoint), gradient.dtype)


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


def _map2(f: partial[Tensor], x: Tensor, y: Tensor) -> SharedTensor:
    return wrap(bilinear(f, x, y), result_dtype(x, y))


def _pool_factors(
    x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool, include_pad: bool, divisor: int | None
) -> Tensor:
    """1 / divisor of every window, (1, H', W'), from PyTorch's own average over ones: exact for the interior."""
    ones = torch.ones(1, *x.shape[-2:], dtype=torch.float64)
    means = F.avg_pool2d(ones, kernel, stride, padding, ceil_mode, include_pad, divisor)
    sums = F.avg_pool2d(ones, kernel, stride, padding, ceil_mode, include_pad, 1)
    return means / sums


def _times_factors(value: Secret, factors: Tensor, fresh: bool = False) -> Secret:
    first = float(factors.flatten()[0])
    if bool((factors == first).all()):
        return scale(value, first, into_value=fresh)
    return by_public(torch.mul, value, factors)


def _pair(values: Sequence[int]) -> Pair:
    return (int(values[0]), int(values[-1]))


def _settings(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> dict[str, Any]:
    return {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation), "groups": groups}


def _only_conv2d(x: Tensor, transposed: bool) -> None:
    if transposed or x.ndim != 4:
        kind = "a transposed convolution" if transposed else f"a convolution in {x.ndim - 2} dimensions"
        raise UnsupportedOperation(f"{kind} has no secret-shared version yet; nearest supported: conv2d")
