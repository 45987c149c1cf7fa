"""What a run has spent of its privacy budget, and how much noise a budget asks for.

The figures are those of Opacus's accountants for the Poisson-subsampled Gaussian mechanism: a step includes every unit
(client or example) independently with probability ``sample_rate``, sums contributions whose L2 norm is at most S, and
adds Gaussian noise of standard deviation ``noise_multiplier`` · S. Neighbouring data sets differ by one unit added or
removed. "rdp" composes Rényi divergences (Mironov, Talwar, Zhang 2019), is fast and robust, and gives an ε that is
often 10 % above that of "prv", which composes privacy losses numerically (Gopi, Lee, Wutschitz 2021). Opacus's third,
"gdp", can understate what was spent and is not offered.

Both take the noise for continuous. The integer noise that the computing parties add has the same guarantee up to bounds
that :mod:`encml.privacy.distributed` proves and enforces.

What sampling assumes: ``sample_rate`` < 1 lowers ε only against those who do not know who took part in a step. The
server and the parties that handle a client's shares do know. Against them, account with rate 1 for the steps in which
that client took part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from encml.errors import PrivacyError
from encml.privacy.checks import (
    Mechanism,
    check_delta,
    check_mechanism,
    check_noise_multiplier,
    check_sample_rate,
    check_steps,
)
from encml.privacy.text import delta_text, epsilon_text

Unit = Literal["client", "example", "none"]

_PRV_ERROR = 0.01  # Opacus's default: the ε of "prv" is an upper bound within about this of the truth
_PRV_POINTS = 1 << 22  # a larger grid takes more than seconds and some hundred MB


class Accountant:
    """Adds up what each step spends, and says what the whole run guarantees.

    ``mechanism`` and ``delta`` are fixed for a run: a δ chosen after the fact would mean nothing.
    """

    def __init__(self, mechanism: Mechanism, delta: float) -> None:
        check_mechanism(mechanism)
        check_delta(delta)
        self._mechanism: Mechanism = mechanism
        self._delta = float(delta)
        self._steps: dict[tuple[float, float], int] = {}

    @property
    def mechanism(self) -> Mechanism:
        """How ε is computed: "rdp" or "prv"."""
        return self._mechanism

    @property
    def delta(self) -> float:
        """The δ for which :meth:`epsilon` holds."""
        return self._delta

    @property
    def steps(self) -> int:
        """How many steps have been counted."""
        return sum(self._steps.values())

    def step(self, noise_multiplier: float, sample_rate: float, steps: int = 1, *, sampling: str = "poisson") -> None:
        """Count ``steps`` releases at this noise (standard deviation over sensitivity) and sampling rate.

        Zero noise is counted, and makes :meth:`epsilon` infinite. :class:`PrivacyError` for what the accountants
        have no figures for: negative or infinite noise, a rate outside (0, 1], a sampling other than "poisson"
        (every unit independently; all of them is rate 1).
        """
        check_noise_multiplier(noise_multiplier)
        check_sample_rate(sample_rate)
        check_steps(steps)
        if sampling != "poisson":
            raise PrivacyError(
                f"sampling {sampling!r} cannot be accounted for: only 'poisson', where each unit is included "
                "independently (batches of fixed size, shuffled or not, have other guarantees)"
            )
        if steps:
            key = (float(noise_multiplier), float(sample_rate))
            self._steps[key] = self._steps.get(key, 0) + int(steps)

    def epsilon(self) -> float:
        """ε at :attr:`delta` of everything released so far: 0.0 before any step, ``math.inf`` without noise.

        An upper bound. Milliseconds with "rdp", up to seconds with "prv" (:class:`PrivacyError` where that would need
        a grid beyond all measure, or its numbers cannot be trusted: use "rdp").
        """
        if not self._steps:
            return 0.0
        if any(noise == 0 for noise, _ in self._steps):
            return math.inf
        history = [(noise, rate, steps) for (noise, rate), steps in self._steps.items()]
        if self._mechanism == "rdp":
            return _rdp_epsilon(history, self._delta)
        return _prv_epsilon(history, self._delta)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON; nothing secret."""
        steps = [[noise, rate, count] for (noise, rate), count in self._steps.items()]
        return {"mechanism": self._mechanism, "delta": self._delta, "steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved :meth:`state_dict`; refused if malformed or if mechanism or δ differ from this one's."""
        found = {"mechanism": state.get("mechanism"), "delta": state.get("delta")}
        expected = {"mechanism": self._mechanism, "delta": self._delta}
        if found != expected:
            raise PrivacyError(
                f"an accountant's state for {found} cannot be resumed with {expected}: what was already spent was "
                "accounted for another guarantee; keep mechanism and delta, or start a new run"
            )
        resumed = Accountant(self._mechanism, self._delta)
        entries = state.get("steps")
        if set(state) != {"mechanism", "delta", "steps"} or not isinstance(entries, list):
            raise PrivacyError(f"not an accountant's state: keys {sorted(map(str, state))}, steps {entries!r}")
        for entry in entries:
            if not isinstance(entry, list | tuple) or len(entry) != 3:
                raise PrivacyError(f"not an accountant's step: {entry!r}; [noise, rate, steps] is needed")
            resumed.step(*entry)
        self._steps = resumed._steps


def noise_multiplier_for(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, mechanism: Mechanism = "rdp"
) -> float:
    """The noise multiplier with which ``steps`` steps at ``sample_rate`` spend at most ``target_epsilon`` at ``delta``.

    Within 1 % of the target (0.01 above 1). About a second with "rdp", up to ten with "prv".
    :class:`PrivacyError` if no noise is enough; "rdp" cannot certify an ε below about ln(1/δ)/62.
    """
    check_mechanism(mechanism)
    check_delta(delta)
    check_sample_rate(sample_rate)
    check_steps(steps)
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"target epsilon {target_epsilon!r}: a positive, finite number is needed")
    if steps == 0:
        raise PrivacyError("a noise multiplier for 0 steps: at least one step is needed")
    budget = f"epsilon {target_epsilon:g} at delta {delta:g}, rate {sample_rate:g} and {steps} steps"
    with _refusing(f"no noise multiplier was found for {budget} with {mechanism!r}"):
        return float(
            get_noise_multiplier(
                target_epsilon=float(target_epsilon),
                target_delta=float(delta),
                sample_rate=float(sample_rate),
                steps=int(steps),
                accountant=mechanism,
                epsilon_tolerance=0.01 * min(1.0, target_epsilon),
            )
        )


@dataclass(frozen=True)
class PrivacyStatement:
    """What a run's result says about one unit of its data; ``str()`` gives the sentence for people.

    ``unit`` is "client" (noise inside the protocol), "example" (DP-SGD on each client), or "none". ``sampled`` tells
    that ``epsilon`` was accounted with a sampling rate below 1.
    """

    unit: Unit
    epsilon: float = math.inf
    delta: float = 0.0
    sampled: bool = False

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise PrivacyError(f"privacy unit {self.unit!r}: one of {', '.join(get_args(Unit))} is needed")
        if not self.epsilon >= 0:
            raise PrivacyError(f"epsilon {self.epsilon!r}: a number from 0 up is needed")
        if self.unit != "none":
            check_delta(self.delta)

    def __str__(self) -> str:
        if self.unit == "none" or math.isinf(self.epsilon):
            return (
                "No differential privacy: what is revealed may tell anything about single clients and examples; "
                "secure computation hides only what is not revealed."
            )
        changed = {
            "client": "one client's entire data",
            "example": "one training example of one client",
        }[self.unit]
        sentence = (
            f"Adding or removing {changed} changes the distribution of everything revealed by at most "
            f"(ε = {epsilon_text(self.epsilon)}, δ = {delta_text(self.delta)})."
        )
        if self.unit == "example":
            sentence += " What a client's examples have in common is not protected by this."
        if self.sampled:
            sentence += f" It counts on nobody knowing which {self.unit}s were sampled in each step."
        return sentence


def _rdp_epsilon(history: list[tuple[float, float, int]], delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = history
    with _refusing("'rdp' cannot account for this run"):
        epsilon = float(accountant.get_epsilon(delta=delta))
    return _checked(epsilon, "rdp")


def _prv_epsilon(history: list[tuple[float, float, int]], delta: float) -> float:
    # Opacus takes its grid's half width from "rdp" and the mesh from the number of steps, and allocates whatever comes
    # out. The same figures, before it does.
    steps = sum(count for _, _, count in history)
    width = _rdp_epsilon(history, delta / 4000) + 3
    points = 2 * width * math.sqrt(steps * math.log(12000 / delta) / 2) / _PRV_ERROR
    if points > _PRV_POINTS:
        raise PrivacyError(
            f"'prv' would need a grid of {points:.2g} points (at most {_PRV_POINTS:.2g}) for {steps} steps with so "
            "little noise; use 'rdp'"
        )
    accountant = PRVAccountant()
    accountant.history = history
    with _refusing("'prv' cannot account for this run"):
        epsilon = float(accountant.get_epsilon(delta=delta, eps_error=_PRV_ERROR))
    return _checked(epsilon, "prv")


def _checked(epsilon: float, mechanism: str) -> float:
    if math.isnan(epsilon):
        raise PrivacyError(f"{mechanism!r} cannot account for this run: no epsilon came out; use the other mechanism")
    return max(0.0, epsilon)


@contextmanager
def _refusing(problem: str) -> Iterator[None]:
    """Run Opacus: its known harmless warnings are dropped, and whatever else it complains of becomes a PrivacyError.

    Harmless are: the best Rényi order is the first or last of the list (the bound holds, it is only not the tightest)
    and log(0) at rate 1 (the privacy loss then has no lower end; −inf is right).
    """
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", "Optimal order is the (smallest|largest) alpha", UserWarning)
        try:
            yield
        except (ValueError, ArithmeticError, RuntimeError, Warning) as error:
            raise PrivacyError(f"{problem}: {error}") from error
