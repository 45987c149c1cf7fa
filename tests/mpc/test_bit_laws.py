"""What comparison and selection promise, against Python's own comparison and product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ring import RING, SHAPES, in_process, opened, opened_bits, random_ring, ring, split, split_bits, wrap
from torch import Tensor

from encml.mpc.comparison import SecretBits, invert, negative, select, to_arithmetic
from encml.mpc.parties import Parties
from encml.mpc.sharing import public, share_from

EDGES = sorted(
    {0, 1, -1, 2**62 - 1, 1 - 2**62, 2**63 - 1, -(2**63)}
    | {sign * 2**k + near for k in range(1, 63) for sign in (1, -1) for near in (-1, 0, 1)}
)
LEADS = pytest.mark.parametrize("lead", [0, 1, 2])


def led_by(lead: int) -> Parties:
    """Parties whose next asymmetric protocol is led by ``lead``."""
    parties = in_process()
    while parties.next_lead() != (lead - 1) % 3:
        pass
    return parties


# Comparison ------------------------------------------------------------------------------------------------------


@LEADS
def test_sign_near_every_power_of_two(lead: int) -> None:
    parties = led_by(lead)
    values = ring(EDGES * 3)
    bits = negative(parties, split(parties, values))
    assert opened_bits(bits.plane, bits.shape) == [int(v < 0) for v in values.tolist()]


@settings(deadline=None)
@given(st.lists(RING, max_size=70), st.integers(0, 2), st.integers(0, 2**32))
def test_sign_of_any_ring_element(values: list[int], lead: int, seed: int) -> None:
    parties = led_by(lead)
    bits = negative(parties, split(parties, ring(values), seed))
    assert bits.shape == (len(values),)
    assert opened_bits(bits.plane, bits.shape) == [int(v < 0) for v in values]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 16, 31, 32, 33, 48, 63, 64])
@LEADS
def test_sign_in_a_declared_range(bits: int, lead: int) -> None:
    """All of -2^(bits-1) ... 2^(bits-1) - 1, though the shares themselves are 64 bits wide."""
    half = 2 ** (bits - 1)
    edges = [value for value in EDGES if -half <= value < half] + [-half, half - 1]
    inside = (random_ring((100,), bits) >> (64 - bits)).tolist()
    parties, values = led_by(lead), ring(edges + inside)
    result = negative(parties, split(parties, values), bits)
    assert opened_bits(result.plane, result.shape) == [int(v < 0) for v in values.tolist()]


@LEADS
def test_sign_where_shares_are_zero(lead: int) -> None:
    """A public value, and a value that one party has just shared, have constant shares."""
    values = ring(EDGES)
    expected = [int(v < 0) for v in EDGES]
    parties = led_by(lead)
    for payload in [public(parties, values), *(share_from(parties, o, values, values.shape) for o in range(3))]:
        bits = negative(parties, payload)
        assert opened_bits(bits.plane, bits.shape) == expected


@pytest.mark.parametrize("bits", [-1, 0, 1, 65, 128])
def test_other_declared_ranges_are_refused(bits: int) -> None:
    parties = in_process()
    with pytest.raises(ValueError, match="2 to 64 bits"):
        negative(parties, split(parties, ring([1])), bits)


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=130))
def test_invert_twice_is_nothing_and_once_is_not(flags: list[bool]) -> None:
    parties = in_process()
    bits = SecretBits(split_bits(parties, torch.tensor(flags, dtype=torch.bool)), (len(flags),))
    before = bits.plane.clone()
    assert opened_bits(invert(parties, bits).plane, bits.shape) == [1 - int(flag) for flag in flags]
    assert opened_bits(invert(parties, invert(parties, bits)).plane, bits.shape) == [int(flag) for flag in flags]
    assert torch.equal(bits.plane, before), "the operand is unchanged"


# Selection -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), RING), max_size=130), st.integers(0, 2))
def test_selection(pairs: list[tuple[bool, int]], lead: int) -> None:
    parties = led_by(lead)
    flags, values = torch.tensor([f for f, _ in pairs], dtype=torch.bool), ring([v for _, v in pairs])
    bits, payload = SecretBits(split_bits(parties, flags), (len(pairs),)), split(parties, values)
    expected = [wrap(int(flag) * value) for flag, value in pairs]
    ones = [int(flag) for flag, _ in pairs]
    assert opened(select(parties, bits, payload)).tolist() == expected
    assert opened(to_arithmetic(parties, bits)).tolist() == ones


@LEADS
@pytest.mark.parametrize("bits", [64, 32])
def test_relu_is_exact(lead: int, bits: int) -> None:
    values = random_ring((500,), 2) >> (66 - bits)
    parties = led_by(lead)
    payload = split(parties, values)
    for _ in range(3):
        kept = select(parties, invert(parties, negative(parties, payload, bits)), payload)
        assert torch.equal(opened(kept), values.clamp(min=0))
        parties.next_lead()


@LEADS
def test_selection_where_shares_are_zero(lead: int) -> None:
    parties = led_by(lead)
    flags, values = torch.tensor([0, 1, 1, 0, 1]), ring([5, -5, 2**63 - 1, -(2**63), 0])
    plane = ring([0b10110])
    for payload in [public(parties, values), share_from(parties, lead, values, (5,))]:
        for bit_payload in [public(parties, plane), split_bits(parties, flags)]:
            bits = SecretBits(bit_payload, (5,))
            assert torch.equal(opened(select(parties, bits, payload)), flags * values)
            assert torch.equal(opened(to_arithmetic(parties, bits)), flags)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, ...]) -> None:
    parties, values = in_process(), random_ring(shape, 3)
    payload = split(parties, values)
    bits = negative(parties, payload)
    assert bits.shape == shape
    assert torch.equal(opened(select(parties, bits, payload)), values.clamp(max=0))
    assert torch.equal(opened(select(parties, invert(parties, bits), payload)), values.clamp(min=0))
    assert torch.equal(opened(to_arithmetic(parties, bits)), (values < 0).long())


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.transpose(-1, -2),
    lambda t: t[..., ::2],
    lambda t: t[..., :1, :].expand(*t.shape[:-2], 5, 6),
]


@pytest.mark.parametrize("view", VIEWS)
@LEADS
def test_views(view: Callable[[Tensor], Tensor], lead: int) -> None:
    parties, values = led_by(lead), random_ring((4, 6), 3)
    payload, seen = view(split(parties, values)), view(values)
    bits = negative(parties, payload)
    assert bits.shape == seen.shape
    assert torch.equal(opened(to_arithmetic(parties, bits)), (seen < 0).long())
    assert torch.equal(opened(select(parties, bits, payload)), seen.clamp(max=0))
    assert torch.equal(opened(select(parties, invert(parties, bits), payload)), seen.clamp(min=0))


@pytest.mark.parametrize("shape", [(3, 2), (1,), (7,), ()])
def test_a_selection_from_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    parties = in_process()
    bits = negative(parties, split(parties, random_ring((2, 3), 1)))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        select(parties, bits, split(parties, random_ring(shape, 1)))


def test_repr_shows_the_shape_only() -> None:
    parties = in_process()
    bits = negative(parties, split(parties, ring([-123456, 5])))
    assert repr(bits) == "SecretBits(shape=(2,))"
    assert repr(parties) == "Parties(local=(0, 1, 2))"
