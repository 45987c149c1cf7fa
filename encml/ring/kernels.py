"""Bilinear and linear maps over Z_2^64 that torch lacks, or lacks for int64, in plain wrap-around arithmetic.

All tensors are int64. Products and sums wrap modulo 2^64, as the ring wants. ``Pair`` is (height, width).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def conv2d(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """Cross-correlation, x (N, C, H, W) with weight (O, C / groups, h, w), as torch.nn.functional.conv2d."""
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def conv2d_input_gradient(
    gradient: Tensor, weight: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """The adjoint of ``conv2d`` in x: gradient (N, O, H', W') to (N, C, *size).

    The gradient, with stride - 1 zeros between its entries, is correlated with the flipped weight.
    """
    n, out_channels, rows, columns = gradient.shape
    spread = gradient.new_zeros(n, out_channels, (rows - 1) * stride[0] + 1, (columns - 1) * stride[1] + 1)
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    before = [dilation[k] * (weight.shape[2 + k] - 1) - padding[k] for k in (0, 1)]
    # What the strides never reached at the far edge gets zeros, too.
    after = [size[k] + dilation[k] * (weight.shape[2 + k] - 1) - before[k] - spread.shape[2 + k] for k in (0, 1)]
    spread = F.pad(spread, (before[1], after[1], before[0], after[0]))
    per_group = weight.shape[1]
    flipped = weight.flip(2, 3).view(groups, out_channels // groups, per_group, *weight.shape[2:])
    flipped = flipped.transpose(1, 2).reshape(groups * per_group, out_channels // groups, *weight.shape[2:])
    return F.conv2d(spread, flipped, None, (1, 1), (0, 0), dilation, groups)


def conv2d_weight_gradient(
    x: Tensor, gradient: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """The adjoint of ``conv2d`` in the weight: x (N, C, H, W), gradient (N, O, H', W') to (O, C / groups, *size)."""
    n, channels = x.shape[:2]
    out_channels = gradient.shape[1]
    if n == 0:
        return gradient.new_zeros(out_channels, channels // groups, *size)
    # Batch and channel change places: a correlation of x with the gradient as a kernel of dilation ``stride``.
    images = x.view(n, groups, channels // groups, *x.shape[2:]).permute(2, 1, 0, 3, 4)
    images = images.reshape(channels // groups, groups * n, *x.shape[2:])
    kernels = gradient.transpose(0, 1)
    result = F.conv2d(images, kernels, None, dilation, padding, stride, groups)
    return result[:, :, : size[0], : size[1]].transpose(0, 1).reshape(out_channels, channels // groups, *size)


def sum_pool2d(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, output: Pair) -> Tensor:
    """Sums over windows: x (..., H, W) to (..., *output); windows may reach over the padded far edge (ceil mode)."""
    pads = [max(0, (output[k] - 1) * stride[k] + kernel[k] - x.shape[k - 2] - padding[k]) for k in (0, 1)]
    if any(padding) or any(pads):
        x = F.pad(x, (padding[1], pads[1], padding[0], pads[0]))
    total = x.new_zeros(*x.shape[:-2], *output)
    for part in _windows(x, kernel, stride, output):
        total += part
    return total


def sum_pool2d_gradient(gradient: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """The adjoint of ``sum_pool2d``: gradient (..., H', W') to (..., *size)."""
    output = (gradient.shape[-2], gradient.shape[-1])
    full = [max(size[k] + 2 * padding[k], (output[k] - 1) * stride[k] + kernel[k]) for k in (0, 1)]
    total = gradient.new_zeros(*gradient.shape[:-2], *full)
    for part in _windows(total, kernel, stride, output):
        part += gradient
    return total[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]].contiguous()


def _windows(x: Tensor, kernel: Pair, stride: Pair, output: Pair) -> list[Tensor]:
    """For each offset in a window, the view of x that all windows have there."""
    spans = [(output[k] - 1) * stride[k] + 1 for k in (0, 1)]
    return [
        x[..., i : i + spans[0] : stride[0], j : j + spans[1] : stride[1]]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
