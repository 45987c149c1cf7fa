"""Smooth curves that are flat or straight far out: sigmoid, tanh, erf, GELU, ... by cubic pieces.

A curve lives on a grid of equal cells; which cell x is in are the bits of x above the cell's size, as one-hot planes.
On each piece (one cell, or two or four where the curve is tame) it is c_0 + c_1 u + c_2 u^2 + c_3 u^3 in the distance u
to the piece's middle; the coefficients are read from tables, so all curves cost the same:

    w = c_3 u,  q = u^2                                   (3 rounds)
    c_0 + c_1 u + (c_2 + w) q                             (3 rounds)

Left of the grid a curve is a constant, right of it a constant or x itself. Pieces by Chebyshev interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from encml.mpc.circuits import bits_at, flipped, one_hot
from encml.mpc.comparison import SecretBits, negative, select
from encml.mpc.functions.polynomial import Array, constant, multiply
from encml.mpc.lookup import lookup
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.truncation import truncate_rows

_BITS = 6
_CELLS = 1 << _BITS
_SCALE = 44
_SQUARE = 24
"""Fraction bits of u^2."""


@dataclass(frozen=True)
class Grid:
    """64 cells of width 2^-fineness around 0."""

    fineness: int

    @property
    def end(self) -> float:
        """The grid is [-end, end)."""
        return _CELLS / 2 * 2.0**-self.fineness


FINE = Grid(2)
"""[-8, 8) in quarters."""
WIDE = Grid(1)
"""[-16, 16) in halves."""


@dataclass(frozen=True)
class Curve:
    """A function on a grid, with what it is on either side: ``left``, and ``right`` + ``slope`` x, slope 0 or 1."""

    name: str
    of: Callable[[Array], Array]
    grid: Grid
    left: float
    right: float
    slope: int = 0


@dataclass(frozen=True, repr=False)
class Cells:
    """Where n values are: one-hot planes (S, 64, words) of cells, planes (S, words) of left and right of the grid."""

    grid: Grid
    planes: Tensor
    left: Tensor
    right: Tensor


def locate(parties: Parties, payload: Tensor, fraction_bits: int, grid: Grid) -> Cells:
    """Which cells a payload's values are in. 11 rounds, 62 B a party and element; reveals nothing.

    To be kept: any curve on the grid, and its derivative, can be read there.
    """
    f, x, name = fraction_bits, payload.reshape(len(payload), -1), "locate"
    size = int(math.ldexp(2 * grid.end, f))
    start = x + constant(parties, x, size // 2)
    bits, left, right = parties.together(
        lambda: bits_at(parties, start, f - grid.fineness, _BITS, name),
        lambda: negative(parties, start, operation=name).plane,
        lambda: negative(parties, constant(parties, x, size - 1) - start, operation=name).plane,
    )
    return Cells(grid, one_hot(parties, bits, name, mask=flipped(parties, left ^ right)), left, right)


def evaluate(parties: Parties, payload: Tensor, fraction_bits: int, cells: Cells, curve: Curve) -> Tensor:
    """The curve at a payload's values, located before. 8 rounds, 128 to 155 B a party and element, by its pieces.

    Off by less than 2 ulp at f = 16, mish by 4; the pieces themselves by a quarter of 2^-16.
    """
    f, x, name = fraction_bits, payload.reshape(len(payload), -1), curve.name
    n = x[0].numel()
    pieces = _pieces(curve)
    square = min(_SQUARE, 2 * f - 1)
    places = (_SCALE, _SCALE - f, _SCALE - square, _SCALE - square)
    outside = [curve.left, curve.right]
    tables = [[round(math.ldexp(piece.middle, f)) for piece in pieces] + [0, 0]]
    for k, place in enumerate(places):
        ends = [round(math.ldexp(end, place)) if k == 0 else 0 for end in outside]
        tables.append([round(math.ldexp(piece.coefficients[k], place)) for piece in pieces] + ends)
    planes = torch.stack([*(_joined(cells.planes, piece) for piece in pieces), cells.left, cells.right], 1)

    def inside() -> Tensor:
        middle, *c = lookup(parties, planes, n, tables, name)
        u = x - middle
        w, q = parties.together(
            lambda: multiply(parties, c[3], u, f, name),
            lambda: multiply(parties, u, u, 2 * f - square, name),
        )
        rows = product(parties, torch.mul, c[1], u) + product(parties, torch.mul, c[2] + w, q) + c[0][: parties.here]
        return truncate_rows(parties, rows, _SCALE - f, name)

    if not curve.slope:
        return inside().view(payload.shape)
    value, straight = parties.together(inside, lambda: select(parties, SecretBits(cells.right, (n,)), x, name))
    total: Tensor = value + straight
    return total.view(payload.shape)


@dataclass(frozen=True)
class _Piece:
    """Cells ``first`` to ``last``: the middle, and c_0 to c_3 in the distance to it."""

    first: int
    last: int
    middle: float
    coefficients: tuple[float, ...]


def _joined(planes: Tensor, piece: _Piece) -> Tensor:
    joined = planes[:, piece.first]
    for cell in range(piece.first + 1, piece.last + 1):
        joined = joined ^ planes[:, cell]
    return joined


@cache
def _pieces(curve: Curve) -> tuple[_Piece, ...]:
    return tuple(_split(curve, 0, _CELLS))


def _split(curve: Curve, first: int, count: int) -> list[_Piece]:
    """The pieces of ``count`` cells from ``first``: one, if it is precise enough or can not be halved."""
    width = 2.0**-curve.grid.fineness
    middle, radius = first * width - curve.grid.end + count * width / 2, count * width / 2
    points = np.cos(np.pi * (np.arange(4) + 0.5) / 4)
    fitted = np.polynomial.polynomial.polyfit(points, curve.of(middle + radius * points), 3)
    probes = np.linspace(-1, 1, 101)
    error = np.abs(np.polynomial.polynomial.polyval(probes, fitted) - curve.of(middle + radius * probes)).max()
    if error > 2.0**-18 and count > 1:
        half = count // 2
        return _split(curve, first, half) + _split(curve, first + half, half)
    return [_Piece(first, first + count - 1, middle, tuple(float(c) / radius**k for k, c in enumerate(fitted)))]


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _normal(x: Array) -> Array:
    """The standard normal distribution function."""
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


def _density(x: Array) -> Array:
    return np.asarray(np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


_A, _B = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh_slope(x: Array) -> Array:
    inner = np.tanh(_A * (x + _B * x**3))
    return np.asarray(0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * _A * (1 + 3 * _B * x**2))


def _mish_slope(x: Array) -> Array:
    inner = np.tanh(np.logaddexp(0, x))
    return np.asarray(inner + x * (1 - inner**2) * _sigmoid(x))


SIGMOID = Curve("sigmoid", _sigmoid, WIDE, 0, 1)
TANH = Curve("tanh", np.tanh, FINE, -1, 1)
SOFTPLUS = Curve("softplus", lambda x: np.logaddexp(0, x), WIDE, 0, 0, slope=1)
SILU = Curve("silu", lambda x: x * _sigmoid(x), WIDE, 0, 0, slope=1)
SILU_SLOPE = Curve("silu_backward", lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))), WIDE, 0, 1)
MISH = Curve("mish", lambda x: x * np.tanh(np.logaddexp(0, x)), WIDE, 0, 0, slope=1)
MISH_SLOPE = Curve("mish_backward", _mish_slope, WIDE, 0, 1)
ERF = Curve("erf", lambda x: 2 * _normal(x * math.sqrt(2)) - 1, FINE, -1, 1)
GELU = Curve("gelu", lambda x: x * _normal(x), FINE, 0, 0, slope=1)
GELU_SLOPE = Curve("gelu_backward", lambda x: _normal(x) + x * _density(x), FINE, 0, 1)
GELU_TANH = Curve("gelu", lambda x: 0.5 * x * (1 + np.tanh(_A * (x + _B * x**3))), FINE, 0, 0, slope=1)
GELU_TANH_SLOPE = Curve("gelu_backward", _gelu_tanh_slope, FINE, 0, 1)
