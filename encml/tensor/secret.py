"""What a SharedTensor carries: shares, how many fraction bits they have, and whether a product is still pending.

Rescale late. A product of two tensors at f fraction bits has 2f, and an average over 2^k values k more. Instead of
truncating at once, a secret keeps its count of fraction bits and, after a product, its unreshared additive rows; linear
operations work on either. It is *settled* (replicated shares at f fraction bits or fewer) when an operation needs it:
once, late, and on fewer elements where pooling came first.

Put off. What an update of a parameter gives is not worked out before somebody looks, and then together with all other
updates of the session (``put_off``, ``update_later``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from encml.errors import ProtocolError
from encml.mpc.later import Job
from encml.mpc.session import Session
from encml.mpc.sharing import public
from encml.mpc.truncation import truncate, truncate_rows
from encml.ring.layout import in_memory_order, memory_order
from encml.tensor.public import Operand, term

SLACK_BITS = 8
"""Fraction bits beyond 2f that averages may pile up before a secret is settled: the sums that they are made of must
stay below 2^(54 - 2f) then, 2^22 at f = 16. Everything else stays within 2f bits, where the whole range fits."""


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class _Cell:
    """The memory that a secret and its views share.

    ``facts``: what has been worked out about these contents (their signs, say), so that nothing is computed twice; gone
    when they are written over. ``maker``: the job that gives the contents, where that is put off: terms, fraction_bits
    and pending are not there until then, and asking for them has it done. ``reader``: the last job that needs the
    contents; ``watcher``: that needs the memory which they lie in now, whatever takes their place.
    """

    terms: Tensor
    fraction_bits: int
    pending: bool
    facts: dict[str, Any] = field(default_factory=dict)
    maker: Job | None = None
    reader: Job | None = None
    watcher: Job | None = None
    session: Session | None = None

    @property
    def made(self) -> bool:
        """Whether the contents are there."""
        return self.maker is None or self.maker.done

    def taken(self) -> _Cell:
        """Leave this without contents; a new cell has them."""
        contents = _Cell(self.terms, self.fraction_bits, self.pending)
        del self.terms, self.fraction_bits, self.pending
        return contents

    def fill(self, terms: Tensor, fraction_bits: int, pending: bool) -> None:
        """Set the contents that were put off."""
        self.terms, self.fraction_bits, self.pending = terms, fraction_bits, pending

    def __getattr__(self, name: str) -> Any:  # only where a slot is empty
        if name not in ("terms", "fraction_bits", "pending") or self.session is None:
            raise AttributeError(name)
        self.session.catch_up()
        if not self.made:
            raise ProtocolError("a value was asked for while it is being worked out in the same rounds")
        return getattr(self, name)


class Secret:
    """Secret integers / 2^fraction_bits: a payload (S, *shape), or pending rows (P, *shape).

    A view of a secret has the same cell of memory and says where in it to look, so settling or writing either is seen
    by both, and a view of a pending product is pending as well.
    """

    __slots__ = ("_cell", "_look", "_seen", "session")

    def __init__(
        self, session: Session, fraction_bits: int, *, payload: Tensor | None = None, rows: Tensor | None = None
    ) -> None:
        terms = payload if payload is not None else rows
        if terms is None:
            raise TypeError("a Secret is made of a payload or of rows")
        self.session = session
        self._cell = _Cell(terms, fraction_bits, pending=payload is None)
        self._look: Callable[[Tensor], Tensor] | None = None
        self._seen = (terms, terms)

    def __repr__(self) -> str:
        if not self.made:
            return "Secret(put off)"
        state = "pending" if self.pending else "replicated"
        return f"Secret(shape={tuple(self.shape)}, fraction_bits={self.fraction_bits}, {state})"

    @classmethod
    def of_public(cls, session: Session, values: Operand) -> Secret:
        """Public values as a secret term, see ``encml.tensor.public.term``. No communication."""
        integers, bits = term(values, session.fraction_bits)
        return cls(session, bits, payload=public(session.parties, integers))

    @property
    def fraction_bits(self) -> int:
        """How many of the integers' bits are a fraction."""
        return self._cell.fraction_bits

    @property
    def pending(self) -> bool:
        """Whether a product has not been reshared yet."""
        return self._cell.pending

    def fact(self, name: str) -> Any:
        """What ``keep`` remembered under ``name`` about these contents; None if nothing, or if this is a view."""
        return self._cell.facts.get(name) if self._look is None else None

    def fact_in_memory(self, name: str) -> Any:
        """As ``fact``, also of a view: what was remembered about the whole memory that it sees some or all of."""
        return self.fact(name) if self._look is None else self._cell.facts.get(name)

    def keep(self, name: str, fact: Any) -> Secret:
        """Remember something secret or public about the contents until they are written over; returns itself.

        Bits and payloads are kept in the order of memory of ``terms``. Nothing is kept about a view.
        """
        if self._look is None:
            self._cell.facts[name] = fact
        return self

    @property
    def terms(self) -> Tensor:
        """Whatever the secret is made of, (S or P, *shape): for operations that are linear in each term."""
        whole = self._cell.terms
        if self._seen[0] is not whole:
            self._seen = (whole, whole if self._look is None else self._look(whole))
        return self._seen[1]

    @property
    def made(self) -> bool:
        """Whether there is a value; where that is put off, or for a ``Deferred``, it is worked out when asked for."""
        return self._cell.made

    @property
    def whole_memory(self) -> bool:
        """Whether this is no view of a part of something, or in another order."""
        return self._look is None

    @property
    def memory(self) -> Hashable:
        """Stands for the memory that this and its views share: equal for these alone; weakly referable."""
        return self._cell

    @property
    def whole(self) -> Tensor:
        """The terms of all that memory, (S or P, *its shape), whatever part of it this secret sees."""
        return self._cell.terms

    def seen_in(self, twin: Tensor) -> Tensor:
        """What this secret sees of its memory, seen in ``twin`` (n, *shape of the memory): a true view of it."""
        return twin if self._look is None else self._look(twin)

    @property
    def shape(self) -> torch.Size:
        """The logical shape."""
        return self.terms.shape[1:]

    def view(self, look: Callable[[Tensor], Tensor]) -> Secret:
        """The part of this secret that ``look`` picks from its terms, as a true view that leaves the leading axis."""
        before = self._look
        result = Secret(self.session, self.fraction_bits, payload=look(self.terms))
        result._cell = self._cell
        result._look = look if before is None else lambda whole: look(before(whole))
        result._seen = (self._cell.terms, result._seen[1])
        return result

    def like(self, terms: Tensor, extra_bits: int = 0) -> Secret:
        """A new secret made of ``terms`` in the same form as this one's, with ``extra_bits`` more fraction bits."""
        bits = self.fraction_bits + extra_bits
        if self.pending:
            return Secret(self.session, bits, rows=terms)
        return Secret(self.session, bits, payload=terms)

    def linear(self, f: Callable[[Tensor], Tensor]) -> Secret:
        """f applied to the terms; f is linear over Z_2^64 and leaves the leading axis alone. No communication."""
        return self.like(f(self.terms))

    def settle(self) -> Secret:
        """Make this secret, and what it is a view of, a payload at f fraction bits or fewer, in place; returns itself.

        Free if it is one already. Pending rows: 3 rounds and 8.75 B a party and element with a truncation, else 1
        round and 8 B. A payload with too many fraction bits: 2 rounds and 6.1 B.
        """
        cell, parties, excess = self._cell, self.session.parties, self.excess
        if cell.pending and excess > 0:
            cell.terms = in_memory_order(lambda rows: truncate_rows(parties, rows, excess), cell.terms)
        elif cell.pending:
            cell.terms = in_memory_order(lambda rows: parties.reshare(rows, "multiply"), cell.terms)
        elif excess > 0:
            cell.terms = in_memory_order(lambda payload: truncate(parties, payload, excess), cell.terms)
        cell.pending = False
        cell.fraction_bits -= max(excess, 0)
        return self

    @property
    def excess(self) -> int:
        """How many fraction bits this has beyond the session's f; negative if fewer."""
        return self._cell.fraction_bits - self.session.fraction_bits

    @property
    def payload(self) -> Tensor:
        """The settled payload (S, *shape)."""
        return self.settle().terms

    def replicate(self) -> Tensor:
        """The payload (S, *shape) at whatever fraction bits, for operations to which the scale does not matter.

        Pending rows are settled, for a truncation costs little more than the resharing that they need anyway.
        """
        return self.payload if self.pending else self.terms

    def at_bits(self, fraction_bits: int) -> Tensor:
        """The terms scaled up, exactly and locally, to ``fraction_bits`` >= the present count."""
        shift = fraction_bits - self.fraction_bits
        return self.terms << shift if shift else self.terms

    def room(self, size: Sequence[int], stride: Sequence[int]) -> Tensor:
        """Memory for a payload (S, *size) in which every share has ``stride``; whatever was there before."""
        span = max(1, 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)))
        return self.terms.new_empty_strided((self.session.parties.shares_here, *size), (span, *stride))

    def overwrite(self, source: Secret) -> None:
        """Take the value of ``source``, settled and broadcast, in place: views and what this is a view of see it."""
        _wait_for(self.session, self._cell.reader)
        if self._look is not None:
            _wait_for(self.session, self._cell.watcher)
        payload, cell = source.payload, self._cell
        same = self._look is None and source._look is None and memory_order(self.terms) == memory_order(source.terms)
        cell.facts = dict(source._cell.facts) if same and self.shape == source.shape else {}
        if self._look is None:
            cell.terms, cell.pending = self.room(self.shape, self.terms.stride()[1:]), False
            cell.fraction_bits = source.fraction_bits
        elif source.fraction_bits > self.settle().fraction_bits:
            # Whole numbers make room for a fraction.
            cell.terms = cell.terms << (source.fraction_bits - cell.fraction_bits)
            cell.fraction_bits = source.fraction_bits
        shift = self.fraction_bits - source.fraction_bits
        self.terms.copy_(_pad(payload << shift if shift else payload, self.terms.ndim))

    def update_later(self, inputs: Sequence[Secret], f: Callable[..., Secret]) -> None:
        """``overwrite`` with f(what this holds now, *inputs as they are now), once somebody looks. Views see it.

        f may communicate, beside other updates; its result fits into this secret's shape. For secrets that are their
        ``whole_memory``, and not among the inputs.
        """
        _wait_for(self.session, self._cell.reader)
        cell, session = self._cell, self.session
        held: list[_Cell] = []
        given, after = _as_they_are(inputs)

        def do() -> None:
            if not held:
                held.append(cell.taken())
            before = _on(session, held[0])
            result = f(before, *given)
            payload = result.payload
            terms = before.room(before.shape, before.terms.stride()[1:])
            terms.copy_(_pad(payload, terms.ndim))
            cell.fill(terms, result.fraction_bits, False)

        maker = session.later.put_off(do, [cell.maker, *after])
        if cell.made:
            held.append(cell.taken())
        cell.maker, cell.session, cell.facts = maker, session, {}
        _mark(inputs, given, maker)


def put_off(session: Session, inputs: Sequence[Secret], make: Callable[..., Secret]) -> Secret:
    """make(*inputs as they are now), once somebody looks; it may communicate, beside other jobs."""
    cell = _Cell(_NOTHING, 0, False)
    cell.taken()
    given, after = _as_they_are(inputs)

    def do() -> None:
        made = make(*given)
        cell.fill(made.terms, made.fraction_bits, made.pending)

    cell.maker, cell.session = session.later.put_off(do, after), session
    _mark(inputs, given, cell.maker)
    return _on(session, cell)


def _as_they_are(inputs: Sequence[Secret]) -> tuple[list[Secret], list[Job | None]]:
    """The inputs for a job, and what must be done before it.

    Settled ones stay what they are, whatever is put into their place; the others are settled by the job where they are,
    and by two jobs one after the other.
    """
    given, after = [], []
    for value in inputs:
        cell = value._cell
        if value.made and not value.pending and value.excess <= 0:
            given.append(_on(value.session, _Cell(value.terms, value.fraction_bits, False)))
        else:
            given.append(value)
            after += [cell.maker, cell.reader]
    return given, after


def _mark(inputs: Sequence[Secret], given: Sequence[Secret], job: Job) -> None:
    """Tell the inputs' memory which job needs it."""
    for value, held in zip(inputs, given, strict=True):
        if held is value:
            value._cell.reader = job
        else:
            value._cell.watcher = job


def _wait_for(session: Session, job: Job | None) -> None:
    """Before something is written over, what was put off and needs it is done."""
    if job is not None and not job.done:
        session.catch_up()


def _on(session: Session, cell: _Cell) -> Secret:
    """A secret that is all that a cell holds."""
    result = Secret.__new__(Secret)
    result.session, result._cell, result._look = session, cell, None
    result._seen = (_NOTHING, _NOTHING)
    return result


_NOTHING = torch.empty(0)


class Deferred(Secret):
    """A secret that is worked out when it is first used: what most programs never look at costs them nothing."""

    __slots__ = ("_facts", "_made", "_make")

    def __init__(self, session: Session, make: Callable[[], Secret]) -> None:
        self.session = session
        self._make: Callable[[], Secret] = make
        self._made: _Cell | None = None
        self._facts: dict[str, Any] = {}
        self._look = None
        self._seen = (_NOTHING, _NOTHING)

    def __repr__(self) -> str:
        return super().__repr__() if self._made else "Deferred()"

    @property
    def made(self) -> bool:
        """See ``Secret.made``."""
        return self._made is not None and self._made.made

    @property
    def _cell(self) -> _Cell:  # type: ignore[override]  # a slot of the base
        if self._made is None:
            self._made = self._make()._cell
            self._made.facts.update(self._facts)
        return self._made

    def fact(self, name: str) -> Any:
        """See ``Secret.fact``; does not work the secret out."""
        return super().fact(name) if self._made else self._facts.get(name)

    def keep(self, name: str, fact: Any) -> Secret:
        """See ``Secret.keep``; does not work the secret out."""
        self._facts[name] = fact
        return super().keep(name, fact) if self._made else self


def fits(value: Secret, integers: Tensor, bits: int) -> bool:
    """Whether a product with public ``integers / 2^bits`` stays within the ring without being settled first.

    A division by 2^k makes no integer larger, so it may add up to SLACK_BITS beyond 2f.
    """
    limit = 2 * value.session.fraction_bits
    if integers.ndim == 0 and abs(int(integers)) <= 1:
        limit += SLACK_BITS
    return value.fraction_bits + bits <= limit


def headroom(value: Secret, integers: Tensor, bits: int) -> Secret:
    """``value``, settled first where a product with public ``integers / 2^bits`` might leave the ring; see ``fits``."""
    return value if fits(value, integers, bits) else value.settle()


def settle_all(*values: Secret) -> None:
    """Settle independent secrets in the same rounds, as if it were one."""
    cells = {id(value._cell): value for value in values if value.pending or value.excess > 0}
    if cells:
        parties = next(iter(cells.values())).session.parties
        parties.together(*(value.settle for value in cells.values()))


def room_for_products(left: Secret, right: Secret) -> None:
    """Settle the factors of a product of secrets as far as its fraction bits must stay within 2f + SLACK_BITS.

    What is pending is settled in the same rounds.
    """
    settle_all(*(value for value in (left, right) if value.pending))
    for value in sorted((left, right), key=lambda v: -v.fraction_bits):
        excess = left.fraction_bits + right.fraction_bits > 2 * value.session.fraction_bits + SLACK_BITS
        if excess and value.fraction_bits > value.session.fraction_bits:
            value.settle()


def align(left: Secret, right: Secret) -> tuple[Tensor, Tensor, int, bool]:
    """Terms of both at common fraction bits, broadcastable, in a common form: (left, right, bits, pending).

    No communication, unless one has so many fraction bits more than the other that it is settled first.
    """
    whole_range = 2 * left.session.fraction_bits
    limit = whole_range + SLACK_BITS if left.fraction_bits == right.fraction_bits else whole_range
    settle_all(*(value for value in (left, right) if value.fraction_bits > limit))
    bits = max(left.fraction_bits, right.fraction_bits)
    pending = left.pending or right.pending
    return (
        *broadcast(_in_form(left, bits, pending), _in_form(right, bits, pending)),
        bits,
        pending,
    )


def broadcast(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Give two tensors with a leading party or share axis equal numbers of dimensions behind it."""
    rank = max(left.ndim, right.ndim)
    return _pad(left, rank), _pad(right, rank)


def _pad(terms: Tensor, rank: int) -> Tensor:
    missing = rank - terms.ndim
    return terms.reshape(terms.shape[0], *(1,) * missing, *terms.shape[1:]) if missing else terms


def _in_form(secret: Secret, bits: int, pending: bool) -> Tensor:
    terms = secret.at_bits(bits)
    if pending and not secret.pending:
        # Replicated shares as additive rows: party i contributes x_i.
        return terms[: secret.session.parties.here]
    return terms
