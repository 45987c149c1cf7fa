"""Functions of one number, divisions and powers: values and gradients as in float64.

Tolerances: 2 units of the last place for the function and what its factors make of that in gradients; where results
or derivatives reach m, 2^-12 of m for what goes through exp, log, a division or a root.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reference import grid, matches, near
from torch import Tensor

import encml
from encml.errors import UnsupportedOperation

Function = Callable[[Tensor], Tensor]

CURVES: list[tuple[Function, float, float]] = [
    (torch.sigmoid, 2, 6),
    (torch.tanh, 2, 8),
    (torch.erf, 2, 40),
    (F.gelu, 2, 6),
    (lambda x: F.gelu(x, approximate="tanh"), 2, 6),
    (F.silu, 2, 6),
    (F.mish, 4, 12),
    (F.softplus, 2, 6),
    (lambda x: F.softplus(x, beta=2.0), 4, 8),
    (lambda x: F.softplus(x, beta=0.5), 6, 8),
    (F.logsigmoid, 2, 6),
    (F.elu, 4, 8),
    (lambda x: F.elu(x, alpha=0.5), 4, 8),
    (F.selu, 6, 10),
    (lambda x: F.celu(x, alpha=2.0), 6, 10),
    (torch.sin, 2, 6),
    (torch.cos, 2, 6),
    (torch.special.erfc, 2, 40),
]


@pytest.mark.parametrize(("function", "ulps", "grad_ulps"), CURVES)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5)])
def test_curves(function: Function, ulps: float, grad_ulps: float, shape: tuple[int, ...]) -> None:
    matches(function, grid(*shape, low=-7, high=7), ulps=ulps, grad_ulps=grad_ulps)


EXPONENTIALS: list[tuple[Function, float, float]] = [
    (torch.exp, 16, 40),
    (torch.exp2, 16, 30),
    (torch.expm1, 16, 40),
    (lambda x: (x * x + 0.5).log(), 4, 40),
    (lambda x: (x * x + 0.5).log2(), 6, 50),
    (lambda x: (x * x + 0.5).log10(), 3, 30),
    (lambda x: (x * x).log1p(), 4, 40),
    (lambda x: (x * x + 0.5).sqrt(), 3, 40),
    (lambda x: (x * x + 0.5).rsqrt(), 3, 30),
    (lambda x: 1 / (x * x + 0.5), 12, 120),
    (lambda x: 3.0 / (x * x + 0.5), 36, 360),
    (lambda x: x / (x * x + 0.5), 6, 80),
    (lambda x: (x * x + 0.5) ** 0.5, 3, 40),
    (lambda x: (x * x + 0.5) ** -0.5, 3, 30),
    (lambda x: (x * x + 0.5) ** 1.5, 60, 200),
    (lambda x: (x * x + 0.5) ** -2, 40, 400),
    (lambda x: 2.0**x, 16, 30),
    (torch.sinh, 16, 30),
    (torch.cosh, 16, 30),
]


@pytest.mark.parametrize(("function", "ulps", "grad_ulps"), EXPONENTIALS)
def test_exponentials_logarithms_roots(function: Function, ulps: float, grad_ulps: float) -> None:
    matches(function, grid(3, 5), ulps=ulps, grad_ulps=grad_ulps)


def test_tangent() -> None:
    matches(torch.tan, grid(3, 5, low=-1, high=1), ulps=10, grad_ulps=40)


@pytest.mark.parametrize(
    "shapes", [((4, 5), (5,)), ((5,), (4, 5)), ((4, 5), (4, 1)), ((), (3,)), ((3,), ()), ((0, 2), (2,))]
)
def test_division_of_secrets(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Quotients up to 3, slopes up to 9, summed up over 5 where the divisor was broadcast."""
    matches(
        lambda a, b: a / b,
        grid(*shapes[0], low=-3, high=3),
        grid(*shapes[1], low=1, high=3, seed=1),
        ulps=0.75 * 65,
        grad_ulps=5 * 10 * 16,
    )


@pytest.mark.parametrize("public", [0, 1])
def test_division_with_a_public_side(public: int) -> None:
    matches(
        lambda a, b: a / b,
        grid(4, 5, low=-3, high=3),
        grid(4, 5, low=1, high=3, seed=1),
        ulps=50,
        grad_ulps=200,
        public=[public],
    )


def test_powers_of_tensors() -> None:
    base, exponent = grid(3, 4, low=1, high=3), grid(3, 4, seed=2)
    matches(torch.pow, base, exponent, ulps=60, grad_ulps=600)
    matches(torch.pow, base, exponent, ulps=60, grad_ulps=600, public=[0])


def test_division_keeps_the_layout() -> None:
    x, y = encml.share(grid(3, 4)), encml.share(grid(4, 1, low=1, high=2))
    assert (x.t() / y).stride() == (1, 4)


def test_gelu_locates_its_input_once() -> None:
    """19 rounds for the function and 11 for its slope and the product with the gradient, not 22."""
    for function, backward in ((F.gelu, 11), (F.silu, 11), (F.softplus, 11), (F.mish, 11), (F.logsigmoid, 11)):
        x = encml.share(grid(4, 4)).requires_grad_()
        ledger = x.session.ledger
        with ledger.measure() as forward:
            y = function(x)
        g = encml.share(grid(4, 4))
        with ledger.measure() as back:
            y.backward(g)
            assert isinstance(x.grad, encml.SharedTensor)
            x.grad._secret.settle()
        assert forward[0].rounds == 19, function
        assert back[0].rounds == backward, function


def test_written_over_inputs_are_located_anew() -> None:
    x = encml.share(torch.tensor([1.0, -1.0]))
    before = torch.tanh(x)
    x.mul_(0)
    near(torch.tanh(x).reveal(), torch.zeros(2), 1)
    near(before.reveal(), torch.tensor([1.0, -1.0]).tanh(), 2)


def test_in_place() -> None:
    x = encml.share(grid(3, low=0, high=2))
    near(x.clone().exp_().reveal(), grid(3, low=0, high=2).exp(), 8)
    near(x.clone().sigmoid_().reveal(), grid(3, low=0, high=2).sigmoid(), 2)
    near(x.clone().add_(1).div_(x + 1).reveal(), torch.ones(3), 16)


def test_refusals() -> None:
    x = encml.share(grid(3))
    with pytest.raises(UnsupportedOperation, match="threshold"):
        F.softplus(x, threshold=2)
    with pytest.raises(UnsupportedOperation, match="base must be positive"):
        torch.pow(-2.0, x)
