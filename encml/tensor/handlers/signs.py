"""Which elements are less than something: the one place where comparisons are asked for, so that none is made twice.

The bits stay with the secret that they are about (``Secret.keep``): those of x.relu() serve x > 0, x.abs(), and every
backward that would ask again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from encml.mpc import comparison
from encml.mpc.comparison import SecretBits
from encml.mpc.flags import packed, unpacked
from encml.mpc.multiplication import product
from encml.mpc.pending import negative_rows, select_rows
from encml.mpc.session import Session
from encml.ring.layout import from_order, memory_order, to_order
from encml.tensor.handlers.arithmetic import add_secrets
from encml.tensor.public import Number, Operand, term
from encml.tensor.secret import Secret, broadcast, settle_all

AT_ONCE = 1 << 11
"""Up to so many elements a product is compared as it is, at all its fraction bits, while it is settled: 3 rounds less
for 11 B more a party and element. As many bytes as the rounds are worth; see ``ordering.BYTES_A_ROUND``."""

Side = Secret | Tensor | Number
"""One side of a comparison, plain tensors and numbers being public; one of the two is a Secret."""


@dataclass(frozen=True, slots=True, repr=False)
class Mask:
    """A secret bit for every element of a tensor. ``order``: the tensor's dimensions as the bits lie in memory."""

    session: Session
    bits: SecretBits
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.bits.shape[self.order.index(d)] for d in range(len(self.order)))

    def __invert__(self) -> Mask:
        """NOT of every bit. No communication."""
        return replace(self, bits=comparison.invert(self.session.parties, self.bits))

    def __xor__(self, other: Mask) -> Mask:
        """XOR of two masks of the same shape. No communication."""
        return replace(self, bits=SecretBits(self.bits.plane ^ other.laid_out(self.order).plane, self.bits.shape))

    def laid_out(self, order: tuple[int, ...]) -> SecretBits:
        """The bits with the tensor's dimensions in another order."""
        if order == self.order:
            return self.bits
        return packed(to_order(from_order(unpacked(self.bits), self.order), order))

    def arithmetic(self, operation: str = "compare") -> Secret:
        """The bits as numbers 0 and 1. 2 rounds, 8 B a party and element."""
        return arithmetic_of([self], operation)[0]


def arithmetic_of(masks: Sequence[Mask], operation: str = "compare") -> list[Secret]:
    """``Mask.arithmetic`` of several masks of the same shape, in one batch."""
    first = masks[0]
    payload = comparison.to_arithmetic(first.session.parties, _stacked(masks), operation)
    return [Secret(first.session, 0, payload=from_order(payload[:, i], first.order)) for i in range(len(masks))]


def chosen_last(mask: Mask, value: Secret, operation: str) -> Secret:
    """bit * x of a secret that is probably not needed again, as a gradient on its way back.

    A product that is still to be rounded is so in the same 3 rounds, 19.4 B a party and element; it stays as it is.
    """
    if not (value.pending and value.excess > 0 and tuple(value.shape) == mask.shape):
        return chosen((mask, value), operation=operation)
    bits, shift, parties = mask.laid_out(order := memory_order(value.terms)), value.excess, mask.session.parties
    payload = select_rows(parties, bits, to_order(value.terms, order), shift, operation)
    return Secret(mask.session, value.fraction_bits - shift, payload=from_order(payload, order))


def chosen(*terms: tuple[Mask, Secret], operation: str) -> Secret:
    """The sum of bit * x over pairs of masks, of one shape, and secrets that expand to it.

    2 rounds; 5.3 B a party and element for every pair and for the sum. Pending secrets are settled first. Secrets of
    more dimensions, as a whole batch of gradients for one mask, are multiplied by the bits as numbers instead: pending.
    """
    first = terms[0][0]
    settle_all(*(value for _, value in terms if value.pending))
    fraction_bits = max(value.fraction_bits for _, value in terms)
    if any(len(value.shape) > len(first.shape) for _, value in terms):
        factors = arithmetic_of([mask for mask, _ in terms], operation)
        products = (
            product(first.session.parties, torch.mul, *broadcast(factor.terms, value.at_bits(fraction_bits)))
            for factor, (_, value) in zip(factors, terms, strict=True)
        )
        return Secret(first.session, fraction_bits, rows=torch.stack(list(products)).sum(0))
    payloads = [to_order(expanded(value.at_bits(fraction_bits), first.shape), first.order) for _, value in terms]
    together = payloads[0][:, None] if len(terms) == 1 else torch.stack(payloads, 1)
    bits = _stacked([mask for mask, _ in terms])
    summed = comparison.select(first.session.parties, bits, together, operation, [len(terms)])
    return Secret(first.session, fraction_bits, payload=from_order(summed[:, 0], first.order))


def below(*questions: tuple[Side, Side], operation: str = "compare") -> list[Mask]:
    """For each (left, right) the mask [left < right], broadcast; what is not known already, in one batch.

    8 rounds and, in 48 bits, 16.7 B a party and element and question; with a declared range of 32 bits 7 rounds and
    10.8 B; nothing where the bits were kept. Numbers are rounded as sharing rounds, so that share(x) == x. A pending
    product is compared in 8 rounds at 28 B; it is settled in the same rounds, if it is compared with something public,
    and before, which makes 11 rounds and 25.4 B, if it has more than AT_ONCE elements. A difference never is.
    """
    asked = [_Question(left, right) for left, right in questions]
    answers = [question.recall() for question in asked]
    missing = [question for question, answer in zip(asked, answers, strict=True) if answer is None]
    if missing:
        beside: dict[object, Secret] = {}
        before: list[Secret] = []
        for question in missing:
            value = question.alone
            if value is not None and value.pending:
                if value.terms[0].numel() > AT_ONCE:
                    before.append(value)
                else:
                    beside[value.memory] = value
        settle_all(*before)
        for question in missing:
            question.find_difference()
        parties = missing[0].about.session.parties
        asking = [partial(question.ask, operation) for question in missing]
        found = iter(parties.together(*(value.settle for value in beside.values()), *asking))
        for _ in beside:
            next(found)
        answers = [next(found) if answer is None else answer for answer in answers]
    return [answer for answer in answers if answer is not None]


def differences(x: Side, y: Side) -> list[tuple[Side, Side]]:
    """The questions for ``below`` of which one is answered by yes where x and y differ.

    Both ways round; or one, if a side is known as the largest or smallest elements of the other.
    """
    for value, bound in ((x, y), (y, x)):
        if isinstance(value, Secret) and isinstance(bound, Secret):
            fact: Extreme | None = bound.fact_in_memory(EXTREME)
            if fact is not None and fact.bounds(value, bound):
                return [(value, bound) if fact.way > 0 else (bound, value)]
    return [(x, y), (y, x)]


EXTREME = "extreme"
"""The name of a fact about largest or smallest elements: the ``Extreme``."""


@dataclass(frozen=True, slots=True, repr=False)
class Extreme:
    """That a secret has the largest (way 1) or smallest (-1) elements of another, whose ``contents`` these are.

    ``kept``: its shape with the dimensions along which they were taken, of 1.
    """

    way: int
    about: object
    kept: tuple[int, ...]

    @classmethod
    def of(cls, value: Secret, way: int, kept: Sequence[int]) -> Extreme:
        """About a secret as it is now."""
        return cls(way, contents(value), tuple(kept))

    def bounds(self, value: Secret, bound: Secret) -> bool:
        """Whether ``bound``, as it is broadcast, has the extreme that belongs to each element of ``value``."""
        shape = tuple(bound.shape)
        fits = shape == self.kept or (shape == () and set(self.kept) <= {1})
        return fits and self.about is not None and self.about is contents(value)


def contents(value: Secret) -> object | None:
    """Stands for what a secret holds, until it is written over; None for a view."""
    if value.fact("contents") is None:
        value.keep("contents", object())
    known: object | None = value.fact("contents")
    return known


def below_number(number: float) -> str:
    """The name of the fact [x < number]: bits in the order of memory."""
    return f"below {number + 0.0}"


def above_number(number: float) -> str:
    """The name of the fact [x > number]: bits in the order of memory."""
    return f"above {number + 0.0}"


def expanded(payload: Tensor, shape: Sequence[int]) -> Tensor:
    """A payload (S, *shape that broadcasts) as a view (S, *shape)."""
    missing = len(shape) + 1 - payload.ndim
    return payload[(slice(None), *(None,) * missing)].expand(-1, *shape)


def laid_out(value: Secret, f: Callable[..., Tensor], *operands: Operand) -> Secret:
    """The secret with its dimensions in memory ordered as PyTorch's element-wise ``f`` of the operands orders them."""
    blank = [
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x
        for x in operands
    ]
    order = memory_order(f(*blank)[None])
    if order == memory_order(value.terms):
        return value
    return value.linear(lambda terms: from_order(to_order(terms, order).contiguous(), order))


class _Question:
    """Whether left < right, and under which name, about which secret, the answer is kept."""

    def __init__(self, left: Side, right: Side) -> None:
        self._sides = (left, right)
        self._difference: Secret | None = None
        self._other: Secret | None = None
        self._name: str | None = None
        if isinstance(left, Secret):
            self.about = left
            if isinstance(right, Secret):
                self._other = right
                settled = not (left.pending or right.pending)
                self._name = "below another" if settled and contents(right) is not None else None
            elif not isinstance(right, Tensor):
                self._name = below_number(_exact(right, left))
        else:
            assert isinstance(right, Secret)
            self.about = right
            if not isinstance(left, Tensor):
                self._name = above_number(_exact(left, right))

    @property
    def alone(self) -> Secret | None:
        """The secret that is compared with something public, so that its own sign is what the answer is about."""
        return None if all(isinstance(side, Secret) for side in self._sides) else self.about

    def find_difference(self) -> None:
        """Work out left - right, before what is compared is settled."""
        left, right = self._sides
        if self._sign_alone:
            own = self.about.terms
            self._difference = self.about.like(own if left is self.about else -own)
        else:
            session = self.about.session
            a, b = (s if isinstance(s, Secret) else Secret.of_public(session, s) for s in (left, right))
            self._difference = add_secrets(a, b, -1)

    @property
    def _sign_alone(self) -> bool:
        """Whether a secret is compared with the number 0."""
        return any(not isinstance(side, Secret | Tensor) and side == 0 for side in self._sides)

    def recall(self) -> Mask | None:
        """The answer, if it is known."""
        fact = None if self._name is None else self.about.fact(self._name)
        if fact is None:
            return None
        if self._other is not None:
            fact, other = fact
            if other is not contents(self._other):
                return None
        return Mask(self.about.session, fact, memory_order(self.about.terms))

    def ask(self, operation: str) -> Mask:
        """Compare, and keep the answer."""
        session, difference = self.about.session, self._difference
        assert difference is not None
        terms = difference.terms
        order = memory_order(terms)
        width = session.compared_bits(difference.fraction_bits, difference=not self._sign_alone)
        protocol = negative_rows if difference.pending else comparison.negative
        bits = protocol(session.parties, to_order(terms, order), width, operation)
        same = order == memory_order(self.about.terms) and terms.shape[1:] == self.about.terms.shape[1:]
        if self._name is not None and same:
            self.about.keep(self._name, bits if self._other is None else (bits, contents(self._other)))
        return Mask(self.about.session, bits, order)


def _exact(number: Number, value: Secret) -> float:
    integer, bits = term(number, value.session.fraction_bits)
    return math.ldexp(int(integer), -bits)


def _stacked(masks: Sequence[Mask]) -> SecretBits:
    """The bits of masks of one shape along a new first dimension, in the order of the first one."""
    order = masks[0].order
    if len(masks) == 1:
        return SecretBits(masks[0].bits.plane, (1, *masks[0].bits.shape))
    return packed(torch.stack([unpacked(mask.laid_out(order)) for mask in masks], 1))
