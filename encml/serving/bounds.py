"""How large what a model compares can become, for inputs from a declared range: worked out by the owner at export.

Interval arithmetic on the weights that the owner knows (Gowal et al. 2018): every value of the graph lies, element by
element, between two numbers, for all inputs from the range and whatever the rounding of fixed point does. A comparison
of values below 2^k then takes k + 1 bits beside the fraction instead of all, which saves bytes and rounds and is never
wrong for such inputs. What a rule is missing for has no bounds, and is compared in all bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encml.ring.fixed import decode, encode
from encml.serving.graph import COMPARING, INPUT, Argument, Graph, Node, ParameterRef, Value
from encml.serving.operations import NUMBERS, operation
from encml.serving.separable import separable

Range = tuple[float, float]

_WORD_BITS = 64
_WHOLE_BITS = 4
"""A declared range has at least so many bits beyond the fraction."""
_STEPS = 4
"""Bits are rounded up to multiples of this, so that they tell less about the weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """What a value lies between, for one example: float64 (1, *shape) each."""

    low: Tensor
    high: Tensor

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return float(torch.maximum(self.low.abs(), self.high.abs()).max()) if self.low.numel() else 0.0


Known = Box | int | None
Rule = Callable[["_Resolver", Node], Box]


def declare_comparisons(
    graph: Graph, parameters: Mapping[str, Tensor], input_range: Range, fraction_bits: int
) -> Graph:
    """The graph with its ``input_range``, and with the bits of every comparison for which bounds are found.

    parameters: the plain weights. A graph whose rows are not proven to stay apart has no bounds that hold for every
    batch: it comes back as it is.
    """
    if not separable(graph):
        return graph
    unit = 2.0**-fraction_bits
    low, high = (torch.full((1, *graph.input_shape), end, dtype=torch.float64) for end in input_range)
    known: dict[str, Known] = {INPUT: _widened(Box(low, high), unit)}
    rounded = {name: decode(encode(p, fraction_bits), fraction_bits, torch.float64) for name, p in parameters.items()}
    nodes = []
    for node in graph.nodes:
        resolver = _Resolver(known, rounded)
        known[node.name] = _bounds(resolver, node, unit)
        bits = _bits(resolver, node, fraction_bits)
        nodes.append(node if bits is None else node.model_copy(update={"comparison_bits": bits}))
    if all(node.comparison_bits is None for node in nodes):
        return graph
    return Graph(**{**dict(graph), "nodes": tuple(nodes), "input_range": input_range})


class _Resolver:
    """The arguments of nodes, at either end of what they lie between."""

    def __init__(self, known: Mapping[str, Known], parameters: Mapping[str, Tensor]) -> None:
        self._known = known
        self._parameters = parameters

    def at(self, argument: Argument, end: str) -> Any:
        """An argument with the ``low`` or ``high`` ends of what it refers to."""
        if isinstance(argument, tuple):
            return [self.at(item, end) for item in argument]
        if isinstance(argument, ParameterRef):
            return self._parameters[argument.parameter]
        if isinstance(argument, Value):
            found = self._known[argument.value]
            return getattr(found, end) if isinstance(found, Box) else found
        return argument

    def complete(self, node: Node) -> bool:
        """Whether all values that a node takes have bounds."""
        return all(self._known[r.value] is not None for r in node.references if isinstance(r, Value))

    def computed(self, node: Node, end: str) -> Any:
        """The node's operation on one end of all its arguments."""
        arguments = [self.at(argument, end) for argument in node.args]
        named = {name: self.at(argument, end) for name, argument in node.kwargs.items()}
        result = operation(node.op)(*arguments, **named)
        return result if node.pick is None else result[node.pick]


def _bounds(resolver: _Resolver, node: Node, unit: float) -> Known:
    if not resolver.complete(node):
        return None
    if node.op in NUMBERS or node.op == "aten.sym_size.int":
        number: int = resolver.computed(node, "low")
        return number
    rule = RULES.get(node.op)
    if rule is None or (node.kwargs and node.op in _WITHOUT_NAMES):
        return None
    return _widened(rule(resolver, node), unit)


def _widened(box: Box, unit: float) -> Box:
    """With room for what fixed point rounds: every rule's operation is off by less than 8 units, and 8 units of its
    result's size (its own rounding, that of a factor)."""
    return Box(box.low - 8 * unit * (1 + box.low.abs()), box.high + 8 * unit * (1 + box.high.abs()))


def _bits(resolver: _Resolver, node: Node, fraction_bits: int) -> int | None:
    """The bits in which a node compares what it takes, fraction and sign included; None for all."""
    if node.op not in COMPARING or not node.args:
        return None
    source = node.args[0]
    if not isinstance(source, Value) or not resolver.complete(node):
        return None
    box = Box(resolver.at(source, "low"), resolver.at(source, "high"))
    numbers = [abs(a) for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, int | float)]
    largest = max([box.magnitude, COMPARING[node.op], *numbers])
    if not math.isfinite(largest):
        return None
    bits = max(int(largest * 2.0**fraction_bits + 1).bit_length() + 1, fraction_bits + _WHOLE_BITS)
    bits = -(-bits // _STEPS) * _STEPS
    return bits if bits < _WORD_BITS - fraction_bits else None


# Rules -----------------------------------------------------------------------------------------------------------


def _rising(resolver: _Resolver, node: Node) -> Box:
    """No less for larger arguments."""
    return Box(resolver.computed(node, "low"), resolver.computed(node, "high"))


def _leaky(resolver: _Resolver, node: Node) -> Box:
    slope = node.argument(1, "negative_slope")
    falls = isinstance(slope, int | float) and slope < 0
    return _unbounded(resolver, node) if falls else _rising(resolver, node)


def _scaled(resolver: _Resolver, node: Node) -> Box:
    """Rising or falling in its one value."""
    ends = resolver.computed(node, "low"), resolver.computed(node, "high")
    return Box(torch.minimum(*ends), torch.maximum(*ends))


def _difference(resolver: _Resolver, node: Node) -> Box:
    left, right = node.args[:2]
    return Box(
        resolver.at(left, "low") - resolver.at(right, "high"), resolver.at(left, "high") - resolver.at(right, "low")
    )


def _product(resolver: _Resolver, node: Node) -> Box:
    left, right = node.args[:2]
    ends = [resolver.at(left, a) * resolver.at(right, b) for a in ("low", "high") for b in ("low", "high")]
    return Box(
        torch.minimum(torch.minimum(*ends[:2]), torch.minimum(*ends[2:])),
        torch.maximum(torch.maximum(*ends[:2]), torch.maximum(*ends[2:])),
    )


def _weighted(resolver: _Resolver, node: Node) -> Box:
    """Sums of products with weights: the middle as it is, the width by their absolute values."""
    source, weight, *rest = node.args
    if isinstance(source, ParameterRef) or not isinstance(weight, ParameterRef):
        return _unbounded(resolver, node)
    low, high, weights = resolver.at(source, "low"), resolver.at(source, "high"), resolver.at(weight, "low")
    others = [resolver.at(argument, "low") for argument in rest]
    named = {name: resolver.at(argument, "low") for name, argument in node.kwargs.items()}
    compute = operation(node.op)
    middle = compute((low + high) / 2, weights, *others, **named)
    if others:
        others[0] = None  # the bias
    named.pop("bias", None)
    width = compute((high - low) / 2, weights.abs(), *others, **named)
    return Box(middle - width, middle + width)


def _unbounded(resolver: _Resolver, node: Node) -> Box:
    like: Tensor = resolver.computed(node, "low")
    return Box(torch.full_like(like, -math.inf), torch.full_like(like, math.inf))


_SHAPES = (
    *("alias.default", "clone.default", "contiguous.default", "detach.default", "dropout.default"),
    *("view.default", "reshape.default", "flatten.using_ints", "unflatten.int", "t.default", "transpose.int"),
    *("permute.default", "movedim.int", "unsqueeze.default", "squeeze.dim", "squeeze.dims", "select.int"),
    *("slice.Tensor", "narrow.default", "chunk.default", "split.Tensor", "split_with_sizes.default", "unbind.int"),
    *("flip.default", "roll.default", "pixel_shuffle.default", "pixel_unshuffle.default", "channel_shuffle.default"),
    *("cat.default", "stack.default"),
)
_RISING = (
    *("relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default"),
    *(f"{kind}_pool{n}d.default" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *("amax.default", "amin.default", "mean.dim", "sum.dim_IntList", "sigmoid.default", "tanh.default"),
)
_SUMS = ("add.Tensor", "add.Scalar", "sub.Scalar")
_WITHOUT_NAMES = frozenset(f"aten.{name}" for name in ("add.Tensor", "sub.Tensor", "mul.Tensor", "mean.dim"))
"""Operations whose named arguments (a factor, a dtype) no rule looks at."""


def _named(rule: Rule, *names: str) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names}


RULES: dict[str, Rule] = {
    **_named(_rising, *_SHAPES, *_RISING, *_SUMS),
    **_named(_leaky, "leaky_relu.default"),
    **_named(_scaled, "mul.Scalar", "div.Scalar", "neg.default", "rsub.Scalar"),
    **_named(_difference, "sub.Tensor"),
    **_named(_product, "mul.Tensor"),
    **_named(_weighted, "linear.default", "matmul.default", "mm.default"),
    **_named(_weighted, "conv1d.default", "conv2d.default", "conv3d.default"),
}
"""Which ends a result has, given those of its operands."""
