"""The debug mode: every operation on secrets is repeated in float64, and the first that is wrong is named."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encml.errors import UnsupportedOperation
from encml.inspect.bounds import Bounds
from encml.inspect.judging import Judge
from encml.inspect.opened import Opened, Plain, memory_of
from encml.inspect.places import Places
from encml.inspect.report import Report
from encml.net.transport import PARTIES
from encml.tensor.shared import SharedTensor

aten = torch.ops.aten

_UNDEFINED = {aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default}
"""Their results are whatever was in memory, in PyTorch."""
_WRITTEN_UNSAID = {aten.native_batch_norm.default: ("running_mean", "running_var")}
"""Arguments that are written without the schema's saying so."""


@contextmanager
def check(model: nn.Module | None = None, *, stop: bool = True, tolerance: float | None = None) -> Iterator[Report]:
    """Inside the block, repeat every operation on secrets in float64 and name the first that goes wrong, and where.

    model: the module whose submodules are named; without it, the line of the program is. Forward and backward are
        checked alike, so a training step may stand in the block.
    stop: raise CheckError at the first finding; else go on, and read them all from the report.
    tolerance: also a finding: a result that is farther than this from the float64 computation since the block began.

    Yields a ``Report``: ``print(report)`` shows by module the largest values, the headroom left and the errors;
    ``report.findings`` and ``report.first`` say what went wrong. A finding is either an *overflow*, where the exact
    result (or a sum on the way) leaves the range that its fraction bits allow, |x| < 2^(62 - bits), or something is
    compared beyond ``Session.compared_bits``, or an *error*, of one operation alone beyond its bound
    (encml/inspect/bounds.py has them).

    Needs all three parties in this process, and puts their shares together: no privacy. Raises UnsupportedOperation
    with real parties. Results, masks, rounds and bytes are what they would be without it, but that nothing is put off:
    an update of a parameter is looked at, and so worked out, at once. Several times slower. Values shared before the
    block count as exact, and so does the rounding of what is shared inside, and the derivatives of the few functions
    that are differentiated as a whole (cross-entropy, RMS norm, lengths of vectors).
    """
    places = Places(model)
    report = Report(classes=places.classes)
    for parameter in () if model is None else (*model.parameters(), *model.buffers()):
        _require_all_parties(parameter)
    judge = Judge(places, report, stop, tolerance)
    operators = _Operators(judge)
    with places.followed(), operators, _Functions(judge, operators):
        yield report


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's hook for subclasses
    """Sees every aten operator below autograd, in backward too."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._judge = judge
        self.strangers: set[Hashable] = set()
        """Memories that came into operators without coming out of one: they were made in another way."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        secrets = [x for x in tree_leaves((args, kwargs)) if isinstance(x, SharedTensor)]
        for x in secrets:
            _require_all_parties(x)
            x.session.catch_up()
        if secrets and func not in SharedTensor.handlers:
            with self:  # composite operators arrive whole where autograd is off altogether: look at their parts
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if not secrets or func not in SharedTensor.handlers or func in _UNDEFINED:
            return func(*args, **kwargs)
        self.strangers |= {memory_of(x) for x in secrets if x not in self._judge.shadows}
        return self._compared(func, (args, kwargs), secrets)

    def _compared(self, func: Any, arguments: tuple[Any, Any], secrets: list[SharedTensor]) -> Any:
        judge = self._judge
        memories = {memory_of(x) for x in secrets}
        written = {id(x): x for x in _written(func, *arguments) if isinstance(x, SharedTensor)}
        values = Opened(secrets, judge.shadows)
        shadows = {id(x): judge.shadows.of(x).clone() for x in secrets}
        result = func(*arguments[0], **arguments[1])
        secrets[0].session.catch_up()
        new = _new_secrets(result, memories)
        new = {place: x for place, x in new.items() if id(x) not in written}
        if not new and not written:
            return result
        bounds = Bounds(func, arguments, values, secrets[0].session)
        judge.judge_rounding(bounds, values.settle(written))
        exact = Plain(func, arguments, values.of)
        ideal = Plain(func, arguments, lambda x: shadows[id(x)])
        for x in written.values():
            judge.judge(bounds, x, exact.copy_of(x), ideal.copy_of(x), writes=True)
        for place, x in new.items():
            judge.judge(bounds, x, exact.leaf(place), ideal.leaf(place))
        return result


class _Functions(TorchFunctionMode):
    """Sees the functions that are caught above autograd, for those that do not end in aten operators."""

    def __init__(self, judge: Judge, operators: _Operators) -> None:
        super().__init__()
        self._judge, self._operators = judge, operators

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        own = SharedTensor.functions.get(func)
        if own is None or not torch._C._is_torch_function_enabled():  # off: our version asks for PyTorch's own
            return func(*args, **kwargs)
        secrets = [x for x in tree_leaves((args, kwargs)) if isinstance(x, SharedTensor)]
        if not secrets:
            return func(*args, **kwargs)
        for x in secrets:
            _require_all_parties(x)
            x.session.catch_up()
        judge, operators = self._judge, self._operators
        memories = {memory_of(x) for x in secrets}
        values = Opened(secrets, judge.shadows)
        shadows = {id(x): judge.shadows.of(x).clone() for x in secrets}
        strangers = operators.strangers
        operators.strangers = set()
        with self:
            result = own(*args, **kwargs)
        unseen, operators.strangers = operators.strangers, strangers
        new = {place: x for place, x in _new_secrets(result, memories).items() if unseen or x not in judge.shadows}
        if new:
            values.settle(())
            bounds = Bounds(func, (args, kwargs), values, secrets[0].session)
            exact = Plain(func, (args, kwargs), values.of)
            ideal = Plain(func, (args, kwargs), lambda x: shadows[id(x)])
            for place, x in new.items():
                judge.judge(bounds, x, exact.leaf(place), ideal.leaf(place))
        return result


def _new_secrets(result: Any, memories: set[Hashable]) -> dict[int, SharedTensor]:
    """Place among the results -> the secrets that are no views of those in ``memories``."""
    return {
        place: x
        for place, x in enumerate(tree_leaves(result))
        if isinstance(x, SharedTensor) and memory_of(x) not in memories
    }


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that the operator writes in place, by its schema; of lists, what is in them."""
    for place, argument in enumerate(func._schema.arguments):
        unsaid = argument.name in _WRITTEN_UNSAID.get(func, ())
        if unsaid or (argument.alias_info is not None and argument.alias_info.is_write):
            yield from tree_leaves(args[place] if place < len(args) else kwargs.get(argument.name))


def _require_all_parties(x: object) -> None:
    if isinstance(x, SharedTensor) and x.session.parties.here != PARTIES:
        raise UnsupportedOperation(
            "encml.check puts the shares of all three parties together, and so works in an in-process session alone; "
            "here the parties are real. Check the same program with encml.Session()"
        )
