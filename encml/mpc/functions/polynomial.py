"""Public polynomials of a secret number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.mpc.truncation import truncate_rows

Array = npt.NDArray[np.float64]
Fit = Callable[[Array], Array]
_STEP = 4


@dataclass(frozen=True)
class Polynomial:
    """sum_k c_k z^k of degree 8 or 11 as integers: c_0 at ``scale`` bits, the others at what their power leaves of it.

    ``bits``: fraction bits of z and its powers. c_1 to c_4 and the eighth of eleven carry scale - bits, the others
    scale - 2 bits.
    """

    coefficients: tuple[int, ...]
    bits: int
    scale: int

    @classmethod
    def fit(cls, f: Fit, radius: float, degree: int, bits: int, scale: int) -> Polynomial:
        """The polynomial near f on [-radius, radius], its relative error (where f is not near 0) almost least possible.

        Least squares on Chebyshev's points. The high coefficients have few bits: they are rounded first, and the lower
        ones fitted anew to make up for it.
        """
        z = radius * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
        weights = 1 / np.maximum(np.abs(f(z)), 0.25)
        places = [_places(k, degree, bits, scale) for k in range(degree + 1)]
        rounded = np.zeros(degree + 1)
        for highest in range(degree, -1, -1):
            left = f(z) - np.polynomial.polynomial.polyval(z, rounded)
            powers = np.stack([(z / radius) ** k for k in range(highest + 1)], 1)
            solution = np.linalg.lstsq(powers * weights[:, None], left * weights, rcond=None)[0]
            exact = solution[highest] / radius**highest
            rounded[highest] = np.ldexp(np.round(np.ldexp(exact, places[highest])), -places[highest])
        integers = tuple(int(np.ldexp(c, place)) for c, place in zip(rounded, places, strict=True))
        return cls(integers, bits, scale)

    def rows(self, parties: Parties, z: Tensor, operation: str) -> Tensor:
        """The value for a payload z (S, n) at ``bits`` fraction bits, as additive rows (P, n) at ``scale``, unmasked.

        6 rounds and 3 products of about 9 B a party and element for degree 8, 9 rounds and 4 products for 11; the
        truncation that must follow takes 3 more. |z| <= 1 and |value| < 2^(62 - scale).
        """
        c = self.coefficients
        z2 = multiply(parties, z, z, self.bits, operation)
        z3, z4 = parties.together(
            lambda: multiply(parties, z2, z, self.bits, operation),
            lambda: multiply(parties, z2, z2, self.bits, operation),
        )
        powers = (z, z2, z3)
        low, middle = _combined(parties, c[:_STEP], powers), _combined(parties, c[_STEP : 2 * _STEP], powers)
        if len(c) == 2 * _STEP + 1:
            middle = middle + c[-1] * z4
            high = torch.zeros_like(low[: parties.here])
        else:
            z8 = multiply(parties, z4, z4, self.bits, operation)
            high = product(parties, torch.mul, z8, _combined(parties, c[2 * _STEP :], powers))
        return product(parties, torch.mul, z4, middle) + high + low[: parties.here]


def _combined(parties: Parties, coefficients: Sequence[int], powers: Sequence[Tensor]) -> Tensor:
    """c_0 + c_1 z + c_2 z^2 + c_3 z^3, local."""
    total = constant(parties, powers[0], coefficients[0])
    for coefficient, power in zip(coefficients[1:], powers, strict=True):
        total = total + coefficient * power
    return total


def _places(k: int, degree: int, bits: int, scale: int) -> int:
    """The fraction bits of c_k."""
    if k == 0:
        return scale
    return scale - bits if k <= _STEP or (k == 2 * _STEP and degree > k) else scale - 2 * bits


def multiply(parties: Parties, x: Tensor, y: Tensor, shift: int, operation: str) -> Tensor:
    """x y / 2^shift of two payloads, element by element, off by less than one unit. 3 rounds, 8.75 B."""
    return truncate_rows(parties, product(parties, torch.mul, x, y), shift, operation)


def constant(parties: Parties, like: Tensor, value: int) -> Tensor:
    """A public integer as a payload of the shape of ``like``. No communication."""
    return public(parties, torch.full(like.shape[1:], value, dtype=torch.int64))
