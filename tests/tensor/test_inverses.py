"""Inverse trigonometric and hyperbolic functions, logarithms met by products: over the domain, its edges included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference import ULP, grid, matches
from torch import Tensor

import encml

UNIT = torch.cat([torch.linspace(-1, 1, 81), torch.tensor([1 - ULP, ULP - 1, ULP, -ULP, 0.5 + ULP, 0.5 - ULP])])
UNIT = UNIT.double().div(ULP).round().mul(ULP)
SIZES = torch.tensor([ULP, 2 * ULP, 0.25, 0.999, 1, 1 + ULP, 1.5, 2, 7.9, 8, 100, 4095, 4096, 4097, 2.0**20, 2.0**29])
SIZES = SIZES.double().div(ULP).round().mul(ULP)
BOTH = torch.cat([SIZES, -SIZES, torch.zeros(1).double()])


def within(name: str, x: Tensor, ulps: float, relative: float = 0.0) -> None:
    found, expected = getattr(torch, name)(encml.share(x)).reveal(), getattr(torch, name)(x)
    excess = (found - expected).abs() - relative * expected.abs()
    assert float(excess.max()) < ulps * ULP, f"{float(excess.max()) / ULP:.1f} ulp too far"


@pytest.mark.parametrize(
    ("name", "x", "ulps"),
    [
        ("asin", UNIT, 6),
        ("acos", UNIT, 6),
        ("atan", BOTH, 4),
        ("asinh", BOTH, 8),
        ("acosh", SIZES[SIZES >= 1], 8),
        ("atanh", UNIT[UNIT.abs() < 1], 4),
        ("erfinv", UNIT[UNIT.abs() < 1], 6),
    ],
)
def test_over_the_domain(name: str, x: Tensor, ulps: float) -> None:
    within(name, x, ulps, relative=2.0**-12)


@pytest.mark.parametrize("fraction_bits", [20, 24])
def test_squares_that_would_not_fit(fraction_bits: int) -> None:
    x = torch.tensor([1.0, 2, 30, 63, 64, 127, 128, 129, 1000, 4000, 8000]).double()
    with encml.Session(fraction_bits=fraction_bits, seed=1):
        for name, values in (("asinh", torch.cat([-x, x])), ("acosh", x)):
            within(name, values, 4, relative=2.0**-12)


def test_all_quadrants() -> None:
    y, x = torch.meshgrid(*2 * (torch.tensor([-1000.0, -1, -0.25, 0, 0.25, 1, 1000]).double(),), indexing="ij")
    known = (x != 0) | (y != 0)
    for found in (torch.atan2(encml.share(y), encml.share(x)), torch.atan2(y, encml.share(x))):
        assert float((found.reveal() - torch.atan2(y, x)).abs()[known].max()) < 5 * ULP
    found = torch.atan2(encml.share(y), torch.tensor(-2.0).double())
    assert float((found.reveal() - torch.atan2(y, torch.tensor(-2.0).double())).abs().max()) < 5 * ULP


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.asin(x / 4),
        lambda x: torch.acos(x / 4),
        torch.atan,
        torch.asinh,
        lambda x: torch.acosh(x * x + 2),
        lambda x: torch.atanh(x / 4),
        lambda x: torch.logit(x / 5 + 0.5),
        lambda x: torch.logit(x / 5 + 0.5, eps=0.3),
        lambda x: torch.hypot(x, x + 3),
        lambda x: torch.logaddexp2(x, 1 - x),
        lambda x: torch.special.entr(x + 3),
        lambda x: torch.erfinv(x / 4),
        lambda x: torch.special.ndtri(x / 8 + 0.5),
        lambda x: torch.copysign(x, x - 1),
    ],
)
def test_gradients(f: Callable[[Tensor], Tensor]) -> None:
    matches(f, grid(24), ulps=16, grad_ulps=32)


def test_nothing_times_the_logarithm_of_nothing() -> None:
    x, y = torch.tensor([0.0, 0, 2, 3]).double(), torch.tensor([0.0, 4, 0.5, 8]).double()
    for public in ([], [0], [1]):
        matches(torch.xlogy, x, y, ulps=6, backward=False, public=public)
    matches(torch.special.xlog1py, x, y, ulps=6, backward=False)
    matches(torch.special.entr, x, ulps=6, backward=False)


def test_signs() -> None:
    x = torch.tensor([-2.0, -ULP, 0, ULP, 3]).double()
    matches(torch.signbit, x, ulps=0, backward=False)
    matches(torch.copysign, x.flip(0) + 0.5, x, ulps=0, backward=False)
    matches(torch.copysign, x.flip(0) + 0.5, x, ulps=0, backward=False, public=[1])


def test_powers_of_two() -> None:
    matches(torch.ldexp, grid(6), torch.tensor([0.0, 1, -1, 3, -3, 10]).double(), ulps=1, backward=False, public=[1])
    matches(torch.ldexp, grid(6), torch.tensor([0.0, 1, -1, 3, -3, 1]).double(), ulps=24, backward=False)


def test_sinc_near_and_far() -> None:
    x = torch.cat([torch.linspace(-1, 1, 41), torch.tensor([0.0, ULP, -ULP, 0.25, 0.25 - ULP, 7.5, -30.25, 100.5])])
    matches(torch.sinc, x.double().div(ULP).round().mul(ULP), ulps=8, grad_ulps=24)


@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_gamma_functions(name: str) -> None:
    right = torch.cat([torch.linspace(0.02, 12, 60), torch.tensor([16 * ULP, 0.5, 1, 2, 7.99, 8, 1000, 1e5])])
    within(name, right.double().div(ULP).round().mul(ULP), 16, relative=2.0**-11)
    left = torch.linspace(-5.75, -0.25, 12).double()
    within(name, left, 64, relative=2.0**-9)
    matches(getattr(torch, name), torch.tensor([0.25, 1.5, 3, 20, -2.25]).double(), ulps=32, grad_ulps=128)
