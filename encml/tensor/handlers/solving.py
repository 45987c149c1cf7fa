"""Linear equations, inverses, determinants, Cholesky factors: of small matrices, column after column.

Elimination (Gauss and Jordan) with the largest entry of each column as its pivot, which stays secret: its row is
fetched by a one-hot product. Some 60 rounds a column, whatever the batch. Errors grow with the condition of the matrix,
as they do in floating point, from 2^-f; what comes out for a singular matrix is undefined, as there is no way to look.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.handlers.lookup import one_hot_of
from encml.tensor.shared import SharedTensor, secret

_MATRIX = "the matrix itself, in place of its factors"


def eliminated(a: SharedTensor, b: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """a^-1 b for a (..., n, n) and b (..., n, m); the pivots, and 1 or, where rows were exchanged for one, -1."""
    n = a.shape[-1]
    both: Tensor = torch.cat([a, b], -1)
    pivots, signs = [], []
    for j in range(n):
        below = both[..., j:, :]
        largest = torch.argmax(torch.abs(below[..., j]), -1)
        assert isinstance(largest, SharedTensor)
        chosen = one_hot_of(largest, n - j).to(a.dtype)
        row = torch.matmul(chosen.unsqueeze(-2), below).squeeze(-2)
        # The row that gives way goes where the chosen one came from.
        first = torch.zeros(n - j, dtype=a.dtype)
        first[0] = 1
        moved = (chosen - first).unsqueeze(-1) * (row - below[..., 0, :]).unsqueeze(-2)
        both = torch.cat([both[..., :j, :], below - moved], -2)
        pivot = row[..., j]
        row = row / pivot.unsqueeze(-1)
        rest = both - both[..., j].unsqueeze(-1) * row.unsqueeze(-2)
        both = torch.select_scatter(rest, row, -2, j)
        pivots.append(pivot)
        signs.append(2 * chosen[..., 0] - 1)
    return both[..., n:], pivots, signs


def inverse(a: SharedTensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """linalg_inv_ex: the inverse; the second result says nothing."""
    unit = torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)
    return eliminated(a, unit)[0], _no_information(a)


def solve(a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False) -> tuple[Tensor, ...]:
    """_linalg_solve_ex: x with a x = b, or x a = b; instead of factors, what ``lu_solve`` solves with in backward."""
    vector = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])
    x = _solved(a, b.unsqueeze(-1) if vector else b, left)
    if isinstance(a, SharedTensor):
        factors: Tensor = torch.clone(a)
        secret(factors).keep(_MATRIX, True)
        pivots = torch.zeros(a.shape[:-1], dtype=torch.int32)
    else:
        factors, pivots = torch.linalg.lu_factor(a)
    return x.squeeze(-1) if vector else x, factors, pivots, _no_information(a)


def lu_solve(factors: Tensor, pivots: Tensor, b: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """linalg_lu_solve: by public factors, or for the derivatives of ``solve``."""
    if not isinstance(factors, SharedTensor):
        unit = torch.eye(factors.shape[-1], dtype=factors.dtype).expand(factors.shape)
        inverted = torch.linalg.lu_solve(factors, pivots, unit, adjoint=adjoint)
        return torch.matmul(inverted, b) if left else torch.matmul(b, inverted)
    if secret(factors).fact(_MATRIX) is None:
        raise UnsupportedOperation("linalg.lu_solve: there are no LU factors of secrets; use torch.linalg.solve")
    return _solved(factors.mT if adjoint else factors, b, left)


def determinant(a: SharedTensor) -> tuple[Tensor, Tensor]:
    """The determinant and the inverse."""
    unit = torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)
    inverted, pivots, signs = eliminated(a, unit)
    if not pivots:
        return torch.ones_like(a.sum((-2, -1))), inverted
    return torch.prod(torch.stack(pivots, -1) * torch.stack(signs, -1), -1), inverted


def sign_and_logarithm(a: SharedTensor) -> tuple[Tensor, Tensor, Tensor]:
    """The determinant's sign and the logarithm of its size, and the inverse."""
    unit = torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)
    inverted, pivots, signs = eliminated(a, unit)
    if not pivots:
        nothing = torch.zeros_like(a.sum((-2, -1)))
        return nothing + 1, nothing, inverted
    pivot = torch.stack(pivots, -1)
    sign = torch.prod(torch.sign(pivot) * torch.stack(signs, -1), -1)
    return sign, torch.sum(torch.log(torch.abs(pivot)), -1), inverted


def solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """linalg_solve_triangular: one reciprocal of the diagonal, then a product for each row."""
    if not left:
        return solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    n = a.shape[-1]
    inverted = None if unitriangular else torch.reciprocal(a.diagonal(0, -2, -1))
    rows: dict[int, Tensor] = {}
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    for i in reversed(range(n)) if upper else range(n):
        known = range(i + 1, n) if upper else range(i)
        right = b[..., i, :]
        if known:
            found = torch.stack([rows[k] for k in known], -2)
            right = right - torch.matmul(a[..., i : i + 1, known[0] : known[-1] + 1], found).squeeze(-2)
        rows[i] = right if inverted is None else right * inverted[..., i : i + 1]
        rows[i] = rows[i].expand(*batch, b.shape[-1])
    if not rows:
        return b + 0 * a.sum()
    return torch.stack([rows[i] for i in range(n)], -2)


def triangular_solve(
    b: Tensor, a: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    """triangular_solve, and a copy of the matrix."""
    held = a.mT if transpose else a
    solution = solve_triangular(held, b, upper=upper != transpose, unitriangular=unitriangular)
    return solution, torch.clone(a)


def cholesky(a: SharedTensor, upper: bool = False) -> Tensor:
    """cholesky: L with L L^T = a, or its transpose; a column needs one inverse root. a must be positive definite."""
    n = a.shape[-1]
    rest, columns = a.mT if upper else a, []
    for j in range(n):
        root = torch.rsqrt(rest[..., 0, 0])
        column = rest[..., :, 0] * root[..., None]
        columns.append(F.pad(column, (j, 0)))
        rest = rest[..., 1:, 1:] - column[..., 1:, None] * column[..., None, 1:]
    if not columns:
        return torch.clone(a)
    lower = torch.stack(columns, -1)
    return lower.mT if upper else lower


def cholesky_ex(a: SharedTensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """linalg_cholesky_ex: see ``cholesky``; the second result says nothing."""
    return cholesky(a, upper), _no_information(a)


def cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    """cholesky_solve, by two triangular systems."""
    lower = factor.mT if upper else factor
    half = solve_triangular(lower, b, upper=False)
    return solve_triangular(lower.mT, half, upper=True)


def cholesky_inverse(factor: SharedTensor, upper: bool = False) -> Tensor:
    """cholesky_inverse, by two triangular systems."""
    return cholesky_solve(torch.eye(factor.shape[-1], dtype=factor.dtype).expand(factor.shape), factor, upper)


def _solved(a: Tensor, b: Tensor, left: bool) -> Tensor:
    if not isinstance(a, SharedTensor):
        inverted = torch.linalg.inv(a)
        return torch.matmul(inverted, b) if left else torch.matmul(b, inverted)
    if not left:
        return _solved(a.mT, b.mT, True).mT
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    wide = a.expand(*batch, *a.shape[-2:])
    assert isinstance(wide, SharedTensor)
    return eliminated(wide, b.expand(*batch, *b.shape[-2:]))[0]


def _no_information(a: Tensor) -> Tensor:
    return torch.zeros(a.shape[:-2], dtype=torch.int32)
