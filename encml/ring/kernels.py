"""Bilinear and linear maps over Z_2^64 that torch lacks, or lacks for int64, in plain wrap-around arithmetic.

All tensors are int64. Products and sums wrap modulo 2^64, as the ring wants. ``Pair`` is (height, width).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]

_CHUNK_BYTES = 1 << 20
"""Patches are laid out and multiplied for as many images at a time as fit here: measured best, within the L2 cache.
torch's own conv2d over int64 lays out and multiplies image by image, 1.5 to 4 times slower on small images."""


def conv2d(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """Cross-correlation, x (N, C, H, W) with weight (O, C / groups, h, w), as torch.nn.functional.conv2d."""
    if len(x) == 1:
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)
    out_channels, kernel = weight.shape[0], _pair(weight)
    images = _padded(x, padding)
    output = _output(_pair(images), kernel, stride, dilation)
    result = x.new_empty(len(x), out_channels, *output)
    matrix = weight.reshape(groups, out_channels // groups, -1)
    for part in _chunks(len(x), x.shape[1], kernel, output):
        products = matrix @ _patches(images[part], kernel, output, stride, dilation, groups)
        result[part] = products.view(out_channels, -1, *output).transpose(0, 1)
    return result


def conv2d_input_gradient(
    gradient: Tensor, weight: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """The adjoint of ``conv2d`` in x: gradient (N, O, H', W') to (N, C, *size), patch by patch."""
    channels, kernel, output = groups * weight.shape[1], _pair(weight), _pair(gradient)
    padded = gradient.new_zeros(len(gradient), channels, size[0] + 2 * padding[0], size[1] + 2 * padding[1])
    matrix = weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2).contiguous()
    for part in _chunks(len(gradient), channels, kernel, output):
        patches = matrix @ _by_channel(gradient[part], groups)
        patches = patches.view(channels, *kernel, -1, *output)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                _window(padded[part], i * dilation[0], j * dilation[1], stride, output).add_(
                    patches[:, i, j].transpose(0, 1)
                )
    return padded[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]].contiguous()


def conv2d_weight_gradient(
    x: Tensor, gradient: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """The adjoint of ``conv2d`` in the weight: x (N, C, H, W), gradient (N, O, H', W') to (O, C / groups, *size)."""
    channels, out_channels, output = x.shape[1], gradient.shape[1], _pair(gradient)
    images = _padded(x, padding)
    total = x.new_zeros(groups, out_channels // groups, channels // groups * size[0] * size[1])
    for part in _chunks(len(x), channels, size, output):
        patches = _patches(images[part], size, output, stride, dilation, groups)
        total += _by_channel(gradient[part], groups) @ patches.transpose(1, 2)
    return total.view(out_channels, channels // groups, *size)


def _chunks(images: int, channels: int, kernel: Pair, output: Pair) -> Iterator[slice]:
    """Consecutive images whose patches fit in _CHUNK_BYTES, at least one at a time."""
    each = 8 * channels * kernel[0] * kernel[1] * output[0] * output[1]
    step = max(1, _CHUNK_BYTES // max(each, 1))
    return (slice(first, min(first + step, images)) for first in range(0, images, step))


def _patches(x: Tensor, kernel: Pair, output: Pair, stride: Pair, dilation: Pair, groups: int) -> Tensor:
    """Padded images (N, C, H, W) as a matrix of patches: (groups, C / groups * h * w, N * H' * W')."""
    n, channels = x.shape[:2]
    image, channel, row, column = x.stride()
    inner = channels // groups
    view = x.as_strided(
        (groups, inner, *kernel, n, *output),
        (inner * channel, channel, dilation[0] * row, dilation[1] * column, image, stride[0] * row, stride[1] * column),
        x.storage_offset(),
    )
    return view.reshape(groups, inner * kernel[0] * kernel[1], n * output[0] * output[1])


def _by_channel(gradient: Tensor, groups: int) -> Tensor:
    """(N, O, H', W') to (groups, O / groups, N * H' * W')."""
    return gradient.transpose(0, 1).reshape(groups, gradient.shape[1] // groups, -1)


def _padded(x: Tensor, padding: Pair) -> Tensor:
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x


def _output(size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    return (
        (size[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1,
        (size[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1,
    )


def _pair(x: Tensor) -> Pair:
    """Height and width."""
    return (x.shape[-2], x.shape[-1])


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
    return [_window(x, i, j, stride, output) for i in range(kernel[0]) for j in range(kernel[1])]


def _window(x: Tensor, i: int, j: int, stride: Pair, output: Pair) -> Tensor:
    """What lies at offset (i, j) of every window."""
    return x[
        ..., i : i + (output[0] - 1) * stride[0] + 1 : stride[0], j : j + (output[1] - 1) * stride[1] + 1 : stride[1]
    ]
