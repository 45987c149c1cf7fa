"""Running moments of secret gradients, and the direction that Adam makes of them (Kingma and Ba 2015).

Why not as in floating point: (1 - beta2) g^2 is 0 at 16 fraction bits for every |g| < 0.12, its root is what we divide
by, and a gradient that leaves the range destroys the model without a sign. So, for gradients up to a public R = 2^rho
(larger ones are clipped to it), everything has the scale that R allows, whatever the session's fraction bits:

    G = g 2^(31 - rho)          gradients and their mean M, |G| < 2^31
    V = mean of G^2 / 2^8       below 2^54; V = 64, below which rounding shows, is |g| = 2^-23 R

1. Bias correction is part of the average: with a_t = (1 - beta)/(1 - beta^t), the corrected average itself obeys
   X <- X + a_t (x - X), so that its first values are as precise as the later ones.
2. V: a_t = alpha 2^-j with 1/2 <= alpha < 1. The product's j low digits mean nothing after the product with a_t: it is
   truncated by them before it meets alpha. Every rounding is stochastic, so small contributions are right on average;
   V never falls below -8.
3. M / sqrt(V + E): an inverse root of more fraction bits than the session's. E stands for eps^2, at least 16 units
   (eps >= 2^-25 R), which keeps the root's argument positive. In units of 1: M 2^-31 R over sqrt(V 2^-54) R.

All of it on one flat payload (S, n) for all parameters, so the rounds are those of one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.mpc.comparison import negative, select
from encml.mpc.functions.roots import inverse_root
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.mpc.truncation import MAX_SHIFT, truncate, truncate_rows

GRADIENT_BITS = 31
SQUARE_BITS = 54
DIRECTION_BITS = 20
"""Fraction bits of M / sqrt(V)."""
_LIMIT = (1 << GRADIENT_BITS) - (1 << 16)
_DROPPED = 2 * GRADIENT_BITS - SQUARE_BITS
_LEAST = 16
_ROOT_BITS = 14
_FACTOR_BITS = 15
_NAME = "adam"


def times(parties: Parties, payload: Tensor, number: float, more_bits: int = 0) -> Tensor:
    """``number`` times a payload with |x| < 2^46, at ``more_bits`` more fraction bits (fewer if negative).

    number: public, rounded to 15 significant bits. 2 rounds, 6.1 to 8.1 B a party and element; local if whole.
    """
    _, exponent = math.frexp(number)
    shift = max(0, min(_FACTOR_BITS - exponent - more_bits, MAX_SHIFT))
    factor = round(math.ldexp(number, shift + more_bits))
    spare = min(shift, (factor & -factor).bit_length() - 1) if factor else shift
    scaled = payload * (factor >> spare)
    return truncate(parties, scaled, shift - spare, _NAME) if shift > spare else scaled


def clipped(parties: Parties, gradients: Tensor) -> Tensor:
    """A payload (S, n) with |x| < 2^61 clipped to what 31 bits hold. 10 rounds, 67 B a party and element.

    x - max(x - L, 0) + max(-L - x, 0), both in the same rounds.
    """
    limit = public(parties, torch.full_like(gradients[0], _LIMIT))
    beyond = torch.stack([gradients - limit, -limit - gradients], 1)
    excess = select(parties, negative(parties, -beyond, operation=_NAME), beyond, _NAME)
    return gradients - excess[:, 0] + excess[:, 1]


def first_moment(parties: Parties, mean: Tensor, gradients: Tensor, weight: float) -> Tensor:
    """M + weight (G - M). 2 rounds, 6.8 B a party and element at most; none for weight 1."""
    return mean + times(parties, gradients - mean, weight)


def second_moment(parties: Parties, square: Tensor, gradients: Tensor, weight: float) -> Tensor:
    """V + weight (G^2 / 2^8 - V). 5 rounds, 14.8 B a party and element; 3 rounds, 8.75 B for weight 1."""
    rows = product(parties, torch.mul, gradients, gradients)
    if weight == 1:
        return truncate_rows(parties, rows, _DROPPED, _NAME)
    rows = rows - (square[: parties.here] << _DROPPED)
    leading = -math.frexp(weight)[1]
    early = min(max(4, leading), MAX_SHIFT - _DROPPED)
    # |difference| < 2^(54 - early), so the factor may be as large as 2^(8 + early).
    digits = min(16, _DROPPED + leading)
    factor = round(math.ldexp(weight, early + digits))
    difference = truncate_rows(parties, rows, _DROPPED + early, _NAME)
    return square + truncate(parties, difference * factor, digits, _NAME)


def largest(parties: Parties, x: Tensor, y: Tensor) -> Tensor:
    """max(x, y). 10 rounds, 33.4 B a party and element."""
    difference = x - y
    return y + select(parties, negative(parties, -difference, operation=_NAME), difference, _NAME)


def direction(parties: Parties, mean: Tensor, square: Tensor, eps: float) -> Tensor:
    """M / sqrt(V + eps^2) at ``DIRECTION_BITS`` fraction bits. 30 rounds, 203 B a party and element.

    eps: in units of R. Off by less than 2^-12 of itself and 2^-18.
    """
    added = max(_LEAST, round(math.ldexp(eps * eps, SQUARE_BITS)))
    argument = square + public(parties, torch.full_like(square[0], added))
    root = inverse_root(parties, argument, SQUARE_BITS, _ROOT_BITS, math.ldexp(_LEAST / 2, -SQUARE_BITS))
    rows = product(parties, torch.mul, mean, root)
    return truncate_rows(parties, rows, GRADIENT_BITS + _ROOT_BITS - DIRECTION_BITS, _NAME)
