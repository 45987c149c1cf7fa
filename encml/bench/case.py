"""One case of the benchmark: what is run, at which size, and what it should cost and give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.mpc.comparison import WORD_BITS
from encml.mpc.costs import COSTS
from encml.mpc.session import Session
from encml.net.transport import PARTIES
from encml.ring.fixed import DEFAULT_FRACTION_BITS
from encml.tensor import SharedTensor

ERROR_FLOOR = 1 / 8
"""Results below this are compared with it: an error of 2 units in the last place of 16 bits is then 2^-12 of it."""

_SEED = 20_260_401
_COMPARES = "bits"
"""What the width of a primitive means that compares; without a declared range, see ``Session.compared_bits``."""


@dataclass(frozen=True, slots=True)
class Job:
    """A case made ready in a session: its inputs are shared.

    ``run`` goes from shares to shares: what it returns is settled, so that nothing is left to be paid later.
    ``expected``: the result in plain float64, where there is one to compare with.
    ``payload``: of a training step, the elements that it cannot do without.
    """

    run: Callable[[], SharedTensor | None]
    expected: Tensor | None = None
    payload: Payload | None = None


@dataclass(frozen=True, slots=True)
class Payload:
    """How many secret elements a step is given (parameters, inputs, labels), and how many activations it must keep.

    Activations are the outputs of all layers but those that only give their input another shape.
    """

    given: int
    kept: int


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the benchmark.

    does: what is computed, with ``{0:,}`` and so on for the numbers of ``size``.
    size, quick: the size measured, and the one for a quick look; what the numbers mean is for ``prepare`` to say.
    domain: the interval that inputs are from, where it matters.
    prepare: shares inputs of a size in a session. Raises UnsupportedOperation where the function is unknown there.
    declared: which entry of ``encml.mpc.costs.COSTS`` gives its cost, and for how many elements at a size.
    loops: how often ``run`` repeats it; all figures are of one of them.
    comparison_bits: the declared range of the session that it runs in; see ``encml.Session``.
    """

    name: str
    group: str
    does: str
    size: tuple[int, ...]
    quick: tuple[int, ...]
    prepare: Callable[[Session, tuple[int, ...]], Job]
    declared: tuple[str, Callable[[tuple[int, ...]], int]] | None = None
    domain: tuple[float, float] | None = None
    loops: int = 1
    comparison_bits: int | None = None

    def at(self, quick: bool) -> tuple[int, ...]:
        """The size to run at."""
        return self.quick if quick else self.size

    def title(self, quick: bool) -> str:
        """What it does, for people."""
        return self.does.format(*self.at(quick))

    def declaration(self, quick: bool) -> tuple[int, float] | None:
        """(rounds, bytes a party, averaged over the parties) as ``COSTS`` declares them; None where it does not."""
        if self.declared is None or self.declared[0] not in COSTS:
            return None
        name, elements = self.declared
        cost = COSTS[name]
        width = cost.width
        if cost.width_means == _COMPARES:
            width = self.comparison_bits or WORD_BITS - DEFAULT_FRACTION_BITS
        return cost.rounds(width), cost.sent(elements(self.at(quick)), width) / PARTIES


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal test values in float32, the same in every process; public, like all inputs of the benchmark.

    They are multiples of 2^-16, as those of ``spread``: shared as they are, so an error is the computation's.
    """
    return _multiples(torch.randn(shape, generator=torch.Generator().manual_seed(_SEED + seed))).float()


def spread(count: int, low: float, high: float) -> Tensor:
    """``count`` values from ``low`` to ``high``, in float64: at even ratios where both are positive."""
    if low > 0:
        return _multiples(torch.logspace(0, 1, count, base=high / low, dtype=torch.float64) * low)
    return _multiples(torch.linspace(low, high, count, dtype=torch.float64))


def _multiples(values: Tensor) -> Tensor:
    return torch.round(values.double() * 2.0**16) / 2.0**16


def worst_error(found: Tensor, expected: Tensor) -> float:
    """The largest |found - expected| / max(|expected|, ERROR_FLOOR); infinite where something is not a number."""
    error = (found.double() - expected).abs() / expected.abs().clamp(min=ERROR_FLOOR)
    return float(error.nan_to_num(nan=torch.inf).max()) if error.numel() else 0.0
