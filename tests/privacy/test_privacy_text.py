"""Budgets as people read them never promise more privacy than there is."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from encml.privacy.text import delta_text, epsilon_text


@given(st.floats(0, 1e6))
@example(2.0000000004)
def test_epsilon_is_rounded_up_to_two_decimals(epsilon: float) -> None:
    shown = Fraction(epsilon_text(epsilon))
    # What repr shows of a float is at most half a unit in its last place away.
    slack = Fraction(epsilon) * Fraction(1, 2**52)
    assert Fraction(epsilon) - slack <= shown < Fraction(epsilon) + slack + Fraction(1, 100)


def test_figures_as_written() -> None:
    assert [epsilon_text(x) for x in (0.0, 1.0, 2.991, 0.3, 2.0000000004)] == ["0.00", "1.00", "3.00", "0.30", "2.01"]
    assert [delta_text(x) for x in (1e-5, 1e-4, 0.01, 1e-12)] == ["1e-5", "0.0001", "0.01", "1e-12"]
