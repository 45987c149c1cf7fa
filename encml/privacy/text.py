"""ε and δ as people read them."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal


def epsilon_text(epsilon: float) -> str:
    """Two decimals, rounded up: never less than was spent."""
    return str(Decimal(repr(float(epsilon))).quantize(Decimal("0.01"), ROUND_CEILING))


def delta_text(delta: float) -> str:
    """A small number without padding in its exponent: 1e-5."""
    return f"{delta:g}".replace("e-0", "e-")
