"""A whole module on secrets and in float64: outputs, and gradients of inputs and parameters."""

from __future__ import annotations

from typing import Any

import torch
from reference import grid, near
from torch import Tensor, nn

import encml
from encml import SharedTensor


def on_the_grid(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """The module in float64 with parameters that sharing does not round."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((parameter * scale * 2**16).round() / 2**16)
    return module


def module_matches(
    module: nn.Module,
    *inputs: Any,
    ulps: float,
    grad_ulps: float,
    shown: Tensor | None = None,
    strides: bool = True,
    **options: Any,
) -> None:
    """``module`` shared gives what it gives in plain, with its ``strides``; and in training mode the same gradients.

    ``shown``: which elements of the first output count. Outputs may be nested tuples; upstream gradients are on the
    grid. Floating-point inputs are shared and get gradients, tuples of tensors as well; ``options`` stay plain.
    """
    module.zero_grad()
    shared = encml.share(module)
    plain = [_each(x, lambda t: t.clone().requires_grad_()) for x in inputs]
    secret = [_each(x, lambda t: encml.share(t).requires_grad_()) for x in inputs]
    expected, found = _flat(module(*plain, **options)), _flat(shared(*secret, **options))
    assert len(expected) == len(found)
    for i, (y, z) in enumerate(zip(expected, found, strict=True)):
        assert isinstance(z, SharedTensor)
        assert z.dtype == y.dtype
        assert z.stride() == y.stride() or not strides
        if i == 0 and shown is not None:
            near(z.reveal()[shown], y[shown], ulps)
        else:
            near(z.reveal(), y, ulps)
    if not module.training:
        return
    upstream = [grid(*y.shape, seed=90 + i) for i, y in enumerate(expected)]
    torch.autograd.backward(expected, upstream)
    torch.autograd.backward(found, [encml.share(g) for g in upstream])
    leaves = [*zip(_flat(plain), _flat(secret), strict=True)]
    leaves += [(p, q) for p, q in zip(module.parameters(), shared.parameters(), strict=True)]
    for a, b in leaves:
        assert a.grad is not None
        assert isinstance(b.grad, SharedTensor)
        near(b.grad.reveal(), a.grad, grad_ulps)


def _each(x: Any, f: Any) -> Any:
    return tuple(_each(part, f) for part in x) if isinstance(x, tuple) else f(x)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for part in value for leaf in _flat(part)]
    return [] if value is None else [value]
