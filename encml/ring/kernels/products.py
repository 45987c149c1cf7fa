"""The loops of matrix products around ``encml.ring.kernels.tiles``, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from encml.ring.kernels.compiling import compiled
from encml.ring.kernels.tiles import DOT_COLUMNS, DOT_ROWS, LANES, ROWS, VECTORS, dots, gather

Array = npt.NDArray[np.int64]
Three = tuple[int, int, int]
Range = tuple[int, int]


_WIDTH = VECTORS * LANES
_DEPTH = 256
"""Rows of a panel of 32 columns: 64 KiB, well within the L2 cache."""
_DOT_DEPTH, _DOT_COLUMNS = 1024, 64
"""How much of how many columns is kept in the cache by ``multiply_dots``: 512 KiB."""
_FEW = 2 * ROWS
"""So many rows are not worth packing a panel for."""


@compiled
def _pack(panel: Array, y: Array, start: int, row: int, column: int, depth: int, width: int) -> None:
    """panel (depth, 32) = y[start + p * row + q * column]; the last columns stay as they are."""
    if column == 1:
        for p in range(depth):
            origin, place = np.uint64(start + p * row), np.uint64(p * _WIDTH)
            for q in range(np.uint64(width)):
                panel[place + q] = y[origin + q]
    else:
        for top in range(0, depth, LANES):
            for q in range(width):
                for p in range(top, min(top + LANES, depth)):
                    panel[p * _WIDTH + q] = y[start + p * row + q * column]


@compiled
def multiply(
    out: Array, out_steps: Three, x: Array, x_steps: Three, y: Array, y_steps: Three, batch: Range, columns: Range,
    m: int, k: int,
) -> None:  # fmt: skip
    """out (b, m, n) += x (b, m, k) @ y (b, k, n) in a range of the batch and of the columns n.

    The steps lead from one to the next of a batch, row to row and column to column; those of out are adjacent.
    """
    depth = min(k, _DEPTH)
    panel = np.empty(depth * _WIDTH, np.int64)
    parts, lanes = np.arange(0, _WIDTH, LANES), np.empty(VECTORS, np.int64)
    packed, rows = np.arange(0, depth * _WIDTH, _WIDTH), np.arange(0, depth) * y_steps[1]
    for b in range(batch[0], batch[1]):
        for top in range(0, k, _DEPTH):
            here = min(_DEPTH, k - top)
            for left in range(columns[0], columns[1], _WIDTH):
                width = min(_WIDTH, columns[1] - left)
                count = -(-width // LANES)
                for v in range(count):
                    lanes[v] = min(LANES, width - v * LANES)
                start = b * y_steps[0] + top * y_steps[1] + left * y_steps[2]
                packs = m > _FEW or y_steps[2] != 1
                if packs:
                    _pack(panel, y, start, y_steps[1], y_steps[2], here, width)
                for i in range(0, m, ROWS):
                    together = min(ROWS, m - i)
                    first = b * x_steps[0] + i * x_steps[1] + top * x_steps[2]
                    to = b * out_steps[0] + i * out_steps[1] + left
                    if packs:
                        gather(
                            x, first, x_steps[1], x_steps[2], together, panel, 0, parts, 0, count, packed, here,
                            out, to, parts, out_steps[1], lanes, 1,
                        )  # fmt: skip
                    else:
                        gather(
                            x, first, x_steps[1], x_steps[2], together, y, start, parts, 0, count, rows, here,
                            out, to, parts, out_steps[1], lanes, 1,
                        )  # fmt: skip


@compiled
def multiply_dots(
    out: Array, out_steps: Three, x: Array, x_steps: Three, y: Array, y_steps: Three, batch: Range, columns: Range,
    m: int, k: int,
) -> None:  # fmt: skip
    """As ``multiply``, where the elements of x's rows and of y's columns are adjacent in memory."""
    places = np.arange(0, min(k, _DOT_DEPTH), LANES)
    lanes, starts = np.empty(len(places), np.int64), np.arange(0, columns[1]) * y_steps[2]
    for b in range(batch[0], batch[1]):
        for top in range(0, k, _DOT_DEPTH):
            here = min(_DOT_DEPTH, k - top)
            vectors = -(-here // LANES)
            for v in range(vectors):
                lanes[v] = min(LANES, here - places[v])
            for left in range(columns[0], columns[1], _DOT_COLUMNS):
                right = min(left + _DOT_COLUMNS, columns[1])
                for i in range(0, m, DOT_ROWS):
                    for j in range(left, right, DOT_COLUMNS):
                        dots(
                            x, b * x_steps[0] + i * x_steps[1] + top, x_steps[1], min(DOT_ROWS, m - i), places, y,
                            b * y_steps[0] + top, starts, j, min(DOT_COLUMNS, right - j), places, lanes, 0,
                            here // LANES, vectors, out, b * out_steps[0] + i * out_steps[1] + j, out_steps[1],
                        )  # fmt: skip
