"""The ledger: rounds, bytes and seconds, by operation. Numbers are kept, not remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

_PARTIES = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost: rounds; payload bytes sent by each party (frame headers excluded); seconds."""

    rounds: int = 0
    sent: tuple[int, int, int] = (0, 0, 0)
    seconds: float = 0.0
    calls: int = 0

    @property
    def bytes(self) -> int:
        """Payload bytes sent by all parties together."""
        return sum(self.sent)

    @property
    def bytes_per_party(self) -> float:
        """Payload bytes sent, averaged over the three parties."""
        return self.bytes / _PARTIES

    def __add__(self, other: Cost) -> Cost:
        a, b = self.sent, other.sent
        return Cost(
            self.rounds + other.rounds,
            (a[0] + b[0], a[1] + b[1], a[2] + b[2]),
            self.seconds + other.seconds,
            self.calls + other.calls,
        )

    def __sub__(self, other: Cost) -> Cost:
        a, b = self.sent, other.sent
        return Cost(
            self.rounds - other.rounds,
            (a[0] - b[0], a[1] - b[1], a[2] - b[2]),
            self.seconds - other.seconds,
            self.calls - other.calls,
        )


@dataclass(slots=True)
class Ledger:
    """Costs of one session by the outermost named operation.

    In a party's own process only that party's ``sent`` entry is known; the others stay 0.
    """

    costs: dict[str, Cost] = field(default_factory=dict)
    rounds: int = 0
    """All rounds so far, as in ``total``."""
    listeners: list[Callable[[str, Cost], None]] = field(default_factory=list)
    """Told of whatever is booked, at the time: what is booked under, and the cost."""
    _current: str | None = None

    @property
    def total(self) -> Cost:
        """The sum over all operations."""
        total = Cost()
        for cost in self.costs.values():
            total = total + cost
        return total

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Book what happens inside under ``name``, unless an outer operation already books it."""
        if self._current is not None:
            yield
            return
        self._current = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self._current = None
            self._book(name, Cost(seconds=time.perf_counter() - start, calls=1))

    def round(self, operation: str, sent: Mapping[int, int]) -> None:
        """Book one round in which party ``rank`` sent ``sent[rank]`` payload bytes."""
        self.rounds += 1
        self._book(self._current or operation, Cost(1, (sent.get(0, 0), sent.get(1, 0), sent.get(2, 0))))

    @contextmanager
    def measure(self) -> Iterator[list[Cost]]:
        """Measure what happens inside: the yielded list receives one Cost when the block ends."""
        before, start = self.total, time.perf_counter()
        result: list[Cost] = []
        yield result
        spent = self.total - before
        result.append(Cost(spent.rounds, spent.sent, time.perf_counter() - start, spent.calls))

    def _book(self, name: str, cost: Cost) -> None:
        known = self.costs.get(name)
        self.costs[name] = cost if known is None else known + cost
        for listener in self.listeners:
            listener(name, cost)
