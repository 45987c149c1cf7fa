"""What a computation costs, by module: rounds, bytes and seconds as a tree."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from encml.inspect.places import Place, Places
from encml.mpc.session import Session, current_session
from encml.net.ledger import Cost
from encml.net.transport import PARTIES
from encml.tensor.shared import SharedTensor

_WIDTH = 120


@dataclass(slots=True)
class ModuleCosts:
    """A module, or a part of the computation, and what stands below it."""

    name: str
    kind: str = ""
    """The module's class."""
    operations: dict[str, Cost] = field(default_factory=dict)
    """What it cost by itself, children aside, by operation."""
    children: dict[str, ModuleCosts] = field(default_factory=dict)

    @property
    def own(self) -> Cost:
        """What it cost by itself."""
        return sum(self.operations.values(), Cost())

    @property
    def total(self) -> Cost:
        """What it cost with all its children."""
        return sum((child.total for child in self.children.values()), self.own)

    def book(self, operation: str, cost: Cost) -> None:
        """Add to what ``operation`` cost here."""
        self.operations[operation] = self.operations.get(operation, Cost()) + cost


class Costs:
    """The tree of costs: ``forward`` and ``backward`` of the model, and what is ``outside`` of its modules."""

    def __init__(self, places: Places, session: Session) -> None:
        root = places.classes.get("", "")
        self._classes = places.classes
        self._local = session.parties.local
        self.forward = ModuleCosts("forward", root)
        self.backward = ModuleCosts("backward", root)
        self.outside = ModuleCosts("(outside)")
        self.seconds = 0.0
        """From the beginning of the block to its end, by the clock."""

    @property
    def total(self) -> Cost:
        """Everything; ``seconds`` are those spent in operations on secrets."""
        return self.forward.total + self.backward.total + self.outside.total

    def module(self, name: str, *, backward: bool = False) -> ModuleCosts:
        """The node of the module with this qualified name, "" for the model itself. Raises KeyError if it cost nothing.

        backward: in backward instead of forward.
        """
        node = self.backward if backward else self.forward
        for prefix in _prefixes(name):
            node = node.children[prefix]
        return node

    def table(self, *, depth: int | None = None, operations: bool = False) -> Table:
        """The tree for people. depth: levels of modules to show, default all; operations: also what each one did."""
        whole = self.total
        bytes_of = "bytes a party" if len(self._local) == PARTIES else f"bytes sent by party {self._local[0]}"
        table = Table(
            title=f"{whole.rounds:,} rounds, {_bytes_text(self._sent(whole))} {bytes_of.removeprefix('bytes ')}, "
            f"{self.seconds:.3g} s by the clock, {whole.seconds:.3g} s of them in operations on secrets",
            caption="A product is rounded when its result is first needed, and booked where that is: often one module "
            "later.",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("module", no_wrap=True)
        table.add_column("class", no_wrap=True)
        for heading in ("rounds", bytes_of, "seconds", "share"):
            table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
        for part in (self.forward, self.backward, self.outside):
            if part.operations or part.children:
                self._add(table, part, "", "", whole, depth, operations)
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_WIDTH).print(self.table())
        return text.getvalue().rstrip()

    def booked(self, place: Place, operation: str, cost: Cost) -> None:
        """Add what an operation cost at ``place``."""
        if place.module is None:
            node = self.backward if place.backward else self.outside
        else:
            node = self.backward if place.backward else self.forward
            for prefix in _prefixes(place.module):
                name = prefix.rpartition(".")[2]
                node = node.children.setdefault(prefix, ModuleCosts(name, self._classes[prefix]))
        node.book(operation, cost)

    def _sent(self, cost: Cost) -> float:
        return cost.bytes_per_party if len(self._local) == PARTIES else float(cost.sent[self._local[0]])

    def _add(
        self,
        table: Table,
        node: ModuleCosts,
        lead: str,
        indent: str,
        whole: Cost,
        depth: int | None,
        operations: bool,
    ) -> None:
        self._row(table, lead + node.name, node.kind, node.total, whole)
        below: list[ModuleCosts | tuple[str, Cost]] = []
        if operations:
            below += list(node.operations.items())
        if depth is None or depth > 0:
            below += node.children.values()
        for place, part in enumerate(below):
            last = place == len(below) - 1
            branch, beyond = indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")
            if isinstance(part, ModuleCosts):
                self._add(table, part, branch, beyond, whole, None if depth is None else depth - 1, operations)
            else:
                self._row(table, f"{branch}[italic]{part[0]}[/italic]", "", part[1], whole)

    def _row(self, table: Table, name: str, kind: str, cost: Cost, whole: Cost) -> None:
        share = f"{cost.seconds / whole.seconds:.0%}" if whole.seconds else ""
        table.add_row(name, kind, f"{cost.rounds:,}", _bytes_text(self._sent(cost)), f"{cost.seconds:.3f}", share)


@contextmanager
def profile(model: nn.Module | None = None, *, session: Session | None = None) -> Iterator[Costs]:
    """Book what happens inside the block to the modules of ``model``: rounds, bytes, seconds.

    session: whose costs; default: that of the model's SharedTensors, else the current one. With real parties the bytes
    are those that this party sent.

    Yields ``Costs``; ``print(costs)`` shows the tree, forward and backward apart. No communication, and nothing is
    revealed. What a module's products leave to be rounded later is booked where it is rounded; updates of parameters
    where the first of them is looked at, as "update", or at the end of the block.
    """
    places = Places(model)
    session = session or _session_of(model)
    session.catch_up()
    costs = Costs(places, session)

    def booked(operation: str, cost: Cost) -> None:
        costs.booked(places.here, operation, cost)

    start = time.perf_counter()
    session.ledger.listeners.append(booked)
    try:
        with places.followed():
            yield costs
        session.catch_up()
    finally:
        session.ledger.listeners.remove(booked)
        costs.seconds = time.perf_counter() - start


def _session_of(model: nn.Module | None) -> Session:
    for x in () if model is None else (*model.parameters(), *model.buffers()):
        if isinstance(x, SharedTensor):
            return x.session
    return current_session()


def _prefixes(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c"; nothing for the model itself."""
    parts = name.split(".") if name else []
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _bytes_text(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
