"""What a result is compared with, and what is said of it."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from encml.errors import CheckError
from encml.inspect.bounds import Bounds
from encml.inspect.opened import Shadows, largest, opened
from encml.inspect.places import Places, user_line
from encml.inspect.report import Finding, ModuleRecord, Report
from encml.tensor.shared import SharedTensor, secret

_SCALE = "scale the data or the weights down, or give the session fewer fraction bits (now {f}), which widens the range"


class Judge:
    """Keeps the report of one block, and the float64 values that results are compared with."""

    def __init__(self, places: Places, report: Report, stop: bool, tolerance: float | None) -> None:
        self.report, self.shadows = report, Shadows()
        self._places, self._stop, self._tolerance = places, stop, tolerance

    def judge(self, bounds: Bounds, x: SharedTensor, exact: Any, ideal: Any, *, writes: bool = False) -> None:
        """One result: its range, its own error, and that since the beginning.

        exact: what the operation gives in float64 of what went into it; ideal: of what should have gone into it. Where
        either is no tensor of the same shape, nothing can be said. writes: x was written in place.
        """
        if not x.numel():
            return
        if not (isinstance(exact, Tensor) and isinstance(ideal, Tensor) and exact.shape == x.shape == ideal.shape):
            self.report.unchecked.add(bounds.name)
            return
        self.shadows.set(x, exact, ideal)
        if not secret(x).made:
            for what, size, bits, limit in bounds.on_the_way(exact):
                self._check_range(bounds, what, size, bits, limit)
            return
        record = self.report.records.setdefault(self._places.here, ModuleRecord())
        record.operations += 1
        if x.dtype == torch.bool:
            self._judge_bools(bounds, opened(x), exact)
            return
        found, exact, ideal = opened(x).double(), exact.double(), ideal.double()
        compared = bounds.compared(exact)
        if compared is not None:
            found, exact, ideal = (values.where(compared, 0.0) for values in (found, exact, ideal))
        # Where something is may come out differently among candidates that rounding made equal.
        position = x.dtype == torch.int64 and not bounds.is_linear
        if self._overflows(bounds, x, exact, record) or position:
            return
        error, allowed = (found - exact).abs(), bounds.error(exact, writes)
        if (worst := largest(error) / bounds.ulp) > record.local_error:
            record.local_error, record.local_operation = worst, bounds.name
        if bool((error > allowed).any()):
            self._find("error", bounds, _error_text(error, allowed, exact, found, bounds))
        self._judge_total(bounds, largest(found - ideal), record)

    def judge_rounding(self, bounds: Bounds, change: float) -> None:
        """What an operation changed by rounding its inputs in place."""
        if change > bounds.ulp:
            self._find(
                "error",
                bounds,
                f"a product that was still to be rounded changed by {change:.4g} then, allowed is 1 ulp: it was out of "
                f"range. What to do: {_SCALE.format(f=bounds.fraction_bits)}.",
            )

    def _judge_total(self, bounds: Bounds, total: float, record: ModuleRecord) -> None:
        if total > record.total_error:
            record.total_error, record.total_operation = total, bounds.name
        if self._tolerance is not None and total > self._tolerance:
            self._find(
                "error",
                bounds,
                f"the result is {total:.4g} away from the float64 computation since the block began, allowed are "
                f"{self._tolerance:.4g}. What to do: see where the error grows (print the report); more fraction bits "
                "make every rounding smaller.",
            )

    def _judge_bools(self, bounds: Bounds, found: Tensor, exact: Tensor) -> None:
        wrong = found != exact
        tolerated = bounds.may_differ()
        if tolerated is not None:
            wrong = wrong & ~tolerated
            for what, size, bits, limit in bounds.on_the_way(exact):
                self._check_range(bounds, what, size, bits, limit)
        if bool(wrong.any()):
            self._find("error", bounds, f"{int(wrong.sum())} of {wrong.numel()} truth values are wrong; none may be.")

    def _overflows(self, bounds: Bounds, x: SharedTensor, exact: Tensor, record: ModuleRecord) -> bool:
        """Whether the result, or what the operation passes through, is out of range: then errors follow from that."""
        bits, size = secret(x).fraction_bits, largest(exact)
        record.largest = max(record.largest, size)
        over = False
        result = ("the result", size, bits, bounds.range_bits(bits))
        for what, passed, at, limit in (*bounds.on_the_way(exact), result):
            if 0 < passed < math.inf and x.dtype.is_floating_point:
                declared = min(limit, 62 - max(at, 2 * bounds.fraction_bits))
                record.headroom = min(record.headroom, declared - math.log2(passed))
            over = over or self._check_range(bounds, what, passed, at, limit)
        return over

    def _check_range(self, bounds: Bounds, what: str, size: float, bits: int, limit: int) -> bool:
        if size < math.ldexp(1.0, limit):
            return False
        if math.isinf(size):
            detail = (
                f"{what} is infinite or undefined, for a divisor of 0, say, or the root of a negative number; the "
                f"inputs' smallest magnitude is {bounds.smallest_input():.4g}. What to do: keep away from such points, "
                f"by an epsilon that fixed point can hold: at least {bounds.ulp:.3g}, better far more."
            )
        else:
            detail = (
                f"{what} reaches {size:.4g} in magnitude, allowed is less than {math.ldexp(1.0, limit):.4g} (2^{limit} "
                f"at {bits} fraction bits). What to do: {_SCALE.format(f=bounds.fraction_bits)}."
            )
        self._find("overflow", bounds, detail)
        return True

    def _find(self, kind: Literal["overflow", "error"], bounds: Bounds, detail: str) -> None:
        place = self._places.here
        name = self.report.name(place)
        finding = Finding(kind, name, place.module, place.backward, bounds.name, detail, user_line())
        self.report.findings.append(finding)
        if self._stop:
            raise CheckError(str(finding))


def _error_text(error: Tensor, allowed: Tensor | float, exact: Tensor, found: Tensor, bounds: Bounds) -> str:
    place = int((error - allowed).nan_to_num(nan=math.inf).argmax())
    limit = float(torch.as_tensor(allowed).expand_as(error).flatten()[place])
    got, want, off = (float(x.flatten()[place]) for x in (found, exact, error))
    low, high = (float(v) for v in torch.aminmax(exact))
    return (
        f"a result is {got:.6g}, in float64 it is {want:.6g}: off by {off / bounds.ulp:.4g} ulp, allowed are "
        f"{limit / bounds.ulp:.4g} (the values of this result span [{low:.4g}, {high:.4g}]). What to do: if it is far "
        f"off, an input or a value on the way left the range: {_SCALE.format(f=bounds.fraction_bits)}."
    )
