"""Rounding, and divisions that round: exact, whatever the error of the division in between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from reference import ULP, grid, matches
from torch import Tensor

EDGES = torch.tensor(
    [0, 0.5, 1, 1.5, 2, 2.5, 3.25, ULP, 1 - ULP, 0.5 + ULP, 0.5 - ULP, 1.5 - ULP, 1e4 + 0.5, 2.0**20 + 0.5],
    dtype=torch.float64,
)
EDGES = torch.cat([EDGES, -EDGES])
DIVISIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "floor_divide": torch.floor_divide,
    "floor": partial(torch.div, rounding_mode="floor"),
    "trunc": partial(torch.div, rounding_mode="trunc"),
    "remainder": torch.remainder,
    "fmod": torch.fmod,
}


@pytest.mark.parametrize("name", ["floor", "ceil", "trunc", "round", "frac"])
def test_whole_numbers(name: str) -> None:
    matches(getattr(torch, name), EDGES, ulps=0, grad_ulps=0)
    matches(lambda x: getattr(torch, name)(x.t()), grid(5, 7), ulps=0, grad_ulps=0)


def test_decimals() -> None:
    matches(lambda x: torch.round(x, decimals=2), grid(40), ulps=1, backward=False)
    matches(lambda x: torch.round(x, decimals=-1), torch.tensor([14.0, 16, -24, 126]).double(), ulps=0, backward=False)


@pytest.mark.parametrize("name", sorted(DIVISIONS))
@pytest.mark.parametrize("divisor", [3.0, -0.75, 2])
def test_by_numbers(name: str, divisor: float) -> None:
    whole = torch.arange(-12, 13).double()
    matches(lambda x: DIVISIONS[name](x, torch.tensor(divisor).double()), whole, ulps=0, backward=False)
    matches(lambda x: DIVISIONS[name](x, divisor), grid(40, low=-900, high=900), ulps=0, backward=False)


@pytest.mark.parametrize("name", sorted(DIVISIONS))
def test_by_tensors(name: str) -> None:
    x = torch.cat([grid(30, low=-900, high=900), torch.tensor([6.0, -6, 6, -6, 2.0**20, 5e3]).double()])
    y = torch.cat([grid(30, seed=1), torch.tensor([3.0, 3, -3, -3, 0.25, ULP * 64]).double()])
    y[y == 0] = 1
    matches(DIVISIONS[name], x, y, ulps=0, backward=False)
    matches(DIVISIONS[name], x, y, ulps=0, backward=False, public=[1])


def test_gradients_of_remainders() -> None:
    x, y = grid(20, low=-9, high=9), grid(20, seed=1, low=0.5, high=3)
    matches(torch.remainder, x, y, ulps=0, grad_ulps=1)
    matches(torch.fmod, x, y, ulps=0, grad_ulps=1)
