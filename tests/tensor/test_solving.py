"""Linear equations, inverses, determinants and Cholesky factors of small matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import ULP, grid, matches
from torch import Tensor

import encml
from encml.errors import UnsupportedOperation


def well_conditioned(*batch: int, n: int = 3, seed: int = 0) -> Tensor:
    """Rows in such an order that elimination without exchanging them would divide by numbers near 0."""
    matrix = grid(*batch, n, n, seed=seed, low=-0.25, high=0.25) + 2 * torch.eye(n).double()
    return matrix.roll(1, -2)


def positive(n: int = 4) -> Tensor:
    root = torch.tril(grid(n, n, low=-0.5, high=0.5)) + torch.eye(n).double()
    return (root @ root.mT / ULP).round() * ULP


A, B = well_conditioned(2), grid(2, 3, 2, seed=1)
SYSTEMS: list[Callable[..., Any]] = [
    torch.linalg.solve,
    lambda a, b: torch.linalg.solve(a, b[..., 0]),
    lambda a, b: torch.linalg.solve(a, b.mT, left=False),
    lambda a, b: torch.linalg.solve(a[0], b),
    lambda a, b: torch.linalg.solve_triangular(a.roll(-1, -2).tril(), b, upper=False),
    lambda a, b: torch.linalg.solve_triangular(a.roll(-1, -2).triu(), b.mT, upper=True, left=False),
    lambda a, b: torch.linalg.solve_triangular(a, b, upper=True, unitriangular=True),
]


@pytest.mark.parametrize("f", SYSTEMS)
@pytest.mark.parametrize("public", [[], [0], [1]])
def test_systems(f: Callable[..., Any], public: list[int]) -> None:
    matches(f, A, B, ulps=32, grad_ulps=128, public=public, strides=False)


@pytest.mark.parametrize(
    "f",
    [
        torch.linalg.inv,
        torch.linalg.det,
        torch.linalg.slogdet,
        lambda a: torch.logdet(a.roll(-1, -2)),
        lambda a: torch.linalg.matrix_power(a, -2),
        lambda a: a[0].inverse(),
    ],
)
def test_of_one_matrix(f: Callable[..., Any]) -> None:
    matches(f, A, ulps=64, grad_ulps=256, strides=False)


def test_the_sign_of_every_order_of_rows() -> None:
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    matrices = torch.eye(3).double()[orders] * torch.tensor([2.0, -1.0, 0.5]).double()
    found = torch.linalg.det(encml.share(matrices)).reveal()
    assert float((found - torch.linalg.det(matrices)).abs().max()) < 8 * ULP
    assert torch.equal(torch.linalg.slogdet(encml.share(matrices)).sign.reveal(), torch.linalg.slogdet(matrices).sign)


@pytest.mark.parametrize("upper", [False, True])
def test_cholesky(upper: bool) -> None:
    a, b = positive(), grid(4, 2, seed=1)
    matches(lambda a: torch.linalg.cholesky((a + a.mT) / 2, upper=upper), a, ulps=64, grad_ulps=128, strides=False)
    factor = torch.linalg.cholesky(a, upper=upper)
    factor = (factor / ULP).round() * ULP
    matches(lambda b, c: torch.cholesky_solve(b, c, upper), b, factor, ulps=64, grad_ulps=1024, strides=False)
    matches(lambda c: torch.cholesky_inverse(c, upper), factor, ulps=64, grad_ulps=1024, strides=False)


def test_factors_are_not_given_away() -> None:
    a = encml.share(A)
    with pytest.raises(UnsupportedOperation, match="lu_factor"):
        torch.linalg.lu_factor(a)
    with pytest.raises(UnsupportedOperation, match=r"torch\.linalg\.solve"):
        torch.linalg.lu_solve(a, torch.ones(2, 3, dtype=torch.int32), B)
    public = torch.linalg.lu_factor(A)
    found = torch.linalg.lu_solve(*public, encml.share(B)).reveal()
    assert float((found - torch.linalg.solve(A, B)).abs().max()) < 8 * ULP
