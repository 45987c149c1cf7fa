"""The debug mode: every operation on secrets is repeated in float64, and the first that is wrong is named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encml.errors import CheckError, UnsupportedOperation
from encml.inspect.bounds import Bounds, name_of, range_of
from encml.inspect.opened import Opened, Plain, Shadows, largest, memory_of, opened
from encml.inspect.places import Places, user_line
from encml.inspect.report import Finding, ModuleRecord, Report
from encml.net.transport import PARTIES
from encml.tensor.shared import SharedTensor, secret

aten = torch.ops.aten

_UNDEFINED = {aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default}
"""Their results are whatever was in memory, in PyTorch."""
_WRITTEN_UNSAID = {aten.native_batch_norm.default: ("running_mean", "running_var")}
"""Arguments that are written without the schema's saying so."""
_POSITIONS = {torch.int64}
"""Results that say where something is: after rounding, equal candidates may stand in another order."""
_SCALE = "scale the data or the weights down, or give the session fewer fraction bits (now {f}), which widens the range"


@contextmanager
def check(model: nn.Module | None = None, *, stop: bool = True, tolerance: float | None = None) -> Iterator[Report]:
    """Inside the block, repeat every operation on secrets in float64 and name the first that goes wrong, and where.

    model: the module whose submodules are named; without it, the line of the program is. Forward and backward are
        checked alike, so a training step may stand in the block.
    stop: raise CheckError at the first finding; else go on, and read them all from the report.
    tolerance: also a finding: a result that is farther than this from the float64 computation since the block began.

    Yields a ``Report``: ``print(report)`` shows by module the largest values, the headroom left and the errors;
    ``report.findings`` and ``report.first`` say what went wrong. A finding is either an *overflow*, where the exact
    result (or a sum on the way) leaves the range that its fraction bits allow, |x| < 2^(62 - bits), or an *error*, of
    one operation alone beyond its bound (encml/inspect/bounds.py has them).

    Needs all three parties in this process, and puts their shares together: no privacy. Raises UnsupportedOperation
    with real parties. Results, masks, rounds and bytes are what they would be without it; several times slower. Values
    shared before the block count as exact, and so does the rounding of what is shared inside.
    """
    places = Places(model)
    report = Report(classes=places.classes)
    for parameter in () if model is None else (*model.parameters(), *model.buffers()):
        _require_all_parties(parameter)
    with places.followed(), _Watch(places, report, stop, tolerance):
        yield report


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's hook for subclasses
    """Sees every aten operator below autograd, in backward too."""

    def __init__(self, places: Places, report: Report, stop: bool, tolerance: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places, self._report, self._stop, self._tolerance = places, report, stop, tolerance
        self._shadows = Shadows()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        secrets = [x for x in tree_leaves((args, kwargs)) if isinstance(x, SharedTensor)]
        for x in secrets:
            _require_all_parties(x)
        if secrets and func not in SharedTensor.handlers:
            with self:  # composite operators arrive whole where autograd is off altogether: look at their parts
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if not secrets or func not in SharedTensor.handlers or func in _UNDEFINED:
            return func(*args, **kwargs)
        return self._compared(func, (args, kwargs), secrets)

    def _compared(self, func: Any, arguments: tuple[Any, Any], secrets: list[SharedTensor]) -> Any:
        memories = {memory_of(x) for x in secrets}
        written = {id(x): x for x in _written(func, *arguments) if isinstance(x, SharedTensor)}
        values = Opened(secrets, self._shadows)
        shadows = {id(x): self._shadows.of(x).clone() for x in secrets}
        result = func(*arguments[0], **arguments[1])
        leaves = tree_leaves(result)
        new = {
            place: x
            for place, x in enumerate(leaves)
            if isinstance(x, SharedTensor) and memory_of(x) not in memories and id(x) not in written
        }
        if not new and not written:
            return result
        f = secrets[0].session.fraction_bits
        rounding = values.settle(written)
        if rounding > math.ldexp(1.0, -f):
            self._find(
                "error",
                func,
                f"a product that was still to be rounded changed by {rounding:.4g} then, at most 1 ulp is allowed: it "
                f"was out of range. What to do: {_SCALE.format(f=f)}.",
            )
        exact = Plain(func, arguments, values.of)
        ideal = Plain(func, arguments, lambda x: shadows[id(x)])
        bounds = Bounds(func, arguments, values, f)
        for x in written.values():
            self._judge(func, bounds, x, exact.copy_of(x), ideal.copy_of(x), writes=True)
        exact_leaves, ideal_leaves = tree_leaves(exact.result), tree_leaves(ideal.result)
        comparable = len(exact_leaves) == len(leaves) == len(ideal_leaves)
        for place, x in new.items():
            wanted = (exact_leaves[place], ideal_leaves[place]) if comparable else (None, None)
            self._judge(func, bounds, x, *wanted, writes=False)
        return result

    def _judge(self, func: Any, bounds: Bounds, x: SharedTensor, exact: Any, ideal: Any, *, writes: bool) -> None:
        """One result: its range, its own error, and that since the beginning."""
        if not (isinstance(exact, Tensor) and isinstance(ideal, Tensor) and exact.shape == x.shape == ideal.shape):
            self._report.unchecked.add(name_of(func))
            return
        self._shadows.set(x, exact, ideal)
        if not secret(x).made:
            return
        record = self._report.records.setdefault(self._places.here, ModuleRecord())
        record.operations += 1
        if x.dtype == torch.bool:
            self._judge_bools(func, bounds, opened(x), exact)
            return
        found, exact, ideal = opened(x).double(), exact.double(), ideal.double()
        compared = bounds.compared(exact)
        if compared is not None:
            found, exact, ideal = (values.where(compared, 0.0) for values in (found, exact, ideal))
        if self._overflows(func, bounds, x, exact, record) or (x.dtype in _POSITIONS and not bounds.is_linear):
            return
        error, allowed = (found - exact).abs(), bounds.error(exact, writes)
        if (worst := largest(error) / bounds.ulp) > record.local_error:
            record.local_error, record.local_operation = worst, name_of(func)
        if bool((error > allowed).any()):
            self._find("error", func, _error_text(error, allowed, exact, found, bounds))
        total = largest(found - ideal)
        if total > record.total_error:
            record.total_error, record.total_operation = total, name_of(func)
        if self._tolerance is not None and total > self._tolerance:
            self._find(
                "error",
                func,
                f"the result is {total:.4g} away from the float64 computation since the block began, allowed are "
                f"{self._tolerance:.4g}. What to do: see where the error grows (print the report); more fraction bits "
                "make every rounding smaller.",
            )

    def _judge_bools(self, func: Any, bounds: Bounds, found: Tensor, exact: Tensor) -> None:
        wrong = found != exact
        tolerated = bounds.may_differ()
        if tolerated is not None:
            wrong = wrong & ~tolerated
            for what, size, bits in bounds.on_the_way(exact):
                self._check_range(func, bounds, what, size, bits)
        if bool(wrong.any()):
            self._find("error", func, f"{int(wrong.sum())} of {wrong.numel()} truth values are wrong; none may be.")

    def _overflows(self, func: Any, bounds: Bounds, x: SharedTensor, exact: Tensor, record: ModuleRecord) -> bool:
        """Whether the result, or what the operation passes through, is out of range: then errors follow from that."""
        bits, size = secret(x).fraction_bits, largest(exact)
        record.largest = max(record.largest, size)
        if not x.dtype.is_floating_point:
            return self._check_range(func, bounds, "the result", size, bits)
        over = False
        for what, passed, at in (*bounds.on_the_way(exact), ("the result", size, bits)):
            if 0 < passed < math.inf:
                declared = 62 - max(at, 2 * bounds.fraction_bits)
                record.headroom = min(record.headroom, declared - math.log2(passed))
            over = over or self._check_range(func, bounds, what, passed, at)
        return over

    def _check_range(self, func: Any, bounds: Bounds, what: str, size: float, bits: int) -> bool:
        limit = math.ldexp(1.0, bounds.range_bits(bits))
        if size < limit:
            return False
        self._find(
            "overflow",
            func,
            f"{what} reaches {size:.4g} in magnitude, allowed is less than {limit:.4g} (2^{bounds.range_bits(bits)} at "
            f"{bits} fraction bits). What to do: {_SCALE.format(f=bounds.fraction_bits)}.",
        )
        return True

    def _find(self, kind: Literal["overflow", "error"], func: Any, detail: str) -> None:
        place = self._places.here
        finding = Finding(
            kind, self._report.name(place), place.module, place.backward, name_of(func), detail, user_line()
        )
        self._report.findings.append(finding)
        if self._stop:
            raise CheckError(str(finding))


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that the operator writes in place, by its schema."""
    for place, argument in enumerate(func._schema.arguments):
        unsaid = argument.name in _WRITTEN_UNSAID.get(func, ())
        if unsaid or (argument.alias_info is not None and argument.alias_info.is_write):
            yield args[place] if place < len(args) else kwargs.get(argument.name)


def _error_text(error: Tensor, allowed: Tensor | float, exact: Tensor, found: Tensor, bounds: Bounds) -> str:
    place = int((error - allowed).nan_to_num(nan=math.inf).argmax())
    limit = float(torch.as_tensor(allowed).expand_as(error).flatten()[place])
    got, want, off = (float(x.flatten()[place]) for x in (found, exact, error))
    return (
        f"a result is {got:.6g}, in float64 it is {want:.6g}: off by "
        f"{off / bounds.ulp:.4g} ulp, allowed are {limit / bounds.ulp:.4g} (values of this "
        f"result span {range_of(exact)}). What to do: if it is far off, an input or a value on the way left the range: "
        f"{_SCALE.format(f=bounds.fraction_bits)}."
    )


def _require_all_parties(x: object) -> None:
    if isinstance(x, SharedTensor) and x.session.parties.here != PARTIES:
        raise UnsupportedOperation(
            "encml.check puts the shares of all three parties together, and so works in an in-process session alone; "
            "here the parties are real. Check the same program with encml.Session()"
        )
