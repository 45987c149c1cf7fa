"""Noise that no single party knows: how much each party adds, and why a Gaussian's accounting covers it.

Each of the three computing parties adds its own discrete Gaussian. One of them may be corrupt and knows what it added,
so that against it only the other two parts count; they alone must meet the budget (Kairouz, Liu, Steinke 2021, "The
distributed discrete Gaussian mechanism for federated learning with secure aggregation").

Accountants have figures for one continuous Gaussian, not for the sum of two discrete ones. What lies between, for d
coordinates, integer contributions Δ, σ² the sum's variance parameter, z = σ/‖Δ‖ and sampling rate q:

1. *Two discrete Gaussians are nearly one.* The probabilities of the sum of n, of variance v each, are within a factor
   exp(±τ/2) a coordinate of those of one of variance nv, τ = 10 Σ_{k=1}^{n−1} exp(−2π²v·k/(k+1)) (the same, Theorem 1
   and the convolution bound beneath it). A Rényi divergence of order α grows by at most dτ/2 · (2α−1)/(α−1).
2. *One discrete Gaussian has the Rényi divergences of a continuous one.* Without sampling: Canonne, Kamath, Steinke
   2020, Theorem 4. With sampling, at integer orders, they are *equal*: exp((α−1)D_α) is, for both,
   Σ_k C(α,k) (1−q)^(α−k) q^k exp((k²−k)/2z²) (Mironov, Talwar, Zhang 2019, Section 3.3), for a lattice sum of
   exp(−‖x−kΔ‖²/2σ²) does not depend on the integer k. At other orders the lattice sum and the integral differ, by
   Poisson summation with the contour moved by i·πσ²n/(‖n‖‖Δ‖) for the frequency n, by the factor
   1 + Σ_{n≠0} exp(−κ‖n‖) at most, κ = π²σz; the sum is at most 4d·exp(−κ) where κ ≥ 4√d·ln(4d).
   As for continuous noise (the same, Theorem 5), removing a unit costs no more than adding it: x → Δ − x maps the
   lattice onto itself.
3. *One discrete Gaussian is close to a rounded continuous one*, and rounding the sum costs no privacy. The integral of
   the Gaussian density over the unit cell around an integer is at least 1 − 1/24σ² of the density there
   (cosh ≥ 1, exp(−s²/2σ²) ≥ 1 − s²/2σ²), so that the two are within d/24σ² in total variation. (1 + e^ε) times that,
   for every release, adds to δ.

"rdp" needs 1 and 2, "prv" 1 and 3. :func:`party_variance` computes the bounds and refuses noise too coarse for them.
"""

from __future__ import annotations

import math
from fractions import Fraction

from encml.errors import PrivacyError
from encml.privacy.checks import Mechanism, check_mechanism, check_noise_multiplier

HONEST = 2
"""The computing parties whose noise counts: three, less the one that may be corrupt."""

RENYI_SLACK = 1e-10
"""What integer noise may add to a release's Rényi divergence of any order: at most 10^-5 to the ε of 10^5 releases."""

DELTA_SLACK = 1e-15
"""What "prv" allows as total variation of a release: at most 3·10^-9 to the δ of 10^3 releases at ε = 8."""

_SMALLEST_ORDER = 1.1  # of the Rényi orders in Opacus's list; the bounds shrink with growing order


def party_variance(
    noise_multiplier: float, sensitivity: Fraction | float, size: int, mechanism: Mechanism = "rdp"
) -> Fraction:
    """The variance σ²/2, in squared ring units, of the discrete Gaussian that *each* of the three parties adds.

    σ = ``noise_multiplier`` · ``sensitivity``, exactly. The two parties' parts that count against the third make σ²;
    everyone else faces 1.5 σ². ``sensitivity`` bounds the L2 norm of one unit's contribution *as integers in the
    ring*: clipping norm · 2^(fraction bits), plus what rounding may add (√size for one unit a coordinate).
    ``size`` is the number of coordinates in one release.

    :class:`PrivacyError` where the figures of ``mechanism`` would not hold for this noise within ``RENYI_SLACK`` or
    ``DELTA_SLACK`` (see the module). More fraction bits cure it.
    """
    check_mechanism(mechanism)
    check_noise_multiplier(noise_multiplier)
    if noise_multiplier == 0:
        raise PrivacyError("noise of multiplier 0 has no variance: add none")
    if not 0 < sensitivity < math.inf:
        raise PrivacyError(f"sensitivity {sensitivity!r}: a positive, finite number of ring units is needed")
    if size < 1:
        raise PrivacyError(f"noise for {size} coordinates: at least one is needed")
    variance = (Fraction(noise_multiplier) * Fraction(sensitivity)) ** 2 / HONEST
    if mechanism == "rdp":
        gap, allowed = renyi_gap(variance, noise_multiplier, size), RENYI_SLACK
    else:
        gap, allowed = total_variation_gap(variance, size), DELTA_SLACK
    if gap > allowed:
        raise PrivacyError(
            f"noise of standard deviation {math.sqrt(HONEST * variance):.3g} ring units on {size} coordinates is too "
            f"coarse for {mechanism!r} to account for as a Gaussian (it may be off by {gap:.2g} a release, "
            f"{allowed:g} is allowed); use more fraction bits"
        )
    return variance


def convolution_gap(variance: Fraction, parties: int = HONEST) -> float:
    """τ: the sum of ``parties`` discrete Gaussians of this variance is within exp(±τ/2) of one (fact 1)."""
    exponent = -2 * math.pi**2 * float(variance)
    return 10 * sum(math.exp(exponent * k / (k + 1)) for k in range(1, parties))


def renyi_gap(variance: Fraction, noise_multiplier: float, size: int) -> float:
    """How much, at most, two parties' noise adds to a continuous Gaussian's Rényi divergence (facts 1 and 2).

    For one release of ``size`` coordinates and any order in Opacus's list; ``variance`` is one party's.
    ``math.inf`` where the bound does not apply.
    """
    kappa = math.pi**2 * math.sqrt(HONEST * float(variance)) * noise_multiplier
    if kappa < 4 * math.sqrt(size) * math.log(4 * size):
        return math.inf
    order = _SMALLEST_ORDER
    convolution = size * convolution_gap(variance) / 2 * (2 * order - 1) / (order - 1)
    return convolution + 4 * size * math.exp(-kappa) / (order - 1)


def total_variation_gap(variance: Fraction, size: int) -> float:
    """How far, at most, two parties' noise is from a rounded continuous Gaussian in total variation (facts 1 and 3).

    For one release of ``size`` coordinates; ``variance`` is one party's.
    """
    return size * (1 / (24 * HONEST * float(variance)) + math.expm1(convolution_gap(variance) / 2))
