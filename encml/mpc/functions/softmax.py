"""Softmax: p_i = exp(x_i - m) / s, with m the largest of the x_i and s the sum of all exp(x_i - m).

Everything after the maximum works on a known range, and that is what makes it cheap and exact.

1. u = m - x_i >= 0. Where u is so large that exp(-u) cannot matter the result is 0; one comparison of a few bits
   tells, for the threshold need not be sharp. Else u = h/2 + rest: exp(-h/2) is a table's entry, chosen by the few bits
   of h, and exp(-rest) a polynomial of degree 4. h may be one too small, for the rest may be somewhat larger than 1/2:
   so the carry from the lowest bits is not computed. Shares are shifted, which leaves out a carry of 0 to 2.
2. s is in [1, k]. Comparisons with 4 log2(k) public thresholds, once a sum and not once an element, find the power
   sigma of 2^(-1/4) for which s sigma = 1 + d with |d| < 0.1. Then 1/s = sigma (1 - d + d^2 - ...), and
   log(s) = -log(sigma) + d - d^2/2 + ..., by polynomials that share d^2.
   sigma is rounded, but the same rounded number stands in d and before the bracket, so that does not matter.

Relative errors before the last rounding: 2^-18 for exp, 2^-16 for 1/s, 2^-17 for log(s); exp(0) = 1 up to 2^-21, so
that log_softmax is right where it is near 0. (Range reduction by tables and short polynomials is the practice of
mathematical libraries, e.g. Tang 1989; the thresholds are ours.)

Payloads are (S, k, n): n softmaxes side by side, each over k secrets, at f fraction bits with |x| < 2^(62 - 2f).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from encml.mpc import ordering
from encml.mpc.circuits import bits_at, one_hot
from encml.mpc.comparison import negative
from encml.mpc.flags import packed, unpacked
from encml.mpc.functions.polynomial import constant, multiply
from encml.mpc.lookup import lookup
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties, known
from encml.mpc.truncation import MAX_SHIFT, truncate_rows
from encml.ring.devices import beside

_TERMS = 60
"""Fraction bits of sums of products of numbers of about 1, before they are truncated."""
_SHORT_TERMS = 56
"""The same for 1/s, which is truncated further."""
_DEVIATION = 18
"""Fraction bits of d."""
_TILTED = 28
"""Fraction bits of sigma d."""
_SQUARE = 20
"""Fraction bits of squares."""
_EXACT_LOW = 4
"""Bits below h/2 whose carry is computed."""
_ALL_PAIRS = 12
"""The most entries whose maximum is found by comparing each with each."""
_STEPS = 4
"""Thresholds between s and 2 s."""
_SUM_DIGITS = 8
"""Fraction bits with which sums meet their thresholds."""


@dataclass(frozen=True, slots=True, repr=False)
class Weights:
    """exp(x - m) and 1/s of n softmaxes over k secrets: a softmax but for its last product."""

    exponentials: Tensor
    """(S, k, n) at ``exponential_bits(f)``, or (S, number of places)."""
    inverse: Tensor
    """(S, n) at ``inverse_bits(f)``."""
    fraction_bits: int
    shape: tuple[int, int]
    places: tuple[Tensor, Tensor] | None
    """Where in (k, n) the exponentials belong, if not everywhere; 0 elsewhere."""

    def probabilities(self, parties: Parties, operation: str = "softmax") -> Tensor:
        """p, a payload (S, k, n) at f fraction bits. 3 rounds, 9.4 B a party and element."""
        f = self.fraction_bits
        shift = exponential_bits(f) + inverse_bits(f) - f
        if self.places is None:
            return multiply(parties, self.exponentials, self.inverse[:, None], shift, operation)
        chosen = multiply(parties, self.exponentials, self.inverse[:, self.places[1]], shift, operation)
        return _put(chosen, self.places, self.shape)


def softmax(parties: Parties, payload: Tensor, fraction_bits: int, hidden: Tensor | None = None) -> Tensor:
    """p_i = exp(x_i) / sum_j exp(x_j) of a payload (S, k, n), over k. Nothing is revealed.

    hidden: public, bool (k, n); True where an entry does not take part: its result is 0 exactly, and nothing is paid
    for its exponential. Where all k are hidden all results are 0.

    50 rounds and 2.6 kB a party for 10 entries (4.2 kB where it is a single softmax, as bits travel in whole words): 14
    rounds and 0.9 kB for the maximum (``ordering.maximum_cost``), 16 rounds and 0.15 kB an element for exp, 20 rounds
    for the rest, 9 B an element and 0.15 kB a softmax. Each doubling of k adds as many rounds as the maximum needs.
    Off by less than 2 ulp or 2^-13 of it.
    """
    weights, _, _ = _parts(parties, payload, fraction_bits, hidden, logarithm=False)
    return weights.probabilities(parties)


def log_softmax(
    parties: Parties, payload: Tensor, fraction_bits: int, hidden: Tensor | None = None
) -> tuple[Tensor, Weights]:
    """x_i - log(sum_j exp(x_j)) of a payload (S, k, n), over k, and what the softmax needs further.

    Where ``hidden``, x_i counts as ``lowest``. 47 rounds, and the bytes of ``softmax`` less 9 an element. Off by less
    than 2 ulp (f <= 20; else 2^-19) or 2^-13 of it.
    """
    weights, logs, _ = _parts(parties, payload, fraction_bits, hidden, logarithm=True)
    return logs, weights


def log_softmax_and_slope(
    parties: Parties, payload: Tensor, fraction_bits: int, totals: Tensor | None = None
) -> tuple[Tensor, Weights, Tensor]:
    """As ``log_softmax``, and t_n p of a payload (S, n) of totals t at f fraction bits (1 if None), in the same rounds.

    47 rounds; p costs 19 B a party and element more than ``Weights.probabilities``, which takes 3 rounds after, and t
    another 9.4. |t| < 2^``total_bits(f)``, 2^9 at f = 16. No hidden entries.
    """
    weights, logs, slope = _parts(parties, payload, fraction_bits, None, logarithm=True, totals=totals, slope=True)
    assert slope is not None
    return logs, weights, slope


def total_bits(fraction_bits: int) -> int:
    """What a softmax is multiplied by in ``log_softmax_and_slope`` is below 2^this."""
    return min(25 - fraction_bits, 33 - _slope_bits(fraction_bits)) if fraction_bits < 22 else 3


def exponential_bits(fraction_bits: int) -> int:
    """Fraction bits of exp(x - m)."""
    return max(28, fraction_bits + 6)


def lowest(fraction_bits: int) -> int:
    """The number -2^(61-2f), half of the range, at f fraction bits: stands for minus infinity in a public mask."""
    return -(1 << (61 - fraction_bits))


def inverse_bits(fraction_bits: int) -> int:
    """Fraction bits of 1/s: at least 2 more than results have, and a product with an exponential has 32 more."""
    return fraction_bits + 32 - exponential_bits(fraction_bits)


def _parts(
    parties: Parties,
    payload: Tensor,
    fraction_bits: int,
    hidden: Tensor | None,
    *,
    logarithm: bool,
    totals: Tensor | None = None,
    slope: bool = False,
) -> tuple[Weights, Tensor, Tensor | None]:
    """The weights; if ``logarithm`` x - m - log(s), else x - m; and if ``slope`` p, times ``totals`` if any."""
    f, name = fraction_bits, "softmax"
    k, n = payload.shape[1:]
    if hidden is not None:
        payload = torch.where(beside(payload, hidden), constant(parties, payload, lowest(f)), payload)
    # Differences of two numbers in the range have one bit more than those.
    group = k if 2 <= k <= _ALL_PAIRS else None
    largest = ordering.maximum(parties, payload, group=group, bits=64 - f, operation=name)
    below = payload - largest[:, None]
    places = None if hidden is None else _places(~hidden)
    if places is None:
        exponentials = _exp_of_minus(parties, -below.flatten(1), f, k, name).view(payload.shape)
        sums = exponentials.sum(1)
    else:
        exponentials = _exp_of_minus(parties, -below[(slice(None), *places)], f, k, name)
        sums = payload.new_zeros((len(payload), n)).index_add_(1, beside(payload, places[1]), exponentials)
    whole = exponentials if slope else None
    inverse, log, probabilities = _inverse_and_log(parties, sums, f, k, logarithm, name, whole, totals)
    weights = Weights(exponentials, inverse, f, (k, n), places)
    return weights, (below if log is None else below - log[:, None]), probabilities


def _places(kept: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = kept.nonzero(as_tuple=True)
    return rows, columns


def _put(values: Tensor, places: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Tensor:
    result = values.new_zeros((len(values), *shape))
    result[(slice(None), *places)] = values
    return result


# exp of what is not positive ----------------------------------------------------------------------------------


def _exp_of_minus(parties: Parties, u: Tensor, f: int, k: int, name: str) -> Tensor:
    """exp(-u) for a payload u >= 0 (S, n), at ``exponential_bits(f)``. 16 rounds, about 160 B a party and element.

    Beyond 2^c - 3/2 with c as in ``_range_bits`` the result may be 0.
    """
    n = u.shape[1]
    if not n:
        return u
    halves, digits = f - 1, _range_bits(f, k) + 1
    entries = 2**digits
    # u shifted by ``dropped``, 2 added beforehand: h = u / 2^halves rounded down, or up to 2 / 16 less than that.
    dropped = max(halves - _EXACT_LOW, 0)
    near_zero = 2 << dropped
    shifted = (u + constant(parties, u, near_zero)) >> dropped
    coarse = ((u + constant(parties, u, 2 << halves)) >> halves) - constant(parties, u, entries - 1)
    middle = near_zero + (1 << halves) >> 1
    at_zero = near_zero - middle
    width = math.ldexp((1 << halves) + near_zero, -f - 1)
    c = _exp_coefficients(width)
    scale = sum(coefficient * math.ldexp(at_zero, -f) ** i for i, coefficient in enumerate(c))
    table = [round(math.ldexp(math.exp(-h / 2) / scale, 34)) for h in range(entries)]

    found: list[Tensor] = []

    def polynomial() -> Tensor:
        """exp(-rest) at 26 fraction bits."""
        found.append(bits_at(parties, shifted, halves - dropped, digits, name))
        (of_h,) = lookup(parties, found[0], n, [[1 << (halves + j) for j in range(digits)]], name)
        rest = u - of_h + constant(parties, u, at_zero)
        square = _rescaled(parties, product(parties, torch.mul, rest, rest), 2 * f, _SQUARE, name)
        places = 58 - _SQUARE
        higher = _integer(c[3], places - f) * rest + _integer(c[4], places - _SQUARE) * square
        rows = product(parties, torch.mul, square, higher + constant(parties, u, _integer(c[2], places)))
        linear = _integer(c[1], 58 - f) * rest + constant(parties, u, _integer(c[0], 58))
        return truncate_rows(parties, rows + linear[: parties.here], 32, name)

    def power() -> Tensor:
        """exp(-h/2) at 34 fraction bits, 0 where u is too large: the comparison takes no fewer rounds than the bits."""
        small = negative(parties, coarse, 64 - f - halves, name)
        (entry,) = lookup(parties, one_hot(parties, found[0], name, small.plane), n, [table], name)
        return entry

    fine, rough = parties.together(polynomial, power)
    return multiply(parties, fine, rough, _TERMS - exponential_bits(f), name)


def _range_bits(f: int, k: int) -> int:
    """c: exponentials count up to u = 2^c - 3/2, beyond which k of them are less than 2^-15 and one 2^-(f+4)."""
    least = math.log(2) * max(f + 4, 15 + math.log2(k)) + 1.5
    return max(1, math.ceil(math.log2(least)))


@cache
def _exp_coefficients(width: float) -> list[float]:
    """exp(-r) for |r| <= width, relative error 2^-19 at 0.29."""
    return _interpolated(lambda r: np.exp(-r), 4, width)


# The sum ------------------------------------------------------------------------------------------------------


def _inverse_and_log(
    parties: Parties,
    sums: Tensor,
    f: int,
    k: int,
    logarithm: bool,
    name: str,
    exponentials: Tensor | None = None,
    totals: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """1/s at ``inverse_bits`` and, if asked for, log(s) at f, for a payload s (S, n) in [1, k]. 17 rounds.

    And of ``exponentials`` (S, k, n), if given, their quotients by s, times ``totals`` (S, n) if given, at f, in the
    same rounds: e / s = e sigma (1 - d + ...), whose product e sigma is made beside d, and e sigma d beside sigma d.
    """
    bits, slope_bits = exponential_bits(f), _slope_bits(f)
    terms = min(_TERMS - max(1, math.ceil(math.log2(1 + math.log(k)))), f + MAX_SHIFT)
    sigma_bits = terms - bits
    powers = [round(2 ** (sigma_bits - j / _STEPS)) for j in range(_thresholds(k) + 1)]
    logs = [round(-math.log(math.ldexp(power, -sigma_bits)) * 2**terms) for power in powers]

    def segment() -> list[Tensor]:
        return _by_segment(parties, sums, bits, k, [powers, logs], name)

    given_bits = bits
    if exponentials is None or totals is None:
        sigma, minus_log_sigma = segment()
    else:
        given, by, given_bits = exponentials, totals[:, None], min(bits, f + 6)
        (sigma, minus_log_sigma), exponentials = parties.together(
            segment, lambda: multiply(parties, given, by, bits + f - given_bits, name)
        )

    deviation_rows = product(parties, torch.mul, sums, sigma) - constant(parties, sums, 1 << terms)[: parties.here]

    def deviation() -> Tensor:
        return truncate_rows(parties, deviation_rows, terms - _DEVIATION, name)

    scaled: Tensor | None = None
    if exponentials is None:
        d = deviation()
    else:
        whole = exponentials
        d, scaled = parties.together(
            deviation, lambda: multiply(parties, whole, sigma[:, None], given_bits + sigma_bits - slope_bits, name)
        )
    steps: list[Callable[[], Tensor]] = [
        lambda: multiply(parties, d, d, 2 * _DEVIATION - _SQUARE, name),
        lambda: _rescaled(parties, product(parties, torch.mul, sigma, d), sigma_bits + _DEVIATION, _TILTED, name),
    ]
    if scaled is not None:
        steps.append(lambda: multiply(parties, known(scaled), d[:, None], _DEVIATION, name))
    square, tilted, *leaning = parties.together(*steps)

    def toward_inverse(first: Tensor, first_bits: int, second: Tensor, second_bits: int, to: int) -> Tensor:
        # first q0 + second (q1 + q2 d + q3 d^2), first = sigma and second = sigma d, or both of them times e
        q, total = _inverse_coefficients(), second_bits + _SHORT_TERMS - _TILTED
        places = total - second_bits
        inner = _integer(q[2], places - _DEVIATION) * d + _integer(q[3], places - _SQUARE) * square
        inner = inner + constant(parties, d, _integer(q[1], places))
        rows = product(parties, torch.mul, second, inner if second.ndim == d.ndim else inner[:, None])
        rows += (_integer(q[0], total - first_bits) * first)[: parties.here]
        return truncate_rows(parties, rows, total - to, name)

    def log() -> Tensor:
        # -log(sigma) + d + d^2 (c0 + c1 d + c2 d^2)
        c, places = _log_coefficients(), terms - _SQUARE
        inner = _integer(c[1], places - _DEVIATION) * d + _integer(c[2], places - _SQUARE) * square
        rows = product(parties, torch.mul, square, inner + constant(parties, d, _integer(c[0], places)))
        rows += deviation_rows + minus_log_sigma[: parties.here]
        return truncate_rows(parties, rows, terms - f, name)

    last: list[Callable[[], Tensor]] = [lambda: toward_inverse(sigma, sigma_bits, tilted, _TILTED, inverse_bits(f))]
    if logarithm:
        last.append(log)
    if scaled is not None:
        last.append(lambda: toward_inverse(known(scaled), slope_bits, leaning[0], slope_bits, f))
    inverse, *others = parties.together(*last)
    quotients = others.pop() if scaled is not None else None
    return inverse, (others[0] if others else None), quotients


def _slope_bits(f: int) -> int:
    """Fraction bits of e sigma, and of e sigma d: 8 more than the quotient has where there is room for them."""
    return min(max(f + 8, 20), 28, f + MAX_SHIFT - (_SHORT_TERMS - _TILTED))


def _thresholds(k: int) -> int:
    """How many thresholds 2^((j + 1/2) / 4) there are up to k."""
    return max(1, math.ceil(_STEPS * math.log2(k) - 0.5)) if k > 1 else 1


def _by_segment(parties: Parties, sums: Tensor, bits: int, k: int, tables: list[list[int]], name: str) -> list[Tensor]:
    """The entries of public tables for the segment that each sum is in, payloads (S, n).

    Segment j is between the thresholds 2^((j - 1/2) / 4) and 2^((j + 1/2) / 4), which are met up to 2 / 256: sums are
    compared at 8 fraction bits, shifted as shares.
    """
    n, count, dropped = sums.shape[1], _thresholds(k), bits - _SUM_DIGITS
    shifted = (sums + constant(parties, sums, 1 << dropped)) >> dropped
    limits = torch.tensor([round(2 ** (_SUM_DIGITS + (j + 0.5) / _STEPS)) for j in range(count)])
    against = shifted[:, None] - constant(parties, shifted, 1)[:, None] * beside(shifted, limits[:, None])
    width = 2 + math.ceil(math.log2((k + 1) << _SUM_DIGITS))
    flags = unpacked(negative(parties, against, width, name))
    planes = torch.stack([packed(flags[:, j]).plane for j in range(count)], 1)
    # Bit j says that the sum is below threshold j, so that the tables are added up from their ends.
    steps = [[table[j] - table[j + 1] for j in range(count)] for table in tables]
    found = lookup(parties, planes, n, steps, name)
    return [entry + constant(parties, sums, table[-1]) for entry, table in zip(found, tables, strict=True)]


@cache
def _inverse_coefficients() -> list[float]:
    """1 / (1 + d) for |d| <= 0.1, relative error 2^-16."""
    return _interpolated(lambda d: 1 / (1 + d), 3, 0.1)


@cache
def _log_coefficients() -> list[float]:
    """(log(1 + d) - d) / d^2 = -1/2 + d/3 - d^2/4 + ... for |d| <= 0.1."""
    series = [(-1) ** (j + 1) / (j + 2) for j in range(16)]
    return _interpolated(lambda d: np.polynomial.polynomial.polyval(d, series), 2, 0.1)


# Small things -------------------------------------------------------------------------------------------------


def _interpolated(f: Callable[[np.ndarray], np.ndarray], degree: int, radius: float) -> list[float]:
    """The polynomial that meets f in Chebyshev's points of [-radius, radius], by its coefficients."""
    fitted = np.polynomial.Chebyshev.interpolate(f, degree, domain=[-radius, radius])
    return [float(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef]


def _integer(coefficient: float, bits: int) -> int:
    return round(math.ldexp(coefficient, bits))


def _rescaled(parties: Parties, rows: Tensor, bits: int, wanted: int, name: str) -> Tensor:
    """Additive rows as a payload at ``wanted`` fraction bits. 3 rounds, or 1 where that is no fewer than before."""
    if bits > wanted:
        return truncate_rows(parties, rows, bits - wanted, name)
    return parties.reshare(rows, name) << (wanted - bits)
