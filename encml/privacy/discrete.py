"""Exact samples of the discrete Gaussian N_Z(0, σ²): P[x] ∝ exp(−x²/2σ²) for integers x.

Why exact: a Gaussian sampled in floating point misses most values, and which values it misses depends on what the
noise was added to; the low-order bits of a "private" result can then give the input away (Mironov 2012, "On
significance of the least significant bits for differential privacy"). Here noise and data are both integers, and
every coin has exactly the probability that the theory asks for.

Method: rejection from a discrete Laplace (Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential
privacy", Algorithms 1 to 3), each step for a whole array at once. A coin of probability p is a comparison r < p of a
uniform real r, given bit by bit, with the rational p. The first 64 bits of r and a float64 approximation of p settle
it unless they are closer than ``_MARGIN``, a bound on all rounding errors proven below; then (about once in 2^43
coins) exact rational arithmetic settles it, with further bits of the same r as needed. The outcome is thus that of
the exact algorithm in every case.

Not covered: the time that rejection takes depends on the numbers drawn (for whole arrays, on their sum only).

Rounding errors, with u = 2^-53 and IEEE-754 arithmetic rounded to nearest:

- a coin compares p' ≈ p with r' = (first 53 bits of r), r − u ≤ r' ≤ r, and the subtraction rounds by u at most.
  Where |p' − p| ≤ 2^-46, the computed p' − r' is thus within 2^-45 of p − r: its sign is right beyond ``_MARGIN``.
- Algorithm 2: p = U/(tk) with U < t < 2^53, two divisions: |p' − p| ≤ 2u.
- Algorithm 3: γ = (|Y| − μ)²/2σ², μ = σ²/t < σ. With z = (|Y| − μ)/σ, rounding |Y|, μ and their difference shifts z by
  at most 2u(|z| + 1); squaring and scaling multiply by at most (1 + u)^3. So |γ' − γ| ≤ 10u(γ + 1). Divided by
  m ≥ max(1, γ), and again by k, the error is below 2^-47.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from encml.errors import PrivacyError

MIN_VARIANCE = Fraction(1, 2**10)
"""Below it nothing but zeros comes out, and γ would outgrow what the rounding bound assumes (γ < 2^40)."""
MAX_VARIANCE = Fraction(2**100)
"""σ = 2^50: a sample beyond int64 then is one of 2^13 σ."""

_MARGIN = 2.0**-44
_CHUNK = 1 << 16  # proposals at a time: the working arrays stay in the processor's cache

_Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]
_Exact = Callable[[int], Fraction]


class RandomSource:
    """Uniform random words by AES-128-CTR, keyed by the operating system or, for tests, by the caller.

    Without a key each call runs under a fresh key and counter from ``os.urandom``: nothing is kept that could be
    stolen later, and a forked process never repeats its parent's noise. With a ``key`` of 16 bytes the words are
    one stream, the same on every machine; noise whose key someone knows protects nothing from them.
    One source serves one thread.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != 16:
            raise PrivacyError(f"the key of a random source has {len(key)} bytes; AES-128 needs 16")
        self._stream = None if key is None else _stream(key, bytes(16))

    def words(self, count: int) -> _Words:
        """``count`` independent uniform 64-bit words, uint64 of shape (count,)."""
        stream = self._stream or _stream(os.urandom(16), os.urandom(16))
        return np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)

    def __repr__(self) -> str:
        return f"RandomSource({'operating system' if self._stream is None else 'keyed'})"


def _stream(key: bytes, counter: bytes) -> CipherContext:
    return Cipher(AES(key), CTR(counter)).encryptor()


def discrete_gaussian(variance: Fraction | int, size: int, source: RandomSource) -> _Ints:
    """``size`` independent samples of N_Z(0, ``variance``), exactly; int64 of shape (size,).

    ``variance`` is σ² in squared ring units, rational, from 2^-10 to 2^100; :class:`PrivacyError` beyond. A sample
    too large for int64 would wrap; for that a proposal must exceed 2^12 σ, which happens with probability below
    e^-4000. About 15 random words and 0.4 µs of one core a sample. Canonne, Kamath, Steinke 2020, Algorithm 3.
    """
    if not isinstance(variance, Fraction | int) or not MIN_VARIANCE <= variance <= MAX_VARIANCE:
        raise PrivacyError(
            f"discrete Gaussian noise of variance {variance!r}: an int or Fraction from 2^-10 to 2^100 is needed "
            "(for no noise at all, add none; for more, use fewer fraction bits)"
        )
    if size < 0:
        raise PrivacyError(f"discrete Gaussian noise of size {size}: a number of samples from 0 up is needed")
    variance = Fraction(variance)
    scale = math.isqrt(math.floor(variance)) + 1
    accepted = [np.zeros(0, dtype=np.int64)]
    missing = size
    while missing > 0:
        # About half of the proposals survive. They are independent, so that taking the first ones biases nothing.
        proposals = _discrete_laplace(scale, min(2 * missing + missing // 8 + 64, _CHUNK), source)
        samples = proposals[_accepted(np.abs(proposals), variance, scale, source)]
        accepted.append(samples[:missing])
        missing -= samples.size
    return np.concatenate(accepted)


def _accepted(magnitude: _Ints, variance: Fraction, scale: int, source: RandomSource) -> _Bools:
    """Which Laplace proposals of this |Y| to keep: each with probability exp(−γ), γ = (|Y| − σ²/t)²/2σ².

    Algorithm 1 takes γ ≤ 1, so the coin is thrown as m coins of exp(−γ/m), for any integer m ≥ γ: which m it is
    does not matter, so that floating point may choose it.
    """
    gamma, throws = _exponents(magnitude, variance, scale)
    part = gamma / throws

    def exact(j: int) -> Fraction:
        return _exact_exponent(int(magnitude[j]), variance, scale) / int(throws[j])

    keep = np.zeros(magnitude.size, dtype=np.bool_)
    alive = np.arange(magnitude.size)
    thrown = 0
    while alive.size:
        alive = _survivors(alive, part, exact, source)
        thrown += 1
        through = throws[alive] == thrown
        keep[alive[through]] = True
        alive = alive[~through]
    return keep


def _exponents(magnitude: _Ints, variance: Fraction, scale: int) -> tuple[_Floats, _Ints]:
    """γ as float64, within 10u(γ + 1), and m ≥ max(1, γ): 2^-7 covers that error for every γ < 2^40."""
    distance = magnitude - float(variance / scale)
    gamma = distance * distance * float(1 / (2 * variance))
    return gamma, np.floor(gamma + 2.0**-7).astype(np.int64) + 1


def _exact_exponent(magnitude: int, variance: Fraction, scale: int) -> Fraction:
    return (magnitude - variance / scale) ** 2 / (2 * variance)


def _discrete_laplace(scale: int, count: int, source: RandomSource) -> _Ints:
    """Samples of P[x] ∝ exp(−|x|/t), integer t = ``scale`` < 2^53, from ``count`` attempts (Algorithm 2, s = 1).

    Rejected attempts are left out, so that fewer than ``count`` samples come back.
    """
    words = source.words(count)
    unbiased = np.uint64(2**64 // scale * scale - 1)  # words up to it fall on every residue equally often
    remainder = (words[words <= unbiased] % np.uint64(scale)).astype(np.int64)

    def exact(j: int) -> Fraction:
        return Fraction(int(remainder[j]), scale)

    kept = remainder[_survivors(np.arange(remainder.size), remainder / scale, exact, source)]
    magnitude = kept + scale * _geometric(kept.size, source)
    negative = (source.words(kept.size) & np.uint64(1)).astype(np.bool_)
    signed: _Ints = np.where(negative, -magnitude, magnitude)
    counted: _Bools = ~negative | (magnitude > 0)  # with −0 as well, zero would come up twice as often
    return signed[counted]


def _geometric(count: int, source: RandomSource) -> _Ints:
    """How many coins of probability exp(−1) succeed before the first failure; int64 of shape (count,)."""
    successes = np.zeros(count, dtype=np.int64)
    ones = np.ones(count)
    alive = np.arange(count)
    while alive.size:
        alive = _survivors(alive, ones, lambda j: Fraction(1), source)
        successes[alive] += 1
    return successes


def _survivors(
    index: npt.NDArray[np.intp], gamma: _Floats, exact: _Exact, source: RandomSource
) -> npt.NDArray[np.intp]:
    """The j of ``index``, in their order, whose coin of probability exp(−γ_j) succeeds (Algorithm 1).

    0 ≤ γ_j ≤ 1; ``gamma`` holds it within 2^-46 and ``exact(j)`` exactly. Coins of probability γ/1, γ/2, γ/3, … are
    thrown until one fails; the K-th being the first to fail with probability γ^(K−1)/(K−1)! − γ^K/K!, K is odd with
    probability 1 − γ + γ²/2 − … = exp(−γ).
    """
    success = np.zeros(gamma.size, dtype=np.bool_)
    active = index
    k = 1
    while active.size:
        words = source.words(active.size)
        gap = gamma[active] / k - (words >> np.uint64(11)) * 2.0**-53
        below = gap > 0
        for i in np.flatnonzero(np.abs(gap) <= _MARGIN):
            below[i] = _below(int(words[i]), exact(int(active[i])) / k, source)
        success[active[~below]] = k % 2 == 1
        active = active[below]
        k += 1
    return index[success[index]]


def _below(word: int, threshold: Fraction, source: RandomSource) -> bool:
    """Whether r < ``threshold`` for the uniform real r whose first 64 bits are ``word``, drawing more as needed."""
    value, bits = word, 64
    while True:
        # r is in [value, value + 1) · 2^-bits.
        if (value + 1) * threshold.denominator <= threshold.numerator << bits:
            return True
        if value * threshold.denominator >= threshold.numerator << bits:
            return False
        value, bits = value << 64 | int(source.words(1)[0]), bits + 64
