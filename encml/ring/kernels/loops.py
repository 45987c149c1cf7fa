"""The inner loops of convolutions and matrix products, compiled.

All is int64 and flat, in order of memory: images stand for (N, C, D, H, W), weights for (O, C / groups, d, h, w). What
lies outside an image is zero. At tap t of a window, output place q looks at place q * stride + t * dilation -
padding of the image. Lines along the last dimension are walked by ``_copy``, ``_add`` and their kin, which the compiler
turns into vector instructions; indices are unsigned there, for signed ones could count from the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.int64]
Three = tuple[int, int, int]
Five = tuple[int, int, int, int, int]

_compiled: Callable[[Any], Any] = numba.njit(cache=True, nogil=True)


_DEPTH, _ROWS = 1024, 64
"""How much of how many rows of a matrix is kept in the cache: 512 KiB."""
_ONE, _TWO, _THREE, _FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)


@_compiled
def _inside(outputs: int, stride: int, shift: int, size: int) -> tuple[int, int]:
    """The outputs q, from the first up to before the last, with 0 <= q * stride + shift < size."""
    low = min(max(0, -(shift // stride)), outputs)
    return low, max(low, min(outputs, (size - 1 - shift) // stride + 1))


@_compiled
def _zero(to: Array, start: int, count: int) -> None:
    place = np.uint64(start)
    for q in range(np.uint64(count)):
        to[place + q] = 0


@_compiled
def _copy(to: Array, start: int, source: Array, first: int, step: int, count: int) -> None:
    """to[start + q] = source[first + q * step]"""
    place, origin, wide = np.uint64(start), np.uint64(first), np.uint64(step)
    if step == 1:
        fours = np.uint64(count // 4)
        for _ in range(fours):
            a, b, c, d = source[origin], source[origin + _ONE], source[origin + _TWO], source[origin + _THREE]
            to[place], to[place + _ONE], to[place + _TWO], to[place + _THREE] = a, b, c, d
            place += _FOUR
            origin += _FOUR
        for q in range(np.uint64(count % 4)):
            to[place + q] = source[origin + q]
    else:
        for q in range(np.uint64(count)):
            to[place + q] = source[origin + q * wide]


@_compiled
def _add(to: Array, first: int, step: int, source: Array, start: int, factor: int, count: int) -> None:
    """to[first + q * step] += factor * source[start + q]"""
    place, origin, wide = np.uint64(start), np.uint64(first), np.uint64(step)
    if step == 1:
        for q in range(np.uint64(count)):
            to[origin + q] += factor * source[place + q]
    else:
        for q in range(np.uint64(count)):
            to[origin + q * wide] += factor * source[place + q]


@_compiled
def _take(to: Array, start: int, source: Array, first: int, step: int, factor: int, count: int) -> None:
    """to[start + q] += factor * source[first + q * step]"""
    place, origin, wide = np.uint64(start), np.uint64(first), np.uint64(step)
    if step == 1:
        for q in range(np.uint64(count)):
            to[place + q] += factor * source[origin + q]
    else:
        for q in range(np.uint64(count)):
            to[place + q] += factor * source[origin + q * wide]


@_compiled
def _dot(left: Array, start: int, right: Array, first: int, step: int, count: int) -> np.int64:
    """The sum of left[start + q] * right[first + q * step]."""
    place, origin, wide = np.uint64(start), np.uint64(first), np.uint64(step)
    total = np.int64(0)
    if step == 1:
        for q in range(np.uint64(count)):
            total += left[place + q] * right[origin + q]
    else:
        for q in range(np.uint64(count)):
            total += left[place + q] * right[origin + q * wide]
    return total


@_compiled
def lay(
    patches: Array, x: Array, size: Five, image: int, channel: int, images: int, channels: int, first: Three,
    output: Three, kernel: Three, stride: Three, padding: Three, dilation: Three, back: bool,
) -> None:  # fmt: skip
    """patches (channels, d * h * w, images, *output) = what windows see in x, of ``size``, from places ``first`` on.

    back: the adjoint instead; every patch is added to the place in x that it came from.
    """
    row = 0
    for c in range(channel, channel + channels):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                for k in range(kernel[2]):
                    shift = first[2] * stride[2] + k * dilation[2] - padding[2]
                    low, high = _inside(output[2], stride[2], shift, size[4])
                    across = j * dilation[1] - padding[1] + first[1] * stride[1]
                    top, bottom = _inside(output[1], stride[1], across, size[3])
                    for n in range(image, image + images):
                        for d in range(first[0], first[0] + output[0]):
                            z = d * stride[0] + i * dilation[0] - padding[0]
                            if z < 0 or z >= size[2]:
                                if not back:
                                    _zero(patches, row, output[1] * output[2])
                                row += output[1] * output[2]
                                continue
                            plane = ((n * size[1] + c) * size[2] + z) * size[3]
                            if not back:
                                _zero(patches, row, top * output[2])
                                _zero(patches, row + bottom * output[2], (output[1] - bottom) * output[2])
                            for r in range(top, bottom):
                                here = row + r * output[2]
                                seen = (plane + across + r * stride[1]) * size[4] + shift + low * stride[2]
                                if back:
                                    _add(x, seen, stride[2], patches, here + low, 1, high - low)
                                else:
                                    if low > 0:
                                        _zero(patches, here, low)
                                    _copy(patches, here + low, x, seen, stride[2], high - low)
                                    if high < output[2]:
                                        _zero(patches, here + high, output[2] - high)
                            row += output[1] * output[2]


@_compiled
def swap(source: Array, target: Array) -> None:
    """target (b, a, n) = source (a, b, n); either may be a part of something larger."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            for k in range(source.shape[2]):
                target[j, i, k] = source[i, j, k]


@_compiled
def add_dots(left: Array, left_step: int, right: Array, right_step: int, length: int, total: Array) -> None:
    """total (m, n) += left (m, length) @ right (n, length)^T, with rows so many elements apart.

    Two by two rows at a time, and as much of the right-hand ones together as stays in the cache.
    """
    m, n = total.shape
    for start in range(0, length, _DEPTH):
        stop = min(start + _DEPTH, length)
        for first in range(0, n, _ROWS):
            last = min(first + _ROWS, n)
            for i in range(0, m, 2):
                for j in range(first, last, 2):
                    # The last odd row or column goes with itself; what it gives twice is written once.
                    below, beside = min(i + 1, m - 1), min(j + 1, last - 1)
                    a, b = np.uint64(i * left_step + start), np.uint64(below * left_step + start)
                    c, d = np.uint64(j * right_step + start), np.uint64(beside * right_step + start)
                    s00 = s01 = s10 = s11 = np.int64(0)
                    for k in range(np.uint64(stop - start)):
                        s00 += left[a + k] * right[c + k]
                        s01 += left[a + k] * right[d + k]
                        s10 += left[b + k] * right[c + k]
                        s11 += left[b + k] * right[d + k]
                    total[i, j] += s00
                    if beside > j:
                        total[i, beside] += s01
                    if below > i:
                        total[below, j] += s10
                    if below > i and beside > j:
                        total[below, beside] += s11


@_compiled
def depthwise(
    x: Array, size: Five, weight: Array, result: Array, outputs: int, output: Three, kernel: Three, stride: Three,
    padding: Three, dilation: Three, direction: int,
) -> None:  # fmt: skip
    """Convolutions of one input channel a group: x of ``size``, weight (C * m, 1, *kernel), result (N, C * m, *output).

    ``direction`` says which of the three is added to, made from the other two: 0 the result, 1 x (the adjoint in x),
    2 the weight (the adjoint in the weight).
    """
    each = outputs // size[1]
    for n in range(size[0]):
        for o in range(outputs):
            tap = o * kernel[0] * kernel[1] * kernel[2]
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    for k in range(kernel[2]):
                        shift = k * dilation[2] - padding[2]
                        low, high = _inside(output[2], stride[2], shift, size[4])
                        for d in range(output[0]):
                            z = d * stride[0] + i * dilation[0] - padding[0]
                            if z < 0 or z >= size[2]:
                                continue
                            for r in range(output[1]):
                                y = r * stride[1] + j * dilation[1] - padding[1]
                                if y < 0 or y >= size[3]:
                                    continue
                                row = (((n * outputs + o) * output[0] + d) * output[1] + r) * output[2] + low
                                line = (((n * size[1] + o // each) * size[2] + z) * size[3] + y) * size[4]
                                seen = line + low * stride[2] + shift
                                if direction == 0:
                                    _take(result, row, x, seen, stride[2], weight[tap], high - low)
                                elif direction == 1:
                                    _add(x, seen, stride[2], result, row, weight[tap], high - low)
                                else:
                                    weight[tap] += _dot(result, row, x, seen, stride[2], high - low)
                        tap += 1


def flat(x: Tensor) -> Array:
    """A tensor's elements in order of memory, as an array: its own memory if it is contiguous."""
    array: Array = x.reshape(-1).numpy()
    return array


def rows(matrix: Tensor) -> tuple[Array, int]:
    """A matrix whose columns are adjacent in memory, as that memory and how far apart its rows are."""
    step = matrix.stride(0) if len(matrix) > 1 else matrix.shape[1]
    return flat(matrix.as_strided((step * (len(matrix) - 1) + matrix.shape[1],), (1,))), step
