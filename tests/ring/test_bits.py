"""Bit planes: the fast transposition against one bit at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encml.ring.bits import flags_to_planes, from_plane, pack_bits, planes_to_flags, to_planes, unpack_bits, words_for

RING = st.integers(-(2**63), 2**63 - 1)


def naive_planes(values: list[int], bits: int) -> list[list[int]]:
    """Plane j: element i's bit j in bit i mod 64 of word i // 64, as signed words."""
    words = -(-len(values) // 64)
    planes = [[0] * words for _ in range(bits)]
    for i, value in enumerate(values):
        for j in range(bits):
            planes[j][i // 64] |= (value >> j & 1) << (i % 64)
    return [[word - 2**64 if word >> 63 else word for word in plane] for plane in planes]


def ring(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@settings(deadline=None)
@given(st.lists(RING, max_size=200), st.integers(1, 64))
def test_planes_are_the_naive_ones(values: list[int], bits: int) -> None:
    planes = to_planes(ring(values), bits)
    assert planes.shape == (bits, words_for(len(values)))
    assert planes.tolist() == naive_planes(values, bits)


@settings(deadline=None)
@given(st.lists(RING, max_size=200), st.integers(0, 63))
def test_a_plane_gives_its_bit_back(values: list[int], bit: int) -> None:
    plane = to_planes(ring(values), 64)[bit]
    assert from_plane(plane, len(values)).tolist() == [value >> bit & 1 for value in values]


def test_from_plane_takes_a_strided_plane() -> None:
    planes = to_planes(torch.arange(130), 64).t().contiguous().t()
    assert from_plane(planes[0], 130).tolist() == [i & 1 for i in range(130)]


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 128])
def test_words_for(n: int) -> None:
    assert words_for(n) == len(range(0, n, 64))


def test_strided_values() -> None:
    values = torch.arange(-100, 100)[::3]
    assert to_planes(values, 64).tolist() == naive_planes(values.tolist(), 64)


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=100))
def test_pack_is_little_endian_and_unpack_inverts_it(flags: list[bool]) -> None:
    packed = pack_bits(torch.tensor(flags, dtype=torch.bool))
    expected = [sum(flag << i for i, flag in enumerate(flags[k : k + 8])) for k in range(0, len(flags), 8)]
    assert packed.dtype == torch.uint8
    assert packed.tolist() == expected
    assert unpack_bits(packed, len(flags)).tolist() == [int(flag) for flag in flags]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=130, max_size=130), max_size=4), st.integers(0, 130))
def test_flags_to_planes_and_back(flags: list[list[int]], n: int) -> None:
    rows = torch.tensor([row[:n] for row in flags], dtype=torch.uint8).view(len(flags), n)
    planes = flags_to_planes(rows)
    assert planes.shape == (len(flags), words_for(n))
    for j, row in enumerate(rows):
        assert torch.equal(planes[j], to_planes(row.to(torch.int64), 1)[0])
    assert torch.equal(planes_to_flags(planes, n), rows)


def test_strided_planes_and_flags() -> None:
    flags = torch.arange(2 * 3 * 100).view(3, 2, 100).remainder(3).eq(0).to(torch.uint8)[:, 1]
    assert torch.equal(planes_to_flags(flags_to_planes(flags).t().contiguous().t(), 100), flags)
