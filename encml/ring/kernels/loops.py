"""The loops of convolutions around ``encml.ring.kernels.tiles``, compiled.

All is int64 and flat, in order of memory: images stand for (N, C, D, H, W), weights for (O, C / groups, d, h, w). What
lies outside an image is zero. At tap t of a window, output place q looks at place q * stride + t * dilation -
padding of the image. Lines along the last dimension are walked by ``_copy``, ``_add`` and their kin, which the compiler
turns into vector instructions; indices are unsigned there, for signed ones could count from the end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from encml.ring.kernels.compiling import compiled
from encml.ring.kernels.tiles import DOT_COLUMNS, DOT_ROWS, LANES, ROWS, VECTORS, dots, gather

Array = npt.NDArray[np.int64]
Three = tuple[int, int, int]
Five = tuple[int, int, int, int, int]


_NEAR = 96
"""Vectors of which sums are taken at once: those of a tile's rows, 24 KiB, stay in the cache nearest to the core."""


@compiled
def _inside(outputs: int, stride: int, shift: int, size: int) -> tuple[int, int]:
    """The outputs q, from the first up to before the last, with 0 <= q * stride + shift < size."""
    low = min(max(0, -(shift // stride)), outputs)
    return low, max(low, min(outputs, (size - 1 - shift) // stride + 1))


@compiled
def _clear(to: Array, start: int, step: int, count: int) -> None:
    place, wide = np.uint64(start), np.uint64(step)
    for q in range(np.uint64(count)):
        to[place + q * wide] = 0


@compiled
def _copy(to: Array, start: int, wide: int, source: Array, first: int, step: int, count: int) -> None:
    """to[start + q * wide] = source[first + q * step]"""
    place, origin, apart, along = np.uint64(start), np.uint64(first), np.uint64(wide), np.uint64(step)
    if step == 1 and wide == 1:
        for q in range(np.uint64(count)):
            to[place + q] = source[origin + q]
    else:
        for q in range(np.uint64(count)):
            to[place + q * apart] = source[origin + q * along]


@compiled
def _merge(to: Array, start: int, wide: int, source: Array, first: int, step: int, count: int) -> None:
    """to[start + q * wide] += source[first + q * step]"""
    place, origin, apart, along = np.uint64(start), np.uint64(first), np.uint64(wide), np.uint64(step)
    if step == 1 and wide == 1:
        for q in range(np.uint64(count)):
            to[place + q] += source[origin + q]
    else:
        for q in range(np.uint64(count)):
            to[place + q * apart] += source[origin + q * along]


@compiled
def _add(to: Array, first: int, step: int, source: Array, start: int, factor: int, count: int) -> None:
    """to[first + q * step] += factor * source[start + q]"""
    place, origin, wide = np.uint64(start), np.uint64(first), np.uint64(step)
    if step == 1:
        for q in range(np.uint64(count)):
            to[origin + q] += factor * source[place + q]
    else:
        for q in range(np.uint64(count)):
            to[origin + q * wide] += factor * source[place + q]


@compiled
def _take(to: Array, start: int, source: Array, first: int, step: int, factor: int, count: int) -> None:
    """to[start + q] += factor * source[first + q * step]"""
    place, origin, wide = np.uint64(start), np.uint64(first), np.uint64(step)
    if step == 1:
        for q in range(np.uint64(count)):
            to[place + q] += factor * source[origin + q]
    else:
        for q in range(np.uint64(count)):
            to[place + q] += factor * source[origin + q * wide]


@compiled
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


@compiled
def pack(
    x: Array, size: Five, image: int, images: int, channel: int, channels: int, lanes: int,
    phases: tuple[Array, Array, Array], extent: Three, stride: Three, shift: Three, buffer: Array, back: bool,
) -> None:  # fmt: skip
    """Lay some images and channels of x, of ``size``, into a buffer (images / lanes, channels, phases, extent, lanes).

    Place e of phase p of a dimension is what x has at e * stride + p + shift there, or zero outside. Of images there
    are 1 or 8 in a vector of ``lanes``, with zeros where the last vector has fewer.
    back: the adjoint instead; what is in the buffer is added to the places in x that it would come from.
    """
    row = 0
    for first in range(image, image + images, lanes):
        for c in range(channel, channel + channels):
            for i in phases[0]:
                for j in phases[1]:
                    for k in phases[2]:
                        right = k + shift[2]
                        low, high = _inside(extent[2], stride[2], right, size[4])
                        for d in range(extent[0]):
                            z = d * stride[0] + i + shift[0]
                            for r in range(extent[1]):
                                y = r * stride[1] + j + shift[1]
                                for lane in range(lanes):
                                    here, n = row + lane, first + lane
                                    if z < 0 or z >= size[2] or y < 0 or y >= size[3] or n >= image + images:
                                        if not back:
                                            _clear(buffer, here, lanes, extent[2])
                                        continue
                                    line = (((n * size[1] + c) * size[2] + z) * size[3] + y) * size[4]
                                    seen = line + right + low * stride[2]
                                    if back:
                                        _merge(x, seen, stride[2], buffer, here + low * lanes, lanes, high - low)
                                    else:
                                        _clear(buffer, here, lanes, low)
                                        _copy(buffer, here + low * lanes, lanes, x, seen, stride[2], high - low)
                                        _clear(buffer, here + high * lanes, lanes, extent[2] - high)
                                row += extent[2] * lanes


@compiled
def collect(
    source: Array, first: int, row: int, rows: int, places: Array, lane: int, lanes: Array, vectors: Array
) -> None:
    """vectors (rows, places, 8) = source[first + r * row + place + l * lane] for l below lanes[place]."""
    to = 0
    for r in range(rows):
        for v in range(len(places)):
            _copy(vectors, to, 1, source, first + r * row + places[v], lane, lanes[v])
            to += LANES


@compiled
def spread(
    vectors: Array, target: Array, first: int, row: int, rows: int, places: Array, lane: int, lanes: Array, add: bool
) -> None:
    """The inverse of ``collect``, into a target that then plays the source's part; or added to what is there."""
    origin = 0
    for r in range(rows):
        for v in range(len(places)):
            to = first + r * row + places[v]
            if add:
                _merge(target, to, lane, vectors, origin, 1, lanes[v])
            else:
                _copy(target, to, lane, vectors, origin, 1, lanes[v])
            origin += LANES


@compiled
def windows(
    weight: Array, first: int, row: int, rows: int, x: Array, places: Array, taps: Array, out: Array, out_first: int,
    out_places: Array, lanes: Array, out_row: int, add: bool,
) -> None:  # fmt: skip
    """out[row r, place v] = (+=, if ``add``) the sum over taps t of weight[r, t] * x[place v + tap t]."""
    for v in range(0, len(places), VECTORS):
        for r in range(0, rows, ROWS):
            gather(
                weight, first + r * row, row, 1, min(ROWS, rows - r), x, 0, places, v, min(VECTORS, len(places) - v),
                taps, len(taps), out, out_first + r * out_row, out_places, out_row, lanes, int(add),
            )  # fmt: skip


@compiled
def windows_back(
    weight: Array, first: int, channel: int, channels: int, output: int, outputs: int, upstream: Array,
    upstream_first: int, upstream_row: int, upstream_places: Array, lanes: Array, taps: Array, buffer: Array,
    places: Array, step: int,
) -> None:  # fmt: skip
    """buffer[channel c, place v + tap t] += the sum over outputs o of weight[o, c, t] * upstream[row o, place v].

    A tile goes over channels, not over taps, which meet at the same places.
    """
    rows = np.arange(outputs) * upstream_row
    for v in range(0, len(places), VECTORS):
        for t in range(len(taps)):
            for c in range(0, channels, ROWS):
                gather(
                    weight, first + c * channel + t, channel, output, min(ROWS, channels - c), upstream, upstream_first,
                    upstream_places, v, min(VECTORS, len(places) - v), rows, outputs, buffer, c * step + taps[t],
                    places, step, lanes, 1,
                )  # fmt: skip


@compiled
def window_dots(
    upstream: Array, first: int, row: int, rows: int, upstream_places: Array, x: Array, taps: Array, places: Array,
    lanes: Array, out: Array, out_first: int, out_row: int,
) -> None:  # fmt: skip
    """out[row r, tap t] += the sum over places v of upstream[row r, place v] * x[place v + tap t]."""
    all_full = 1
    for width in lanes:
        if width < LANES:
            all_full = 0
    for v in range(0, len(places), _NEAR):
        count = min(_NEAR, len(places) - v)
        for r in range(0, rows, DOT_ROWS):
            for t in range(0, len(taps), DOT_COLUMNS):
                dots(
                    upstream, first + r * row, row, min(DOT_ROWS, rows - r), upstream_places, x, 0, taps, t,
                    min(DOT_COLUMNS, len(taps) - t), places, lanes, v, all_full * count, count, out,
                    out_first + r * out_row + t, out_row,
                )  # fmt: skip


@compiled
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
    array: Array = x.contiguous().view(-1).numpy()  # a number expanded is flat, but not an array of elements
    return array
