"""Dealing from outside: parcels that fit together are the secret, and tampered ones are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ring import RING, SHAPES, in_process, opened, random_ring, ring
from torch import Tensor

from encml.errors import ProtocolError
from encml.mpc.dealing import Parcel, deal, receive


@settings(deadline=None)
@given(st.lists(RING, max_size=70))
def test_what_is_dealt_arrives(values: list[int]) -> None:
    parties, parcels = in_process(), deal(ring(values))
    payload = receive(parties, [parcel.expand() for parcel in parcels])
    assert opened(payload).tolist() == values


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, ...]) -> None:
    values = random_ring(shape, 1)
    expanded = [parcel.expand() for parcel in deal(values)]
    assert all(shares.shape == (2, *shape) for shares in expanded)
    assert torch.equal(opened(receive(in_process(), expanded)), values)


def test_dealing_a_view() -> None:
    values = random_ring((4, 6), 1)
    parcels = deal(values.t())
    assert torch.equal(opened(receive(in_process(), [parcel.expand() for parcel in parcels])), values.t())


def test_neighbours_hold_the_same_share() -> None:
    a, b, c = (parcel.expand() for parcel in deal(random_ring((9,), 1)))
    assert torch.equal(a[1], b[0])
    assert torch.equal(b[1], c[0])
    assert torch.equal(c[1], a[0])


def test_two_of_three_shares_travel_as_seeds() -> None:
    for parcel, seeds in zip(deal(random_ring((1000,), 1)), [2, 1, 1], strict=True):
        halves = [parcel.first, parcel.second]
        assert sum(isinstance(half, bytes) for half in halves) == seeds
        assert all(len(half) == 16 for half in halves if isinstance(half, bytes))


def test_every_deal_takes_fresh_seeds() -> None:
    values = random_ring((9,), 1)
    seeds = {half for _ in range(20) for half in (deal(values)[0].first, deal(values)[0].second)}
    assert len(seeds) == 40


def test_repr_shows_the_shape_only() -> None:
    assert {repr(parcel) for parcel in deal(ring([1, 2]))} == {"Parcel(shape=(2,))"}


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"short",
        bytes(17),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int32),
    ],
)
@pytest.mark.parametrize("which", ["first", "second"])
def test_a_tampered_parcel_is_refused(half: bytes | Tensor, which: str) -> None:
    for parcel in deal(ring([1, 2])):
        with pytest.raises(ProtocolError, match="parcel"):
            dataclasses.replace(parcel, **{which: half}).expand()


@pytest.mark.parametrize("shape", [(-1,), (2, -3)])
def test_a_parcel_of_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="shape"):
        Parcel(bytes(16), bytes(16), shape).expand()


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, dtype=torch.int64),
        torch.zeros(3, 2, dtype=torch.int64),
        torch.zeros(2, 2),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(2, 1, dtype=torch.int64),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_parcels_that_do_not_fit_are_refused(wrong: Tensor, position: int) -> None:
    expanded = [parcel.expand() for parcel in deal(ring([1, 2]))]
    expanded[position] = wrong
    with pytest.raises(ProtocolError, match="parcel"):
        receive(in_process(), expanded)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_another_number_of_parcels_is_refused(count: int) -> None:
    expanded = [deal(ring([1, 2]))[0].expand()] * count
    with pytest.raises(ProtocolError, match="3 parcels"):
        receive(in_process(), expanded)
