"""Flags into planes of bits and out of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encml.ring.bits import flags_to_planes, planes_to_flags, words_for


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 128])
def test_words_for(n: int) -> None:
    assert words_for(n) == len(range(0, n, 64))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=130, max_size=130), max_size=4), st.integers(0, 130))
def test_flags_to_planes_and_back(flags: list[list[int]], n: int) -> None:
    rows = torch.tensor([row[:n] for row in flags], dtype=torch.uint8).view(len(flags), n)
    planes = flags_to_planes(rows)
    assert planes.dtype == torch.int64
    assert planes.shape == (len(flags), words_for(n))
    for words, row in zip(planes.tolist(), rows.tolist(), strict=True):
        assert sum((word % 2**64) << (64 * w) for w, word in enumerate(words)) == sum(b << i for i, b in enumerate(row))
    assert torch.equal(planes_to_flags(planes, n), rows)


def test_strided_planes_and_flags() -> None:
    flags = torch.arange(2 * 3 * 100).view(3, 2, 100).remainder(3).eq(0).to(torch.uint8)[:, 1]
    assert torch.equal(planes_to_flags(flags_to_planes(flags).t().contiguous().t(), 100), flags)
