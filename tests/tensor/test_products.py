"""The matmul family. However long the inner dimension, a product is truncated once: less than one unit off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import grid, matches, near
from torch import Tensor

import encml
from encml import Session

Product = Callable[[Tensor, Tensor], Tensor]
PUBLIC = pytest.mark.parametrize("public", [(), (0,), (1,)], ids=["secrets", "plain left", "plain right"])

PAIRS: list[tuple[Product, tuple[int, ...], tuple[int, ...]]] = [
    (torch.mm, (2, 5), (5, 3)),
    (torch.mm, (2, 0), (0, 3)),
    (torch.mm, (0, 2), (2, 3)),
    (torch.bmm, (4, 2, 3), (4, 3, 5)),
    (torch.mv, (2, 3), (3,)),
    (torch.dot, (5,), (5,)),
    (torch.inner, (2, 3), (4, 3)),
    (torch.outer, (3,), (4,)),
    (torch.matmul, (3,), (3,)),
    (torch.matmul, (3,), (3, 2)),
    (torch.matmul, (2, 3), (3,)),
    (torch.matmul, (4, 2, 3), (3,)),
    (torch.matmul, (3,), (4, 3, 2)),
    (torch.matmul, (4, 2, 3), (3, 5)),
    (torch.matmul, (2, 3), (4, 3, 5)),
    (torch.matmul, (2, 1, 2, 3), (4, 3, 5)),
    (torch.matmul, (1, 3), (0, 3, 2)),
    (lambda a, b: a @ b, (2, 3), (3, 2)),
    (lambda a, b: a.t() @ b, (3, 2), (3, 4)),
    (lambda a, b: a @ b.t(), (2, 3), (4, 3)),
    (lambda a, b: a[::2] @ b[:, 1:], (3, 3), (3, 3)),
    (lambda a, b: a[:1].expand(3, 3) @ b, (3, 3), (3, 3)),
    (lambda a, b: torch.einsum("ij,jk->ik", a, b), (2, 3), (3, 4)),
    (lambda a, b: torch.einsum("bij,bkj->bik", a, b), (2, 3, 4), (2, 5, 4)),
    (lambda a, b: torch.einsum("i,j->ij", a, b), (2,), (3,)),
    (lambda a, b: torch.einsum("ij,ij->", a, b), (2, 3), (2, 3)),
    (lambda a, b: torch.einsum("bhqd,bhkd->bhqk", a, b), (2, 2, 3, 4), (2, 2, 5, 4)),
    (lambda a, b: torch.tensordot(a, b, 2), (2, 3, 4), (3, 4, 5)),
]


@PUBLIC
@pytest.mark.parametrize(("f", "one", "two"), PAIRS)
def test_products(f: Product, one: tuple[int, ...], two: tuple[int, ...], public: tuple[int, ...]) -> None:
    matches(f, grid(*one, seed=1), grid(*two, seed=2), public=public)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), max_size=2), st.lists(st.integers(0, 3), max_size=2), st.data())
def test_matmul_of_any_shapes(batch_one: list[int], batch_two: list[int], data: st.DataObject) -> None:
    for i in range(1, min(len(batch_one), len(batch_two)) + 1):
        batch_two[-i] = data.draw(st.sampled_from([1, batch_one[-i]]))
    n, k, m = (data.draw(st.integers(0, 3)) for _ in range(3))
    left = [*batch_one, n, k] if data.draw(st.booleans()) else [k]
    right = [*batch_two, k, m] if data.draw(st.booleans()) else [k]
    with Session(seed=2):
        matches(torch.matmul, grid(*left, seed=1), grid(*right, seed=2))


def test_long_products_are_one_rounding() -> None:
    a, b = grid(2, 700, seed=1), grid(700, 2, seed=2)
    found = (encml.share(a) @ encml.share(b)).reveal()
    near(found, a @ b, 1)


ADDED: list[tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    (torch.addmm, (3,), (2, 4), (4, 3)),
    (torch.addmm, (2, 3), (2, 4), (4, 3)),
    (torch.addmm, (1, 1), (2, 4), (4, 3)),
    (torch.addmv, (2,), (2, 4), (4,)),
    (torch.baddbmm, (2, 2, 3), (2, 2, 4), (2, 4, 3)),
    (torch.baddbmm, (3,), (2, 2, 4), (2, 4, 3)),
]


@pytest.mark.parametrize("public", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize(("f", "bias", "one", "two"), ADDED)
def test_products_with_addends(
    f: Callable[..., Tensor],
    bias: tuple[int, ...],
    one: tuple[int, ...],
    two: tuple[int, ...],
    public: tuple[int, ...],
) -> None:
    """With two plain factors the product is public and rounded to the nearest unit."""
    operands = grid(*bias, seed=1), grid(*one, seed=2), grid(*two, seed=3)
    matches(f, *operands, public=public)
    matches(lambda c, a, b: f(c, a, b, beta=2, alpha=-1), *operands, public=public)
    matches(lambda c, a, b: f(c, a, b, beta=0.5, alpha=3), *operands, public=public, ulps=5, grad_ulps=4)


@PUBLIC
@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 2, 4), (0, 4)])
def test_linear(shape: tuple[int, ...], public: tuple[int, ...]) -> None:
    x, weight, bias = grid(*shape, seed=1), grid(3, 4, seed=2), grid(3, seed=3)
    matches(F.linear, x, weight, bias, public=public)
    matches(F.linear, x, weight, bias, public=(*public, 2))
    matches(F.linear, x, weight, public=public)


def test_linear_of_a_transposed_input() -> None:
    x, weight, bias = grid(4, 2, 3, seed=1), grid(5, 4, seed=2), grid(5, seed=3)
    matches(lambda a, w, b: F.linear(a.transpose(0, 2), w, b), x, weight, bias)
    matches(lambda a, w: F.linear(a.transpose(0, 2), w).transpose(0, 1), x, weight)


def test_products_with_whole_plain_matrices_are_exact(session: Session) -> None:
    """Masks, one-hot rows and counts have no fraction bits, so nothing is truncated."""
    x, hot = grid(4, 3), torch.eye(3, dtype=torch.float64)[[2, 0]]
    shared = encml.share(x)
    before = session.ledger.total
    found = shared @ hot.t()
    near(found.reveal(), x @ hot.t(), 0)
    assert (session.ledger.total - before).rounds == 1
