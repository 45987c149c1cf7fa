"""The split over clients: a partition in the mathematical sense, seeded, and as skewed as it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encml.data import split_dirichlet, split_iid
from encml.errors import DataError


def assert_partition(parts: list[Tensor], examples: int, clients: int) -> None:
    assert len(parts) == clients
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert all(part.dtype == torch.int64 for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(examples))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    examples = draw(st.integers(1, 300))
    return examples, draw(st.integers(1, examples))


@given(sizes(), st.integers(0, 2**63))
@settings(deadline=None)
def test_iid_gives_every_index_once(size: tuple[int, int], seed: int) -> None:
    examples, clients = size
    assert_partition(split_iid(examples, clients, seed), examples, clients)


@given(sizes(), st.integers(0, 2**63), st.floats(1e-4, 1e4), st.integers(1, 12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_dirichlet_gives_every_index_once(size: tuple[int, int], seed: int, alpha: float, classes: int, random) -> None:
    examples, clients = size
    labels = torch.tensor([random.randrange(classes) for _ in range(examples)])
    assert_partition(split_dirichlet(labels, clients, alpha, seed), examples, clients)


def skew(labels: Tensor, parts: list[Tensor]) -> float:
    """Mean total-variation distance of the clients' label mixes from the whole data set's."""
    whole = torch.bincount(labels, minlength=10) / len(labels)
    mixes = [torch.bincount(labels[part], minlength=10) / len(part) for part in parts]
    return float(torch.stack([(mix - whole).abs().sum() / 2 for mix in mixes]).mean())


def test_alpha_sets_the_skew() -> None:
    labels = torch.arange(10_000) % 10
    iid = skew(labels, split_iid(10_000, 20, seed=3))
    strong, middle, weak = (skew(labels, split_dirichlet(labels, 20, alpha, seed=3)) for alpha in (0.05, 5.0, 1e4))
    assert iid < 0.1
    assert weak < 0.1
    assert middle > 0.15
    assert strong > 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_seed_decides(seed: int) -> None:
    labels = torch.arange(200) % 10
    for split in (lambda s: split_iid(200, 7, s), lambda s: split_dirichlet(labels, 7, 0.5, s)):
        assert all(torch.equal(a, b) for a, b in zip(split(seed), split(seed), strict=True))
        assert not torch.equal(torch.cat(split(seed)), torch.cat(split(seed + 2)))


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 examples .* 4 clients"):
        split_iid(3, 4, seed=0)
    with pytest.raises(DataError, match="0 clients"):
        split_dirichlet(torch.zeros(3, dtype=torch.int64), 0, 1.0, seed=0)
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(DataError, match="alpha > 0"):
            split_dirichlet(torch.zeros(3, dtype=torch.int64), 2, alpha, seed=0)
