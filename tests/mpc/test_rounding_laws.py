"""Rounding to whole numbers: exact for every value, at the cost that its parts declare."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ring import in_process, split

from encml.mpc import rounding
from encml.mpc.costs import COSTS
from encml.mpc.sharing import open_to_all

LIMIT = 2**62 - 2**50
VALUES = st.lists(
    st.one_of(
        st.integers(-LIMIT, LIMIT), st.integers(-300, 300), st.integers(-70, 70).map(lambda halves: halves << 15)
    ),
    min_size=1,
    max_size=70,
)


def nearest_even(x: int, bits: int) -> int:
    whole, rest = divmod(x, 1 << bits)
    half = 1 << (bits - 1)
    return whole + (rest > half or (rest == half and whole % 2 == 1))


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from([1, 4, 16, 17, 47]))
def test_exact(values: list[int], bits: int) -> None:
    parties = in_process()
    x = split(parties, torch.tensor(values))
    assert open_to_all(parties, rounding.floor(parties, x, bits)).tolist() == [v >> bits for v in values]
    expected = [nearest_even(v, bits) for v in values]
    assert open_to_all(parties, rounding.nearest(parties, x, bits)).tolist() == expected


@pytest.mark.parametrize("bits", [1, 4, 16, 24])
def test_costs(bits: int) -> None:
    parties, n = in_process(), 128
    x = split(parties, torch.arange(n))

    def spent(name: str, elements: int, width: int) -> tuple[int, int]:
        return COSTS[name].rounds(width), COSTS[name].sent(elements, width)

    for rule, shift, asked, width in ((rounding.floor, bits, 1, bits + 1), (rounding.nearest, bits + 1, 3, bits + 3)):
        parts = [
            spent("truncate", n, shift),
            spent("negative", asked * n, width),
            spent("to_arithmetic", asked * n, 0),
        ]
        with parties.ledger.measure() as cost:
            rule(parties, x, bits)
        assert (cost[0].rounds, cost[0].bytes) == tuple(map(sum, zip(*parts, strict=True)))
