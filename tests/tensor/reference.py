"""The same function on secrets and in float64, values and gradients.

Where the tolerance comes from. Inputs are drawn on the grid of fixed point (multiples of 2^-f), so sharing them is
exact; sums, moves and shifts of scale are exact, too. What is left is one rounding for every truncation: stochastic,
less than one unit u = 2^-f. So a result that is truncated once, however many products were added up before, is less
than 1 u off; a truncation whose result is then multiplied by values up to m in k summed products contributes k m u.
Each test states the sum as ``ulps`` (``grad_ulps`` for gradients), and a public factor that fixed point cannot hold
(0.1) counts with its own rounding, at most 2^-f of the product. 0 means that the result is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import encml
from encml import SharedTensor

F = 16
ULP = 2.0**-F
Function = Callable[..., Any]


def grid(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> Tensor:
    """Multiples of 2^-f in [low, high), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(int(low * 2**F), int(high * 2**F), shape, generator=generator).double() * ULP


def near(found: Tensor, expected: Tensor, ulps: float) -> None:
    """Same shape, and every element within ``ulps`` units of the last place, below it but for 0."""
    assert tuple(found.shape) == tuple(expected.shape), (tuple(found.shape), tuple(expected.shape))
    if not found.numel():
        return
    worst = float((found.detach().double() - expected.detach().double()).abs().max()) / ULP
    assert worst < ulps or worst == 0, f"off by {worst:.3f} units of the last place, {ulps} are allowed"


def matches(
    f: Function,
    *inputs: Tensor,
    ulps: float = 1,
    grad_ulps: float | Sequence[float] = 1,
    public: Sequence[int] = (),
    backward: bool = True,
    strides: bool = True,
) -> None:
    """f of secrets gives f of plain float64 tensors: values, shape, strides, dtype and, with ``backward``, gradients.

    ``public`` names the positions of inputs that stay plain. Outputs may be tuples; plain ones are compared as they
    are. The upstream gradients are secret and on the grid as well.
    """
    plain = [x.clone(memory_format=torch.preserve_format) for x in inputs]
    secret: list[Tensor] = [
        x.clone(memory_format=torch.preserve_format) if i in public else encml.share(x) for i, x in enumerate(inputs)
    ]
    if backward:
        for x in (*plain, *secret):
            if x.dtype.is_floating_point:
                x.requires_grad_()
    expected, found = _as_tuple(f(*plain)), _as_tuple(f(*secret))
    assert len(expected) == len(found)
    for y, z in zip(expected, found, strict=True):
        assert isinstance(z, SharedTensor), f"a {type(z).__name__} came out"
        assert z.dtype == y.dtype
        assert z.requires_grad == y.requires_grad
        if strides:
            assert _steps(z) == _steps(y)
        near(z.reveal(), y, ulps)
    if not backward:
        return
    upstream = [grid(*y.shape, seed=90 + i) for i, y in enumerate(expected)]
    torch.autograd.backward(expected, upstream)
    torch.autograd.backward(found, [encml.share(g) for g in upstream])
    allowed = [grad_ulps] * len(inputs) if isinstance(grad_ulps, int | float) else list(grad_ulps)
    for a, b, ulp in zip(plain, secret, allowed, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert isinstance(b.grad, SharedTensor)
            assert b.grad.dtype == a.grad.dtype
            near(b.grad.reveal(), a.grad, ulp)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _steps(x: Tensor) -> list[int]:
    """The strides that matter."""
    return [step for size, step in zip(x.shape, x.stride(), strict=True) if size > 1] if x.numel() else []
