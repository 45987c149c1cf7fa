"""Measuring an operator: its sample calls on secrets, values and gradients, against float64.

Which float arguments are secret: the first one; all of them; all but the first. What a result may be off by: a few
units of the last place, times the largest input (for gradients, twice), for errors of earlier steps are multiplied by
other inputs; a small part of the value; and what moving the inputs by one unit would change. A wrong formula misses
that by far.
"""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from encml.coverage.kinds import kind_of
from encml.coverage.results import Aspect, Operator, status_of
from encml.coverage.samples import Call, calls
from encml.errors import InvalidTensor, SecretError, UnsupportedOperation
from encml.mpc.session import Session
from encml.net.ledger import Cost
from encml.ring.fixed import DEFAULT_FRACTION_BITS, bound
from encml.tensor import SharedTensor, reveal, share
from encml.tensor.secret import settle_all
from encml.tensor.shared import secret

F = DEFAULT_FRACTION_BITS
ULP = math.ldexp(1.0, -F)
REFUSALS = (UnsupportedOperation, InvalidTensor, SecretError)

ULPS, GRADIENT_ULPS, RELATIVE, CARRIED = 8.0, 32.0, 2.0**-9, 16.0
"""A result may be off by ULPS units times the largest input, a gradient by GRADIENT_ULPS times its square; both by
RELATIVE of the value, and by CARRIED times what one unit in the inputs changes."""
_SECONDS = 20.0
"""No further call of an operator is begun after this time."""
_RANGE = bound(F) / 64
"""Elements whose exact value is beyond this are not compared: they, or what they are made of, do not fit."""


@dataclass(slots=True)
class _Tally:
    """The outcomes of one kind of calls so far."""

    right: int = 0
    refused: int = 0
    wrong: int = 0
    defects: int = 0
    ulps: float = 0.0
    relative: float = 0.0
    largest: tuple[int, ...] = ()
    rounds: int = 0
    bytes: float = 0.0
    messages: dict[str, str] = field(default_factory=dict)

    def cost(self, secrets: int, elements: int, inputs: int, spent: Cost) -> None:
        """What a call cost; that with the most secret arguments, elements of the result and of the inputs counts."""
        if (secrets, elements, inputs) > self.largest:
            self.largest = secrets, elements, inputs
            self.rounds, self.bytes = spent.rounds, spent.bytes_per_party / max(1, elements)

    def compared(self, found: Sequence[Any], expected: Sequence[Any], allowed: Sequence[Tensor] | None) -> bool:
        """Whether what was found is right. allowed: how far each element may be off; None: any value will do."""
        problem = ""
        limits = [None] * len(found) if allowed is None else allowed
        for a, b, limit in zip(found, expected, limits, strict=True):
            problem = problem or self._compare(a, b, limit)
        if problem:
            self.wrong += 1
            self.messages.setdefault("wrong", problem)
        else:
            self.right += 1
        return not problem

    def _compare(self, found: Any, expected: Any, allowed: Tensor | None) -> str:
        if not isinstance(expected, Tensor):
            return "" if found == expected else f"found {found!r}, expected {expected!r}"
        if not isinstance(found, Tensor):
            return f"found a {type(found).__name__}, expected a tensor"
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return (
                f"found shape {tuple(found.shape)} and {found.dtype}, expected {tuple(expected.shape)} and "
                f"{expected.dtype}"
            )
        if allowed is None or expected.dtype.is_complex or not expected.numel():
            return ""
        a, b = found.detach().double(), expected.detach().double()
        counted = b.isfinite() & (b.abs() < _RANGE)
        error = torch.where(counted, (a - b).abs(), 0.0)
        if bool((error > allowed).any()) or not bool(a[counted].isfinite().all()):
            worst = int(torch.where(error > allowed, error, -1.0).argmax())
            return f"found {float(a.flatten()[worst]):.6g}, expected {float(b.flatten()[worst]):.6g}"
        small = b.abs() < 0.125
        self.ulps = max(self.ulps, _worst(error[small]) / ULP)
        self.relative = max(self.relative, _worst((error / b.abs())[~small & counted]))
        return ""

    def raised(self, error: Exception) -> None:
        if isinstance(error, REFUSALS):
            self.refused += 1
            self.messages.setdefault("refused", str(error))
        else:
            self.defects += 1
            self.messages.setdefault("defect", f"{type(error).__name__}: {str(error).splitlines()[0]}"[:300])

    def aspect(self) -> Aspect:
        return Aspect(
            status=status_of(self.right, self.refused, self.wrong, self.defects),
            right=self.right,
            refused=self.refused,
            failed=self.wrong + self.defects,
            ulps=float(f"{self.ulps:.2g}"),
            relative=float(f"{self.relative:.2g}"),
            rounds=self.rounds,
            bytes=round(self.bytes, 1),
            message=next((self.messages[k] for k in ("defect", "wrong", "refused") if k in self.messages), ""),
        )


def measure(op: Any, at_most: int = 12) -> Operator:
    """All that the table says about one operator of the database, from up to ``at_most`` of its sample calls."""
    value, gradient, in_place = _Tally(), _Tally(), _Tally()
    start, drawn = time.monotonic(), False
    with _quiet():
        for number, call in enumerate(calls(op, F, at_most)):
            draws = _is_random(op, call)
            drawn = drawn or draws
            for hidden in _variants(call):
                if time.monotonic() - start > _SECONDS:
                    break
                _run(op, call, hidden, value, gradient, draws)
                if number < at_most // 2 and hidden[0] == _floats(call)[0]:
                    _run_in_place(op, call, hidden, in_place, draws)
    return Operator(
        name=op.full_name,
        kind=kind_of(op),
        random=drawn,
        value=value.aspect(),
        gradient=gradient.aspect(),
        in_place=in_place.aspect(),
    )


def _is_random(op: Any, call: Call) -> bool:
    """Whether it draws random numbers, or what memory happened to hold is a result."""
    if op.full_name.startswith(("empty", "new_empty", "resize")):
        return True
    watch = _Draws()  # type: ignore[no-untyped-call]
    try:
        with watch:
            _apply(op, _copy(call, ()))
    except Exception:  # a call that PyTorch refuses
        return False
    return watch.drawn


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whether an operator inside moved the generator of random numbers on; the database puts it back where it was."""

    drawn = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))
        self.drawn = self.drawn or not torch.equal(torch.get_rng_state(), before)
        return result


def _floats(call: Call) -> list[int]:
    return [i for i, leaf in enumerate(call.leaves()) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _variants(call: Call) -> list[list[int]]:
    """Which leaves are secret: the first float one, all of them, all but the first."""
    places = _floats(call)
    if len(places) < 2:
        return [places] if places else []
    return [places[:1], places, places[1:]]


def _run(op: Any, call: Call, hidden: Sequence[int], value: _Tally, gradient: _Tally, drawn: bool) -> None:
    """One call on secrets and in the clear; a call that PyTorch itself refuses is not counted."""
    plain = _copy(call, hidden if op.supports_autograd else ())
    try:
        expected = _results(_apply(op, plain))
    except Exception:  # whatever PyTorch says about arguments that were moved out of its domain
        return
    if any(isinstance(y, Tensor) and (y.is_complex() or y.layout != torch.strided) for y in expected):
        return
    with Session(seed=7) as session:
        shared = _share(plain, hidden, session)
        before = session.ledger.total
        try:
            found = _results(_apply(op, shared))
            _settle(found)
            spent = session.ledger.total - before
            shown = [_shown(y) for y in found]
        except Exception as error:
            value.raised(error)
            return
        if len(shown) != len(expected):
            value.raised(RuntimeError(f"{len(shown)} results, expected {len(expected)}"))
            return
        allowed = None if drawn else _allowed(lambda moved: _results(_apply(op, moved)), plain, expected)
        if not value.compared(shown, expected, allowed):
            return
        value.cost(len(hidden), _elements(expected), _elements(plain.leaves()), spent)
        if any(isinstance(y, Tensor) and y.requires_grad for y in expected):
            _run_backward(op, plain, shared, expected, found, gradient, drawn)


def _run_backward(
    op: Any, plain: Call, shared: Call, expected: Sequence[Any], found: Sequence[Any], gradient: _Tally, drawn: bool
) -> None:
    places = [i for i, leaf in enumerate(plain.leaves()) if isinstance(leaf, Tensor) and leaf.requires_grad]
    try:
        want = _plain_gradients(expected, [plain.leaves()[i] for i in places])
    except Exception:  # PyTorch has no derivative for this call
        return
    ends = _ends(found)
    upstream = [share(g, session=y.session) if isinstance(y, SharedTensor) else g for y, g in ends]
    session = next(x.session for x in shared.leaves() if isinstance(x, SharedTensor))
    before = session.ledger.total
    try:
        got = _gradients([y for y, _ in ends], [shared.leaves()[i] for i in places], upstream)
        _settle(got)
        spent = session.ledger.total - before
        shown = [_shown(y) for y in got]
    except Exception as error:
        gradient.raised(error)
        return

    def again(moved: Call) -> list[Any]:
        return _plain_gradients(_results(_apply(op, moved)), [moved.leaves()[i] for i in places])

    missing = [(a is None) != (b is None) for a, b in zip(shown, want, strict=True)]
    if any(missing):
        gradient.raised(RuntimeError("a gradient is missing, or there is one too many"))
        return
    if gradient.compared(shown, want, None if drawn else _allowed(again, plain, want, gradients=True)):
        gradient.cost(len(places), _elements(want), _elements(plain.leaves()), spent)


def _run_in_place(op: Any, call: Call, hidden: Sequence[int], tally: _Tally, drawn: bool) -> None:
    """The in-place form of the operator, on a secret that is written over."""
    write = op.get_inplace()
    if write is None:
        return
    plain = _copy(call, ())
    original = _copy(call, ())
    try:
        expected = _results(write(*plain.args, **plain.kwargs))
    except Exception:  # this call has no in-place form
        return
    with Session(seed=7) as session:
        shared = _share(original, hidden, session)
        try:
            found = _results(write(*shared.args, **shared.kwargs))
            _settle(found)
            shown = [_shown(y) for y in (*found, shared.args[0])]
        except Exception as error:
            tally.raised(error)
            return
    expected = [*expected, *expected[:1]]

    def again(moved: Call) -> list[Any]:
        results = _results(write(*moved.args, **moved.kwargs))
        return [*results, *results[:1]]

    tally.compared(shown, expected, None if drawn else _allowed(again, original, expected))


def _apply(op: Any, call: Call) -> Any:
    return op(*call.args, **call.kwargs)


def _results(value: Any) -> list[Any]:
    return list(pytree.tree_leaves(value))


def _copy(call: Call, wanting: Sequence[int]) -> Call:
    """Fresh tensors; those of ``wanting`` require grad if the sample's do."""

    def fresh(i: int, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        copy = leaf.detach().clone(memory_format=torch.preserve_format)
        return copy.requires_grad_(leaf.requires_grad and i in wanting)

    return call.map(fresh)


def _share(call: Call, hidden: Sequence[int], session: Session) -> Call:
    return call.map(
        lambda i, leaf: (
            share(leaf.detach(), session=session).requires_grad_(leaf.requires_grad) if i in hidden else leaf
        )
    )


def _settle(values: Sequence[Any]) -> None:
    settle_all(*(secret(x) for x in values if isinstance(x, SharedTensor)))


def _shown(value: Any) -> Any:
    return reveal(value) if isinstance(value, SharedTensor) else value


def _ends(outputs: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """The outputs that have a gradient, each with the upstream gradient it gets: the same in every run, on the grid."""
    ends = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
    generator = torch.Generator().manual_seed(5)
    return [(y, torch.randint(-(2**F), 2**F, y.shape, generator=generator).to(y.dtype) * ULP) for y in ends]


def _plain_gradients(outputs: Sequence[Any], inputs: Sequence[Tensor]) -> list[Any]:
    ends = _ends(outputs)
    return _gradients([y for y, _ in ends], inputs, [g for _, g in ends])


def _gradients(ends: Sequence[Tensor], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Any]:
    return list(torch.autograd.grad(ends, inputs, upstream, allow_unused=True))


def _allowed(
    f: Callable[[Call], list[Any]], call: Call, expected: Sequence[Any], *, gradients: bool = False
) -> list[Tensor]:
    """How far each element of each result may be off."""
    carried = [
        torch.zeros(y.shape, dtype=torch.float64) if isinstance(y, Tensor) else torch.zeros(()) for y in expected
    ]
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):

        def moved(_: int, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf.clone() if isinstance(leaf, Tensor) else leaf
            signs = torch.randint(0, 2, leaf.shape, generator=generator).to(leaf.dtype) * 2 - 1
            return (leaf.detach() + signs * ULP).requires_grad_(leaf.requires_grad)

        try:
            results = f(call.map(moved))
        except Exception:  # one unit further is outside PyTorch's domain
            continue
        for total, y, z in zip(carried, expected, results, strict=True):
            if isinstance(y, Tensor) and y.is_floating_point() and isinstance(z, Tensor) and y.shape == z.shape:
                total.copy_(torch.maximum(total, (y - z).detach().double().abs().nan_to_num(0, 0, 0)))
    largest = max([1.0, *(float(x.detach().abs().max()) for x in call.leaves() if _is_number(x))])
    ulps = GRADIENT_ULPS * largest**2 if gradients else ULPS * largest
    return [
        ulps * ULP + RELATIVE * y.detach().double().abs() + CARRIED * total
        if isinstance(y, Tensor) and y.is_floating_point()
        else torch.zeros(())
        for y, total in zip(expected, carried, strict=True)
    ]


def _is_number(leaf: Any) -> bool:
    dense = isinstance(leaf, Tensor) and leaf.layout == torch.strided
    return dense and leaf.is_floating_point() and leaf.numel() > 0


def _worst(errors: Tensor) -> float:
    return float(errors.max()) if errors.numel() else 0.0


def _elements(values: Sequence[Any]) -> int:
    return sum(y.numel() for y in values if isinstance(y, Tensor))


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's warnings about its own samples are not ours; random numbers outside go on as they were."""
    state = random.getstate()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield
    random.setstate(state)
