"""What the mechanisms of differential privacy take, checked in one place."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Literal, get_args

from encml.errors import PrivacyError

Mechanism = Literal["rdp", "prv"]
"""How ε is computed: by Rényi divergences, or by numerical composition of privacy losses."""


def check_mechanism(mechanism: object) -> None:
    """Refuse what is no :data:`Mechanism`."""
    if mechanism not in get_args(Mechanism):
        raise PrivacyError(f"accounting mechanism {mechanism!r}: one of {', '.join(get_args(Mechanism))} is needed")


def check_delta(delta: object) -> None:
    """Refuse a δ that is not strictly between 0 and 1."""
    if not (isinstance(delta, Real) and 0 < float(delta) < 1):
        raise PrivacyError(f"delta {delta!r}: a number between 0 and 1 is needed, well below 1/(number of units)")


def check_noise_multiplier(noise_multiplier: object) -> None:
    """Refuse a noise multiplier that is negative or not finite; zero is allowed."""
    if not (isinstance(noise_multiplier, Real) and 0 <= float(noise_multiplier) < math.inf):
        raise PrivacyError(f"noise multiplier {noise_multiplier!r}: a finite number from 0 up is needed")


def check_sample_rate(sample_rate: object) -> None:
    """Refuse a sampling rate outside (0, 1]."""
    if not (isinstance(sample_rate, Real) and 0 < float(sample_rate) <= 1):
        raise PrivacyError(f"sample rate {sample_rate!r}: a probability above 0 and at most 1 is needed")


def check_steps(steps: object) -> None:
    """Refuse a number of steps that is not whole or is negative; zero is allowed."""
    if not (isinstance(steps, Integral) and int(steps) >= 0):
        raise PrivacyError(f"{steps!r} steps: a whole number from 0 up is needed")
