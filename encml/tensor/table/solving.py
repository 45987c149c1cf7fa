"""Linear equations, inverses and Cholesky factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import solving

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.linalg_inv_ex.default: solving.inverse,
    aten._linalg_solve_ex.default: solving.solve,
    aten.linalg_lu_solve.default: solving.lu_solve,
    aten.linalg_solve_triangular.default: solving.solve_triangular,
    aten.triangular_solve.default: solving.triangular_solve,
    aten.linalg_cholesky_ex.default: solving.cholesky_ex,
    aten.cholesky.default: solving.cholesky,
    aten.cholesky_solve.default: solving.cholesky_solve,
    aten.cholesky_inverse.default: solving.cholesky_inverse,
}
