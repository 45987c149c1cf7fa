"""Where the batch is in the values of a graph, for every batch size B at once.

One dimension of every tensor, its lane, holds the batch: what is at (o * B + b) * inner + j of it depends on example b
alone.
All other sizes are the same for every B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from encml.serving.graph import INPUT, Argument, Graph, Node, ParameterRef, Value


@dataclass(frozen=True, slots=True)
class Lane:
    """Where the batch is: a dimension of size outer * B * inner."""

    axis: int
    outer: int = 1
    inner: int = 1

    def at(self, axis: int) -> Lane:
        """The same elsewhere."""
        return Lane(axis, self.outer, self.inner)


@dataclass(frozen=True, slots=True)
class Count:
    """A number: ``times``, or ``times`` B."""

    times: int
    batches: bool = False


class Proof:
    """What is known of the values so far."""

    def __init__(self, graph: Graph) -> None:
        self.lanes = {INPUT: Lane(0)}
        self.counts: dict[str, Count] = {}
        self._shapes = graph.batch_of_three
        self.parameters = {parameter.name: parameter.shape for parameter in graph.parameters}

    def rank(self, name: str) -> int:
        """Dimensions of a value."""
        return len(self._shapes[name])

    def sizes(self, name: str) -> list[Count]:
        """The shape of a value for every B."""
        lane = self.lanes[name]
        sizes = [Count(size) for size in self._shapes[name]]
        sizes[lane.axis] = Count(lane.outer * lane.inner, True)
        return sizes

    def alone(self, node: Node) -> tuple[Lane, int] | None:
        """Lane and rank of the first argument, where everything else that the node takes are parameters."""
        source = node.args[0] if node.args else None
        if not isinstance(source, Value) or sum(isinstance(r, Value) for r in node.references) != 1:
            return None
        return self.lanes[source.value], self.rank(source.value)

    def given(self, argument: Argument) -> Count | None:
        """What number an argument is."""
        if isinstance(argument, Value):
            return self.counts.get(argument.value)
        return Count(argument) if type(argument) is int else None

    def meeting(self, node: Node, operands: Sequence[Argument], least: int = 1) -> Lane | None:
        """The lane of operands that are broadcast, its axis counted from the end and at least ``least`` from there.

        None if the node takes anything else than these operands.
        """
        if sum(isinstance(operand, Value | ParameterRef) for operand in operands) != len(list(node.references)):
            return None
        lanes: set[Lane] = set()
        shapes: list[tuple[int, ...]] = []
        for operand in operands:
            if isinstance(operand, Value):
                lane = self.lanes[operand.value]
                lanes.add(lane.at(lane.axis - self.rank(operand.value)))
            elif isinstance(operand, ParameterRef):
                shapes.append(self.parameters[operand.parameter])
        if len(lanes) != 1:
            return None
        (lane,) = lanes
        if -lane.axis < least or any(len(s) >= -lane.axis and s[lane.axis] != 1 for s in shapes):
            return None
        return lane

    def count(self, node: Node) -> Count | None:
        """What number a node computes; None if it is not a constant, or a constant times B."""
        if node.op == "aten.sym_size.int":
            source, dim = (*node.args, None, None)[:2]
            if not isinstance(source, Value) or type(dim) is not int or source.value not in self.lanes:
                return None
            return self.sizes(source.value)[dim]
        if node.op != "number.mul" or len(node.args) != 2:
            return None
        a, b = (self.given(argument) for argument in node.args)
        if a is None or b is None or (a.batches and b.batches):
            return None
        return Count(a.times * b.times, a.batches or b.batches)
