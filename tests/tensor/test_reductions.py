"""Sums, means and losses made of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ULP, grid, matches, near
from torch import Tensor

import encml
from encml import Session, UnsupportedOperation

Reduction = Callable[[Tensor], Tensor]
SHAPES = [(), (1,), (5,), (2, 3), (3, 0), (0,), (2, 1, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(shape: tuple[int, ...]) -> None:
    x = grid(*shape)
    matches(torch.sum, x, ulps=0, grad_ulps=0)
    matches(lambda a: a.sum(dim=()), x, ulps=0, grad_ulps=0)
    if not shape:
        matches(lambda a: a.sum(-1), x, ulps=0, grad_ulps=0)
    for dim in range(-len(shape), len(shape)):
        matches(lambda a, d=dim: a.sum(d), x, ulps=0, grad_ulps=0)
        matches(lambda a, d=dim: a.sum(d, keepdim=True), x, ulps=0, grad_ulps=0)
    if len(shape) > 1:
        matches(lambda a: a.sum((0, -1)), x, ulps=0, grad_ulps=0)
        matches(lambda a: a.transpose(0, -1).sum((0, 1)), x, ulps=0, grad_ulps=0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 4), max_size=4), st.data())
def test_sums_and_means_over_any_dimensions(shape: list[int], data: st.DataObject) -> None:
    dims = data.draw(st.lists(st.integers(0, max(len(shape) - 1, 0)), unique=True, max_size=len(shape)))
    signed = [d - len(shape) * data.draw(st.integers(0, 1)) if shape else d for d in dims]
    keep = data.draw(st.booleans())
    with Session(seed=2):
        matches(lambda a: a.sum(signed, keepdim=keep), grid(*shape), ulps=0, grad_ulps=0)
        matches(lambda a: a.mean(signed, keepdim=keep), grid(*shape), ulps=3, grad_ulps=3)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_means(n: int) -> None:
    """One rounding, and that of 1 / n to 2^-f of itself, of a mean below 2: at most 3 units in all."""
    x = grid(n, low=-2, high=2)
    matches(torch.mean, x, ulps=3, grad_ulps=3)
    matches(lambda a: a.mean(0), x, ulps=3, grad_ulps=3)
    matches(lambda a: a.view(1, n).mean(-1, keepdim=True), x, ulps=3, grad_ulps=3)


def test_a_mean_over_many_keeps_its_digits() -> None:
    """1 / n with f fraction bits would be 4 per cent off here."""
    x = torch.full((40_000,), 1.5, dtype=torch.float64)
    near(encml.share(x).mean().reveal(), torch.tensor(1.5), 1 + 1.5)


def test_means_over_powers_of_two_are_not_rescaled_twice() -> None:
    """A mean over 2^k values of a product is one truncation, less than a unit off."""
    matches(lambda a: (a * a).mean(), grid(8, 8), grad_ulps=1 + 2.0**-4)
    matches(lambda a: (a * a).mean(1), grid(4, 16), grad_ulps=1 + 2.0**-2)


def test_means_over_nothing() -> None:
    matches(lambda a: a.mean(1), grid(0, 3), ulps=0, grad_ulps=0)
    matches(lambda a: a.mean(0), grid(3, 0), ulps=0, grad_ulps=0)
    for f in (lambda a: a.mean(), lambda a: a.mean(0)):
        with pytest.raises(UnsupportedOperation, match="no elements"):
            f(encml.share(grid(0, 3)))


def test_dtypes_of_reductions() -> None:
    x = encml.share(grid(4).float())
    assert x.sum().dtype == torch.float32
    assert x.sum(dtype=torch.float64).dtype == torch.float64
    assert x.mean(dtype=torch.float64).dtype == torch.float64
    assert x.cumsum(0, dtype=torch.float64).dtype == torch.float64
    near(x.cumsum(0, dtype=torch.float64).reveal(), grid(4).cumsum(0), 0)
    mask = x > 0
    expected = grid(4) > 0
    for f in (
        lambda a: a.sum(),
        lambda a: a.sum(0),
        lambda a: a.cumsum(0),
        lambda a: a.sum(dtype=torch.float32),
        lambda a: a.float().mean(),
        lambda a: a.mean(dtype=torch.float32),
        lambda a: a.double().sum(),
        lambda a: a.long().sum() * 3,
        lambda a: a.sum() / 4,
    ):
        found = f(mask)
        assert found.dtype == f(expected).dtype
        near(found.reveal(), f(expected), 1)
    for wrong in (lambda: mask.mean(), lambda: x.sum(dtype=torch.int64), lambda: x.sum(dtype=torch.float16)):
        with pytest.raises(UnsupportedOperation):
            wrong()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("public", [(), (0,), (1,)])
def test_squared_error(reduction: str, public: tuple[int, ...]) -> None:
    """Gradients are 2 (x - y) g / n with |x - y| <= 4 and |g| <= 2, and 2 / n rounds to 2^-f of itself."""
    x, y = grid(4, 3, seed=1), grid(4, 3, seed=2)
    matches(lambda a, b: F.mse_loss(a, b, reduction=reduction), x, y, ulps=4, grad_ulps=3, public=public)
    matches(lambda a: torch.nn.MSELoss()(a, y), x, ulps=3, grad_ulps=3)


def test_sums_near_the_range() -> None:
    x = torch.tensor([2.0**29, 2.0**29 - ULP, -(2.0**29)], dtype=torch.float64)
    near(encml.share(x).sum().reveal(), x.sum(), 0)
    near((encml.share(x) * torch.ones(3, dtype=torch.float64)).sum().reveal(), x.sum(), 1)
