"""Comparisons are exact, on ties as well, and what they give is used as a mask."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ULP, grid, near
from torch import Tensor

import encml
from encml import Session, SharedTensor, UnsupportedOperation

OPERATORS = [operator.lt, operator.gt, operator.le, operator.ge, operator.eq, operator.ne]
ALL = pytest.mark.parametrize("compare", OPERATORS)
TIES = torch.tensor([0.0, 0.0, 1.0, ULP, -ULP, -1.5, 2.0**29, -(2.0**29), 7.0], dtype=torch.float64)
OTHER = torch.tensor([0.0, ULP, 1.0, 0.0, 0.0, -1.5, 2.0**29 - ULP, 2.0**29, 7.0], dtype=torch.float64)


def check(compare: Callable[[Any, Any], Any], found: Tensor, a: Any, b: Any) -> None:
    expected = compare(a, b)
    assert isinstance(found, SharedTensor)
    assert found.dtype == torch.bool
    assert not found.requires_grad
    assert found.shape == expected.shape
    assert torch.equal(found.reveal(), expected)


@ALL
def test_on_ties_and_at_the_edges(compare: Callable[[Any, Any], Any]) -> None:
    x, y = encml.share(TIES), encml.share(OTHER)
    check(compare, compare(x, y), TIES, OTHER)
    check(compare, compare(x, OTHER), TIES, OTHER)
    check(compare, compare(TIES, y), TIES, OTHER)
    for number in (0, 0.0, 1, -1.5, ULP, 7, True):
        check(compare, compare(x, number), TIES, number)
        check(compare, compare(number, x), number, TIES)


@ALL
@pytest.mark.parametrize("shapes", [((), ()), ((0,), ()), ((3, 1), (4,)), ((2, 0), (1,)), ((70,), (70,)), ((), (2, 3))])
def test_broadcast(compare: Callable[[Any, Any], Any], shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (grid(*shape, seed=i) for i, shape in enumerate(shapes))
    check(compare, compare(encml.share(a), encml.share(b)), a, b)
    check(compare, compare(encml.share(a), b), a, b)
    check(compare, compare(a, encml.share(b)), a, b)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-(2**45), 2**45), st.integers(-(2**45), 2**45)), min_size=1, max_size=8))
def test_any_values(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64) * ULP for i in (0, 1))
    with Session(seed=2):
        x, y = encml.share(a), encml.share(b)
        for compare in OPERATORS:
            check(compare, compare(x, y), a, b)


@ALL
def test_numbers_off_the_grid_are_rounded_as_secrets_are(compare: Callable[[Any, Any], Any]) -> None:
    """0.1 equals a shared 0.1, however it is written."""
    value = torch.tensor([0.1, 0.2], dtype=torch.float64)
    x = encml.share(value)
    for other in (0.1, torch.tensor(0.1), torch.tensor([0.1, 0.1]), encml.share(torch.tensor(0.1))):
        check(compare, compare(x, other), value, torch.tensor([0.1, 0.1], dtype=torch.float64))


@ALL
def test_of_views_and_pending_products(compare: Callable[[Any, Any], Any]) -> None:
    a, b = grid(4, 4, seed=1), grid(4, 4, seed=2).round()
    x, y = encml.share(a), encml.share(b)
    check(compare, compare(x.t(), y[::2].repeat(2, 1)), a.t(), b[::2].repeat(2, 1))
    assert compare(x.t(), y.t()).stride() == (1, 4)
    check(compare, compare(y * y, 1), b * b, 1)
    check(compare, compare(1, (y @ y) * 0.5), 1, (b @ b) * 0.5)


def test_methods_and_functions() -> None:
    a, b = grid(5, seed=1), grid(5, seed=2)
    x, y = encml.share(a), encml.share(b)
    for name in ("lt", "gt", "le", "ge", "eq", "ne", "less", "greater", "less_equal", "greater_equal", "not_equal"):
        assert torch.equal(getattr(x, name)(y).reveal(), getattr(a, name)(b))
        assert torch.equal(getattr(torch, name)(x, y).reveal(), getattr(torch, name)(a, b))


def test_masks_in_arithmetic() -> None:
    a, b = grid(4, 3, seed=1), grid(4, 3, seed=2)
    x, y = encml.share(a), encml.share(b)
    p, q = a > 0, b > 0
    mask, other = x > 0, y > 0
    for found, expected in [
        (mask * y, p * b),
        (y * mask, b * p),
        (mask * 2.5, p * 2.5),
        (mask * b, p * b),
        (~mask * y, ~p * b),
        (torch.logical_not(mask), ~p),
        (mask & other, p & q),
        (mask | other, p | q),
        (mask ^ other, p ^ q),
        (mask & q, p & q),
        (q | mask, p | q),
        (mask | True, p | True),
        (torch.logical_xor(mask, q), torch.logical_xor(p, q)),
        (mask + other, p + q),
        ((mask + other).float(), (p + q).float()),
        ((mask | other).sum(), (p | q).sum()),
        (mask * other, p * q),
        (mask.sum(), p.sum()),
        (mask.sum(0) * mask.sum(0), p.sum(0) * p.sum(0)),
        (mask.float().mean(), p.float().mean()),
        (mask.double() - 0.5, p.double() - 0.5),
        (mask.float() @ y.float().t(), p.float() @ b.float().t()),
        (mask.long() + 3, p.long() + 3),
        (mask + 1, p + 1),
        (mask / 2, p / 2),
        (mask == other, p == q),
        (mask < other, p < q),
        (mask.sum() > 3, p.sum() > 3),
        (torch.logical_not(y), torch.logical_not(b)),
        (mask.t().float(), p.t().float()),
        (mask[1:, 0].float() * 1.5, p[1:, 0].float() * 1.5),
        (torch.where(p, 1.0, 2.0) * mask, torch.where(p, 1.0, 2.0) * p),
        (torch.cat([mask, other]), torch.cat([p, q])),
        (torch.stack([mask.float(), y.float()]), torch.stack([p.float(), b.float()])),
    ]:
        assert found.dtype == expected.dtype
        near(found.reveal(), expected, 1 if expected.is_floating_point() else 0)


def test_masks_that_pytorch_does_not_take() -> None:
    x = encml.share(grid(3))
    mask = x > 0
    for wrong in (
        lambda: mask - mask,
        lambda: 1.0 - mask,
        lambda: -mask,
        lambda: x.bitwise_not(),
        lambda: ~mask.sum(),
        lambda: x & mask,
        lambda: mask.relu(),
        lambda: mask.mean(),
        lambda: mask.add_(0.5),
        lambda: mask.sum(0).mul_(0.5),
        lambda: mask.sum(0).copy_(x[0]),
        lambda: x.half(),
        lambda: x.bfloat16(),
        lambda: x.to(torch.complex64),
        lambda: mask.to(torch.int8),
    ):
        with pytest.raises(UnsupportedOperation):
            wrong()


def test_fractions_written_into_what_held_whole_numbers() -> None:
    mask = encml.share(grid(3, 2)) > 0
    a, p = mask.float(), (grid(3, 2) > 0).float()
    a[0] = 0.25
    p[0] = 0.25
    a.t()[1].mul_(0.5)
    p.t()[1].mul_(0.5)
    near(a.reveal(), p, 0)
    assert mask.reveal().dtype == torch.bool
    near(mask.reveal(), grid(3, 2) > 0, 0)


@pytest.mark.parametrize(
    ("compare", "rounds"), [(operator.lt, 10), (operator.ge, 10), (operator.eq, 10), (operator.ne, 10)]
)
def test_rounds(compare: Callable[[Any, Any], Any], rounds: int, session: Session) -> None:
    x = encml.share(grid(5))
    before = session.ledger.total
    compare(x, 1.5)
    assert (session.ledger.total - before).rounds == rounds


def test_a_declared_range_costs_less_and_changes_nothing_within() -> None:
    """32 bits for 100,000 values: 22 B a party and value at most, 9 rounds; 28 B and 10 rounds without."""
    values = grid(100_000, low=-(2**14), high=2**14)
    for declared, rounds, most in ((None, 10, 27.4), (32, 9, 21.5)):
        with Session(seed=5, comparison_bits=declared) as other:
            x = encml.share(values)
            with other.ledger.measure() as spent:
                y = x.relu()
            assert spent[0].rounds == rounds
            assert spent[0].bytes_per_party / len(values) < most
            assert torch.equal(y.reveal(), values.relu())
            assert torch.equal((x < x.flip(0)).reveal(), values < values.flip(0))
            assert torch.equal(x[:64].max().reveal(), values[:64].max())
