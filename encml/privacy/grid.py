"""The fixed point of DP-SGD on shares: in which units norms are taken, sums added and noise drawn, and what fits.

All of it is public and follows from the session's f, the clipping norm C and the noise. An example's gradient is the
integer vector G at 2f fraction bits that its activations and errors give, exactly; its clipped one is c G, c being an
integer at ``factor_bits``, with |c G| <= ``sensitivity`` whatever the example. Nothing is rounded between that product
and the noise.

Norms are computed from above. |g|^2 is taken at 2 ``norm_bits`` bits, which leaves it ``reach`` bits beyond C^2 before
the ring ends. Examples beyond are left out, not wrapped around (see encml.privacy.per_example).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from encml.errors import PrivacyError
from encml.privacy.discrete import MAX_VARIANCE
from encml.privacy.wraparound import SQUARE_BITS
from encml.ring.fixed import RANGE_BITS

MAX_REACH = 24
"""Squared norms up to 2^24 C^2 are computed, as the bound |a|^2 |e|^2 gives them, if factors have digits for it."""
MIN_FACTOR_BITS, MAX_FACTOR_BITS = 12, 20

_NOISE_TAIL = 19
"""Three parties' noise stays within so many times noise_multiplier * C but for 2^-160: 15 standard deviations."""
_ACTIVATION_BITS = 14
_GENEROUS = 16.0
"""Activations whose mean square is below this are never left out, unless their layers are many or large."""
_LEAST, _LEFT = 10, 6  # of the reach: at least for activations, and for errors
_LEAST_CLIP = 2**8


@dataclass(frozen=True)
class Grid:
    """Fraction bits and bounds for one clipping norm. ``batch``: the largest batch that the sums have room for."""

    fraction_bits: int
    max_grad_norm: float
    noise_multiplier: float
    batch: int
    norm_bits: int
    factor_bits: int
    reach: int

    @classmethod
    def of(cls, fraction_bits: int, max_grad_norm: float, noise_multiplier: float, batch: int) -> Grid:
        """The finest grid that holds the sums and the noise. Raises PrivacyError if there is none."""
        largest = (batch + _NOISE_TAIL * noise_multiplier) * max_grad_norm
        room = RANGE_BITS - math.log2(largest)
        if noise_multiplier:
            # A party's part is noise_multiplier * C / sqrt(2).
            room = min(room, math.log2(MAX_VARIANCE * 2) / 2 - math.log2(noise_multiplier) - math.log2(max_grad_norm))
        factor_bits = min(MAX_FACTOR_BITS, math.floor(room - 1e-9) - 2 * fraction_bits)
        reach = min(MAX_REACH, 2 * factor_bits - 6)
        norm_bits = math.floor((SQUARE_BITS - 1 - reach) / 2 - math.log2(max_grad_norm))
        # Nothing that the norm check lets through, up to 2^61 at 2f bits, is scaled up.
        norm_bits = min(norm_bits, fraction_bits + _ACTIVATION_BITS // 2, 2 * fraction_bits)
        if factor_bits < MIN_FACTOR_BITS or math.ldexp(max_grad_norm, norm_bits) < _LEAST_CLIP:
            raise PrivacyError(
                f"clipping to norm {max_grad_norm:g} with noise multiplier {noise_multiplier:g} and batches of up to "
                f"{batch} does not fit the ring at {fraction_bits} fraction bits: it leaves {factor_bits} bits for the "
                f"clipping factors, {MIN_FACTOR_BITS} are needed, and {max(norm_bits, 0)} bits for norms; use other "
                "fraction bits or a norm nearer to 1"
            )
        return cls(fraction_bits, max_grad_norm, noise_multiplier, batch, norm_bits, factor_bits, reach)

    @property
    def sum_bits(self) -> int:
        """Fraction bits of the sum of clipped gradients."""
        return 2 * self.fraction_bits + self.factor_bits

    @property
    def activation_bits(self) -> int:
        """Fraction bits of squared activations."""
        return min(_ACTIVATION_BITS, self.norm_bits)

    @property
    def error_bits(self) -> int:
        """Fraction bits of squared errors: with those of activations, the bits of |g|^2."""
        return 2 * self.norm_bits - self.activation_bits

    @property
    def clip(self) -> int:
        """C in units of a norm, rounded down."""
        return math.floor(math.ldexp(self.max_grad_norm, self.norm_bits))

    @property
    def top(self) -> int:
        """Squared norms, in their units, stay below 2^top."""
        return (self.clip**2 - 1).bit_length() + self.reach + 1

    @property
    def sensitivity(self) -> Fraction:
        """The norm, in units of the sum, that no example's contribution exceeds. At most C."""
        return Fraction(self.clip) * Fraction(2) ** (self.sum_bits - self.norm_bits)

    def limits(self, sizes: Sequence[int]) -> tuple[int, int]:
        """The largest |a|^2 and |e|^2 of an example, over all layers, in their units; those beyond leave it out.

        ``sizes``: how many activations each layer's gradient is made of, each counted as often as a window sees it.
        The product is 2^reach C^2.
        """
        wanted = math.ceil(math.log2(_GENEROUS * max(1, sum(sizes))))
        places = min(max(wanted, _LEAST), self.reach - _LEFT)
        errors = math.floor(self.max_grad_norm**2 * math.ldexp(1.0, self.reach - places + self.error_bits))
        return 1 << (places + self.activation_bits), errors
