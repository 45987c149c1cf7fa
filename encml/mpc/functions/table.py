"""The table of contents: every function of one number, what it must equal, and what it may cost and be off by.

The ledger agrees exactly with the rounds and bytes, and errors stay within the bounds on dense and adversarial inputs
(tests/mpc/test_functions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from torch import Tensor

from encml.mpc.functions import curves, exponential, inverse, trigonometry
from encml.mpc.functions.curves import Curve
from encml.mpc.functions.polynomial import Array, Fit
from encml.mpc.parties import Parties
from encml.net.transport import PARTIES


@dataclass(frozen=True, slots=True)
class Function:
    """One function at f = 16 fraction bits.

    exact: the function in float64. ``domain``: where it is that, as (low, high); beyond, ``outside`` says what comes.
    rounds, sent: the cost; sent is in bytes an element by the three parties together, for whole words of elements.
    ulps, relative: the error is below ``ulps`` units of 2^-f, or below ``relative`` of the result if that is more.
    """

    protocol: Callable[[Parties, Tensor, int], Tensor]
    exact: Fit
    domain: tuple[float, float]
    outside: str
    rounds: int
    sent: float
    ulps: float = 2
    relative: float = 0.0

    @property
    def bytes_per_party(self) -> float:
        """Bytes an element and party, averaged over the parties."""
        return self.sent / PARTIES


_LARGEST = 2.0**30
_ULP = 2.0**-16
_EVERYWHERE = (-_LARGEST, _LARGEST)


def _on_curve(curve: Curve, sent: float, ulps: float = 2) -> Function:
    def protocol(parties: Parties, payload: Tensor, f: int) -> Tensor:
        return curves.evaluate(parties, payload, f, curves.locate(parties, payload, f, curve.grid), curve)

    return Function(protocol, _within(curve), _EVERYWHERE, "", 19, sent, ulps)


def _within(curve: Curve) -> Fit:
    """The curve's own formula where it is curved, what it is said to be where it is flat or straight."""

    def exact(x: Array) -> Array:
        ends = curve.grid.end
        inside = curve.of(np.clip(x, -4 * ends, 4 * ends))
        return np.where(x < -4 * ends, curve.left, np.where(x > 4 * ends, curve.right + curve.slope * x, inside))

    return exact


FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {
        "exp": Function(
            exponential.exp,
            np.exp,
            (-_LARGEST, 20.79),
            "2^30 above; results below 2^-16 are 0",
            21,
            511.25,
            relative=2**-12,
        ),
        "log": Function(
            inverse.log, np.log, (_ULP, _LARGEST), "0 and below: about -14.1", 27, 457.375, relative=2**-12
        ),
        "reciprocal": Function(
            inverse.reciprocal,
            lambda x: 1 / x,
            (-_LARGEST, _LARGEST),
            "0: about 7.1e5",
            30,
            572.25,
            relative=2**-12,
        ),
        "sqrt": Function(inverse.sqrt, np.sqrt, (0, _LARGEST), "below 0: 0", 27, 493.375, relative=2**-12),
        "rsqrt": Function(
            inverse.rsqrt,
            lambda x: 1 / np.sqrt(x),
            (_ULP, _LARGEST),
            "0: about 850; below 0: 0",
            27,
            497.375,
            relative=2**-12,
        ),
        "sin": Function(trigonometry.sin, np.sin, _EVERYWHERE, "", 21, 391.375),
        "cos": Function(trigonometry.cos, np.cos, _EVERYWHERE, "", 21, 391.375),
        "sigmoid": _on_curve(curves.SIGMOID, 602.375),
        "tanh": _on_curve(curves.TANH, 617.25),
        "erf": _on_curve(curves.ERF, 569.25),
        "gelu": _on_curve(curves.GELU, 649.25),
        "gelu_tanh": _on_curve(curves.GELU_TANH, 649.25),
        "silu": _on_curve(curves.SILU, 650.375),
        "softplus": _on_curve(curves.SOFTPLUS, 634.375),
        "mish": _on_curve(curves.MISH, 618.375, ulps=4),
    }
)

DIVIDE = Function(
    lambda parties, payload, f: inverse.divide(parties, payload[:, 0], payload[:, 1], f),
    lambda x: x[0] / x[1],
    _EVERYWHERE,
    "quotients from 2^28 on may, from 2^29 on do, as x/0, become plus or minus 2^29",
    30,
    881.875,
    relative=2**-12,
)
"""Division of two payloads, stacked: (S, 2, n)."""
