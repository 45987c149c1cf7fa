"""Functions of PyTorch on secrets; one that SharedTensor does not support stays in the list and says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.bench.case import Case, Job, spread
from encml.bench.primitives import fresh, settled
from encml.mpc.session import Session
from encml.tensor import share

Size = tuple[int, ...]


def _function(name: str, f: Callable[..., Tensor], low: float, high: float, declared: str | None = None) -> Case:
    """f of values spread over [low, high]."""

    def prepare(session: Session, size: Size) -> Job:
        values = spread(size[0], low, high)
        x = share(values, session=session)
        return Job(lambda: settled(f(fresh(x))), f(values))

    does = f"{name} of {{0:,}} values, {low:g} to {high:g}"
    cost = (declared or name, math.prod)
    return Case(name, "functions", does, (10_000,), (100,), prepare, cost, (low, high))


def _divide(session: Session, size: Size) -> Job:
    above, below = spread(size[0], -8, 8), spread(size[0], *_DIVISORS)
    x, y = share(above, session=session), share(below, session=session)
    return Job(lambda: settled(fresh(x) / fresh(y)), above / below)


def _softmax(session: Session, size: Size) -> Job:
    """``size``: rows and columns."""
    # Every row is a shuffled sample of the whole interval.
    order = torch.randperm(math.prod(size), generator=torch.Generator().manual_seed(0))
    values = spread(math.prod(size), *_SCORES)[order].view(size)
    x = share(values, session=session)
    return Job(lambda: settled(torch.softmax(fresh(x), -1)), torch.softmax(values, -1))


_DIVISORS = (0.01, 1000.0)
_SCORES = (-10.0, 10.0)

FUNCTIONS: tuple[Case, ...] = (
    _function("exp", torch.exp, -8, 8),
    _function("log", torch.log, 0.001, 1000),
    _function("reciprocal", torch.reciprocal, *_DIVISORS),
    Case(
        "divide",
        "functions",
        "{0:,} quotients, divisors 0.01 to 1000",
        (10_000,),
        (100,),
        _divide,
        ("divide", math.prod),
        _DIVISORS,
    ),
    _function("sqrt", torch.sqrt, 0.001, 1000),
    _function("rsqrt", torch.rsqrt, 0.001, 1000),
    _function("sigmoid", torch.sigmoid, -8, 8),
    _function("tanh", torch.tanh, -8, 8),
    _function("gelu", F.gelu, -8, 8),
    Case(
        "softmax",
        "functions",
        "softmax of {0:,} rows of {1}",
        (1_000, 10),
        (20, 10),
        _softmax,
        domain=_SCORES,
    ),
)
