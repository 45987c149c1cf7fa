"""Element-wise arithmetic: secrets with secrets, plain tensors and numbers, on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from reference import grid, matches, near
from torch import Tensor

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor

Binary = Callable[[Tensor, Tensor], Tensor]
BROADCASTS = [
    ((), ()),
    ((3,), ()),
    ((), (3,)),
    ((0,), ()),
    ((0, 3), (3,)),
    ((2, 1, 3), (4, 1)),
    ((2, 3), (2, 3)),
    ((1, 1), (5,)),
]
PUBLIC = pytest.mark.parametrize("public", [(), (0,), (1,)], ids=["secrets", "plain left", "plain right"])
SUMS: list[Binary] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: torch.add(a, b, alpha=3),
    lambda a, b: torch.sub(a, b, alpha=2),
    lambda a, b: torch.rsub(a, b),
    lambda a, b: torch.add(a, b, alpha=-1),
]


@PUBLIC
@pytest.mark.parametrize("shapes", BROADCASTS)
@pytest.mark.parametrize("f", SUMS)
def test_sums_are_exact(f: Binary, shapes: tuple[tuple[int, ...], tuple[int, ...]], public: tuple[int, ...]) -> None:
    a, b = grid(*shapes[0], seed=1), grid(*shapes[1], seed=2)
    matches(f, a, b, public=public, ulps=0, grad_ulps=0)


@PUBLIC
@pytest.mark.parametrize("shapes", BROADCASTS)
def test_products_round_once(shapes: tuple[tuple[int, ...], tuple[int, ...]], public: tuple[int, ...]) -> None:
    a, b = grid(*shapes[0], seed=1), grid(*shapes[1], seed=2)
    matches(torch.mul, a, b, public=public)


@settings(deadline=None, max_examples=40)
@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3), st.integers(0, 2))
def test_any_shapes_that_broadcast(shapes: object, which: int) -> None:
    one, two = shapes.input_shapes  # type: ignore[attr-defined]
    a, b = grid(*one, seed=1), grid(*two, seed=2)
    with Session(seed=3):
        public = () if which == 2 else (which,)
        matches(torch.add, a, b, public=public, ulps=0, grad_ulps=0)
        matches(torch.mul, a, b, public=public)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.t(),
    lambda x: x[::2, 1:],
    lambda x: x[:1].expand(3, 4),
    lambda x: x.unsqueeze(1),
    lambda x: x[0, 0],
    lambda x: x.flip(0)[:, None, 1],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arithmetic_on_views(layout: Callable[[Tensor], Tensor]) -> None:
    a, b = grid(4, 4, seed=1), grid(4, 4, seed=2)
    matches(lambda x, y: layout(x) + layout(y) * 2 - layout(y), a, b, ulps=0, grad_ulps=0)
    matches(lambda x, y: layout(x) * layout(y), a, b)
    matches(lambda x, y: layout(x) * layout(y), a, b, public=(1,))


def test_neg_and_sign_symmetries() -> None:
    matches(torch.neg, grid(3, 2), ulps=0, grad_ulps=0)
    matches(lambda x: -x + x, grid(3, 2), ulps=0, grad_ulps=0)


# Python numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, -1, 2, 7, 0.5, -0.25, 1.75, 2.0**-8, 3.0])
@pytest.mark.parametrize("side", ["left", "right"])
def test_numbers_that_fixed_point_holds(number: float, side: str) -> None:
    """A sum with a number on the grid is exact; a product by a dyadic number is truncated only if it has a fraction."""
    x = grid(3, 2)
    if side == "right":
        matches(lambda a: a + number, x, ulps=0, grad_ulps=0)
        matches(lambda a: a - number, x, ulps=0, grad_ulps=0)
        matches(lambda a: a * number, x, ulps=0 if number == int(number) else 1)
    else:
        matches(lambda a: number + a, x, ulps=0, grad_ulps=0)
        matches(lambda a: number - a, x, ulps=0, grad_ulps=0)
        matches(lambda a: number * a, x, ulps=0 if number == int(number) else 1)


@pytest.mark.parametrize("number", [0.1, 1 / 3, -0.7, 3.14159, 0.999, 1.1])
def test_numbers_that_need_rounding(number: float) -> None:
    """A term is rounded to the nearest unit (half a unit), a factor c to 2^-f c or 2^-f / 2: |x| < 2 here."""
    x = grid(3, 2)
    matches(lambda a: a + number, x, ulps=0.5001, grad_ulps=0)
    matches(lambda a: number - a, x, ulps=0.5001, grad_ulps=0)
    matches(lambda a: a * number, x, ulps=3, grad_ulps=3)
    matches(lambda a: a / number, x, ulps=1 + 2 / abs(number), grad_ulps=1 + 2 / abs(number))


@pytest.mark.parametrize("number", [1e-3, 3e-5, 1e-7, 1e-9, -7e-12, 1e-30])
def test_tiny_factors_keep_their_digits(number: float) -> None:
    """The factor is rounded by at most 2^-f of itself, so a large secret times a tiny number is right to one unit."""
    x = grid(50, low=-1000, high=1000) * 2**12
    error = 1 + float(x.abs().max()) * abs(number) * 2.0**-16 * 2**16
    matches(lambda a: a * number, x, ulps=error)
    near((encml.share(x) * number).reveal(), x * number, error)


def test_range_of_factors() -> None:
    """Half the range times almost one must not overflow on the way."""
    x = torch.tensor([2.0**30 - 1, -(2.0**30) + 1, 2.0**29 + 0.25], dtype=torch.float64)
    for number in [0.999, 0.5, 0.51, 2.0**-20 * 0.99, 0.75, 1 / 3]:
        found = (encml.share(x) * number).reveal()
        assert torch.all((found - x * number).abs() <= (x * number).abs() * 2.0**-16 + 2.0**-16)


def test_number_on_the_left_as_keyword() -> None:
    x = grid(3)
    near(torch.add(input=encml.share(x), other=1).reveal(), x + 1, 0)
    near(torch.add(1, other=encml.share(x)).reveal(), x + 1, 0)
    near(torch.mul(input=torch.ones(3, dtype=torch.float64), other=encml.share(x)).reveal(), x, 0)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1j])
def test_numbers_that_are_not_real_are_refused(number: complex) -> None:
    x = encml.share(grid(3))
    for f in (lambda: x + number, lambda: number * x, lambda: number - x):
        with pytest.raises(InvalidTensor, match="finite real"):
            f()
    if number != number:
        with pytest.raises(InvalidTensor, match="finite real"):
            x < number  # noqa: B015


def test_every_secret_is_between_the_infinities() -> None:
    x = encml.share(grid(3))
    assert (x < float("inf")).reveal().tolist() == [True] * 3
    assert (x <= -float("inf")).reveal().tolist() == [False] * 3


@pytest.mark.parametrize("number", [2.0**30, -(2**31), 1e30, 2**62])
def test_numbers_beyond_the_range_are_refused(number: float) -> None:
    x = encml.share(grid(3))
    for f in (lambda: x + number, lambda: x * number, lambda: x < number, lambda: number - x, lambda: x.fill_(number)):
        with pytest.raises(InvalidTensor, match=r"beyond the fixed-point range"):
            f()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**31])
def test_plain_tensors_beyond_the_range_are_refused(value: float) -> None:
    x, y = encml.share(grid(3)), torch.tensor([0.0, value, 1.0])
    for f in (
        lambda: x + y,
        lambda: y * x,
        lambda: x < y,
        lambda: y @ x,
        lambda: x.copy_(y),
        lambda: torch.stack([x, y]),
    ):
        with pytest.raises(InvalidTensor, match=r"NaN|beyond the fixed-point range"):
            f()


@pytest.mark.parametrize("value", [2**31, 2**45, 2**62])
def test_plain_whole_numbers_beyond_the_range_are_refused(value: int) -> None:
    x, y = encml.share(grid(3)), torch.tensor([0, value, 1])
    for f in (lambda: x + y, lambda: y * x, lambda: x < y, lambda: x.copy_(y)):
        with pytest.raises(InvalidTensor, match=r"beyond the fixed-point range"):
            f()


# Division ------------------------------------------------------------------------------------------------------------


def test_division_by_public_values() -> None:
    """1 / d is rounded by 2^-f of the largest reciprocal at most; |x| < 2."""
    x, d = grid(3, 2), torch.tensor([3.0, -7.0], dtype=torch.float64)
    matches(lambda a, b: a / b.detach(), x, d, public=(1,), ulps=2, grad_ulps=2)
    matches(lambda a: a / 4, x)
    matches(lambda a: a / torch.tensor([2, 4]), x)
    matches(lambda a: torch.div(a, 5.0), x, ulps=2, grad_ulps=2)


def test_division_by_large_public_values_keeps_digits() -> None:
    x, d = grid(64, low=-1000, high=1000) * 100, torch.full((64,), 1234.5, dtype=torch.float64)
    matches(lambda a, b: a / b.detach(), x, d, public=(1,), ulps=1 + 100_000 / 1234.5, backward=False)


@pytest.mark.parametrize("divisor", [0, 0.0, 1e-12, -(2.0**-31)])
def test_division_by_nothing_is_refused(divisor: float) -> None:
    x = encml.share(grid(2))
    for d in (divisor, torch.tensor([1.0, divisor])):
        with pytest.raises(InvalidTensor, match=r"div"):
            x / d
        with pytest.raises(InvalidTensor, match=r"div"):
            x.clone().div_(d)


# Powers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exponent", "ulps", "grad_ulps"), [(0, 0, 0), (1, 0, 0), (2, 1, 2), (3, 4, 14), (4, 9, 40)])
def test_whole_powers(exponent: int, ulps: float, grad_ulps: float) -> None:
    """|x| < 2: x^3 rounds x^2 (times 2) and itself; x^4 the square (times 2 |x^2| <= 8) and itself; n x^(n-1) g."""
    matches(lambda a: a**exponent, grid(3, 2), ulps=ulps, grad_ulps=grad_ulps)
    matches(lambda a: torch.pow(a, float(exponent)), grid(3, 2), ulps=ulps, grad_ulps=grad_ulps)


def test_square() -> None:
    matches(torch.square, grid(3, 2), grad_ulps=2)


def test_a_power_is_not_an_alias() -> None:
    x = grid(3)
    a = encml.share(x)
    b = a**1
    b.add_(1)
    near(a.reveal(), x, 0)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("x", [torch.tensor([True, False]), torch.tensor([3, -2])])
def test_powers_of_bools_and_integers(x: Tensor, exponent: float) -> None:
    found = encml.share(x) ** exponent
    assert found.dtype == (x**exponent).dtype
    near(found.reveal(), x**exponent, 0)


# Dtypes and sessions -------------------------------------------------------------------------------------------------

OPERANDS = [
    torch.ones(2, dtype=torch.float32),
    torch.ones(2, dtype=torch.float64),
    torch.ones((), dtype=torch.float64),
    torch.ones(2, dtype=torch.int64),
    torch.ones((), dtype=torch.int32),
    torch.ones(2, dtype=torch.bool),
    1,
    1.5,
    True,
]


@pytest.mark.parametrize("other", OPERANDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_dtypes_follow_promotion(dtype: torch.dtype, shape: tuple[int, ...], other: Tensor | float) -> None:
    mask = encml.share(torch.ones(shape)) > 0
    x = mask if dtype == torch.bool else mask.to(dtype)
    plain = torch.ones(shape, dtype=dtype)
    functions: list[Callable[..., Any]] = [torch.add, torch.mul, torch.div, lambda a, b: b * a, torch.rsub]
    for f in functions:
        try:
            expected = f(plain, other)
        except RuntimeError:
            with pytest.raises(NotImplementedError):
                f(x, other)
            continue
        found = f(x, other)
        assert isinstance(found, SharedTensor)
        assert found.dtype == expected.dtype
        near(found.reveal(), expected, 1)


def test_operands_of_two_sessions_are_refused() -> None:
    x = encml.share(grid(2))
    with Session(seed=1):
        y = encml.share(grid(2))
        for f in (
            lambda: x + y,
            lambda: x * y,
            lambda: x @ y,
            lambda: x < y,
            lambda: x.copy_(y),
            lambda: torch.cat([x, y]),
        ):
            with pytest.raises(InvalidTensor, match="sessions"):
                f()
