"""Results behind a leading axis are laid out as PyTorch lays out those of the plain operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from encml.ring.layout import from_order, in_memory_order, memory_order, room, stack, to_order

VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x.transpose(-1, -2),
    lambda x: x.permute(2, 0, 1),
    lambda x: x.permute(1, 2, 0)[::2],
    lambda x: x[..., 1:3],
    lambda x: x[:, :1].expand(2, 5, 4),
    lambda x: x.permute(2, 0, 1)[:, :1].expand(4, 6, 3),
    lambda x: x[:0],
    lambda x: x[0, 0, 0],
]


@pytest.mark.parametrize("view", VIEWS)
def test_layouts(view: Callable[[Tensor], Tensor]) -> None:
    parts = [view(torch.arange(24).view(2, 3, 4) + 100 * i) for i in range(3)]
    expected = [part * 2 for part in parts]
    terms = stack([part.clone() for part in parts])
    assert terms.shape == (3, *parts[0].shape)
    for got, part in zip(terms, parts, strict=True):
        assert torch.equal(got, part)
        assert got.stride() == part.clone().stride()
    order = memory_order(terms)
    assert to_order(terms, order).is_contiguous()
    assert torch.equal(from_order(to_order(terms, order), order), terms)
    doubled = in_memory_order(lambda t: (t.reshape(3, -1) * 2).view(t.shape), terms)
    for got, double in zip(doubled, expected, strict=True):
        assert torch.equal(got, double)
        assert got.stride() == double.stride()
    assert room(5, parts[0]).shape == (5, *parts[0].shape)
    assert room(5, parts[0])[2].stride() == expected[0].stride()
