"""Products over Z_2^64 wherever torch multiplies float64 matrices: exact, of the ring's integers in limbs.

Graphics processors multiply no int64 matrices, but float64 ones, exactly as long as every sum stays below 2^53. An
integer is four limbs of 16 bits, so a product of limbs is below 2^32 and a sum of 2^21 of them is exact, in whatever
order it is formed. Of the 16 products of limbs, those of limbs i and j count 2^(16 (i + j)), and the ten with i + j < 4
are left modulo 2^64. Those with the same i + j are one product of matrices, along inner dimensions laid end to end.

This is for tensors that are not in the processor's own memory, see ``elsewhere``; there the compiled loops beside this
file are much faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from encml.ring.kernels.pooling import fold, unfold

Sizes = Sequence[int]

_LIMBS, _LIMB_BITS = 4, 16
DEPTH = 1 << (53 - 2 * _LIMB_BITS - 2)
"""The inner dimension that is multiplied at one time: four products of limbs are summed up for every step of it."""
_PATCHES = 1 << 25
"""Elements of the patches of images that are laid out at one time: 256 MiB, and their limbs four times as much."""


def elsewhere(*tensors: Tensor) -> bool:
    """Whether tensors lie where compiled loops cannot read them."""
    return any(tensor.device.type != "cpu" for tensor in tensors)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """torch.matmul of int64 tensors of any number of dimensions, modulo 2^64. Raises RuntimeError as that does."""
    if x.ndim == 0 or y.ndim == 0:
        raise RuntimeError(f"both factors of a matrix product need a dimension, found {x.ndim}D and {y.ndim}D")
    left, right = x if x.ndim > 1 else x[None], y if y.ndim > 1 else y[:, None]
    if left.shape[-1] != right.shape[-2]:
        raise RuntimeError(f"matrices of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be multiplied")
    total = _product(left[..., :DEPTH], right[..., :DEPTH, :])
    for start in range(DEPTH, left.shape[-1], DEPTH):
        end = start + DEPTH
        total += _product(left[..., start:end], right[..., start:end, :])
    if x.ndim == 1:
        total = total.squeeze(-2)
    return total.squeeze(-1) if y.ndim == 1 else total


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x (..., m, k) @ y (..., k, n) for k up to DEPTH."""
    k = x.shape[-1]
    rising, falling = torch.cat(_limbs(x), -1), torch.cat(_limbs(y)[::-1], -2)
    # Limbs 0 to s of x meet limbs s to 0 of y.
    parts = (rising[..., : (s + 1) * k] @ falling[..., (_LIMBS - 1 - s) * k :, :] for s in range(_LIMBS))
    total = next(parts).to(torch.int64)
    for s, part in enumerate(parts, 1):
        total += part.to(torch.int64) << (_LIMB_BITS * s)
    return total


def _limbs(x: Tensor) -> list[Tensor]:
    """The lowest first: x = the sum of limb i times 2^(16 i), modulo 2^64; each float64, from 0 to 2^16 - 1."""
    mask = (1 << _LIMB_BITS) - 1
    return [((x >> (_LIMB_BITS * i)) & mask).to(torch.float64) for i in range(_LIMBS)]


# Convolutions: patches of the images, multiplied as matrices. Shapes have been checked. -----------------------------


def convolution(
    x: Tensor, weight: Tensor, output: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """As ``encml.ring.kernels.convolution``, with a result (N, O, *output)."""
    kernel = weight.shape[2:]
    matrices = weight.reshape(groups, len(weight) // groups, -1)
    result = x.new_empty((len(x), len(weight), *output))
    for start, stop in _parts(len(x), x.shape[1], kernel, output):
        patches = unfold(x[start:stop], kernel, stride, padding, dilation, output)
        patches = patches.reshape(stop - start, groups, matrices.shape[2], -1)
        result[start:stop] = matmul(matrices, patches).view(stop - start, len(weight), *output)
    return result


def input_gradient(
    gradient: Tensor, weight: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """As ``encml.ring.kernels.input_gradient``."""
    kernel, channels = weight.shape[2:], weight.shape[1] * groups
    matrices = weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2)
    result = gradient.new_empty((len(gradient), channels, *size))
    for start, stop in _parts(len(gradient), channels, kernel, gradient.shape[2:]):
        upstream = gradient[start:stop].reshape(stop - start, groups, matrices.shape[2], -1)
        patches = matmul(matrices, upstream)
        patches = patches.view(stop - start, channels, -1, *gradient.shape[2:])
        result[start:stop] = fold(patches, size, kernel, stride, padding, dilation)
    return result


def weight_gradient(
    x: Tensor, gradient: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """As ``encml.ring.kernels.weight_gradient``."""
    outputs, channels, output = gradient.shape[1], x.shape[1], gradient.shape[2:]
    result = x.new_zeros((outputs, channels // groups, *size))
    matrices = result.view(groups, outputs // groups, -1)
    for start, stop in _parts(len(x), channels, size, output):
        images = stop - start
        patches = unfold(x[start:stop], size, stride, padding, dilation, output)
        # (groups, images and places, a window's elements), as the sum is over images and places.
        patches = patches.reshape(images, groups, matrices.shape[2], -1).permute(1, 0, 3, 2)
        upstream = gradient[start:stop].reshape(images, groups, outputs // groups, -1).permute(1, 2, 0, 3)
        matrices += matmul(upstream.flatten(2), patches.flatten(1, 2))
    return result


def _parts(images: int, channels: int, kernel: Sizes, output: Sizes) -> Iterator[tuple[int, int]]:
    """Runs of images, whose patches fit into memory."""
    size = channels
    for n in (*kernel, *output):
        size *= n
    step = max(1, _PATCHES // size)
    return ((start, min(images, start + step)) for start in range(0, images, step))
