"""The architecture of a served model: a list of aten operations as JSON, never a pickle.

```json
{"format": "encml-graph", "version": 1, "input_shape": [1, 28, 28], "output_shape": [10],
 "parameters": [{"name": "0.weight", "shape": [16, 1, 3, 3]}, ...],
 "nodes": [{"name": "conv2d", "op": "aten.conv2d.default", "module": "0 (Conv2d)", "args": [{"value": "input"},
            {"parameter": "0.weight"}, {"parameter": "0.bias"}, [1, 1], [1, 1]], "kwargs": {}}, ...],
 "output": "linear"}
```

Shapes are those of one example; the batch comes first. A graph comes to a party from outside: it is checked when it
is made, whole, and there is no ``Graph`` that is not sound. Its operations are looked up in ``OPERATIONS`` only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PrivateAttr, ValidationError, model_validator
from torch import Tensor

from encml.config.loading import first_problem
from encml.errors import EncmlError, ServingError, UnsupportedOperation
from encml.serving.operations import NUMBERS, OPERATIONS, PICKS, operation
from encml.tensor import SharedTensor

MAX_JSON_BYTES = 4 * 2**20
MAX_NODES = 10_000
MAX_NAME = 200
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**26
"""Elements of any one tensor in a computation, the batch included: half a gigabyte a share."""
MAX_WINDOW = 256
"""Height, width and depth of a pooling window."""

_ATTENTION = "aten.scaled_dot_product_attention.default"
_POOLS = frozenset(f"{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3))

COMPARING = {
    **{
        f"aten.{name}.default": 0.0
        for name in ("relu", "leaky_relu", "clamp", "clamp_min", "clamp_max", "amax", "amin")
    },
    **{f"aten.max_pool{n}d.default": 0.0 for n in (1, 2, 3)},
    **{f"aten.adaptive_max_pool{n}d.default": 0.0 for n in (1, 2)},
    "aten.abs.default": 0.0,
    "aten.hardtanh.default": 1.0,
    "aten.relu6.default": 6.0,
}
"""Operations that compare their operand with itself, 0, their numbers or this number, and nothing else."""

INPUT = "input"
"""The name of the graph's input among its values."""

Name = Annotated[str, Field(pattern=r"^[ -~]+$", max_length=MAX_NAME)]
Label = Annotated[str, Field(pattern=r"^[ -~]*$", max_length=MAX_NAME)]
Size = Annotated[int, Field(ge=1, le=MAX_ELEMENTS)]
Shape = Annotated[tuple[Size, ...], Field(max_length=MAX_DIMENSIONS)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Value(_Part):
    """Refers to the input or to what an earlier node gave."""

    value: Name


class ParameterRef(_Part):
    """Refers to a parameter."""

    parameter: Name


Word = Literal["none", "tanh", "constant", "reflect", "replicate"]
"""How GELU is approximated, and what is padded with."""
Item = Value | ParameterRef | bool | Integer | FiniteFloat | Word | None
Argument = Item | Annotated[tuple[Item, ...], Field(max_length=64)]


class Parameter(_Part):
    """A secret tensor of the model: parameter, buffer or constant."""

    name: Name
    shape: Shape


class Node(_Part):
    """One operation; ``module`` says for people where in the model it stands.

    ``pick``: which one of the tensors is meant that the operation gives, if it gives several. ``comparison_bits``: what
    it compares fits into so many bits, fraction and sign included, for inputs from the graph's range.
    """

    name: Name
    op: Name
    module: Label = ""
    args: Annotated[tuple[Argument, ...], Field(max_length=16)] = ()
    kwargs: Annotated[dict[Name, Argument], Field(max_length=16)] = {}
    pick: Annotated[int, Field(ge=0, le=64)] | None = None
    comparison_bits: Annotated[int, Field(ge=8, le=64)] | None = None

    def __str__(self) -> str:
        return f"{self.module or self.name}: {self.op}"

    @property
    def references(self) -> Iterator[Value | ParameterRef]:
        """All values and parameters that the node takes."""
        for argument in (*self.args, *self.kwargs.values()):
            for item in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(item, Value | ParameterRef):
                    yield item

    def argument(self, place: int, name: str) -> Argument:
        """The argument at ``place`` or of that name, None where it is left out."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name)


class Graph(_Part):
    """A model's architecture, checked: known operations, sound references, and shapes that fit for every batch.

    ``input_range``: lowest and highest value that an input may have, where the bits of comparisons rest on that.

    Raises ServingError (from ``from_json``) or UnsupportedOperation.
    """

    format: Literal["encml-graph"] = "encml-graph"
    version: Literal[1] = 1
    input_shape: Shape
    output_shape: Shape
    parameters: Annotated[tuple[Parameter, ...], Field(max_length=MAX_NODES)]
    nodes: Annotated[tuple[Node, ...], Field(max_length=MAX_NODES)]
    output: Name
    input_range: tuple[FiniteFloat, FiniteFloat] | None = None
    _spent: dict[str, tuple[str, ...]] = PrivateAttr(default_factory=dict)
    _shapes: dict[str, torch.Size] = PrivateAttr(default_factory=dict)
    _elements: int = PrivateAttr(default=0)

    @classmethod
    def from_json(cls, text: str | bytes) -> Graph:
        """Read a graph from outside. Raises ServingError (malformed) or UnsupportedOperation."""
        if len(text) > MAX_JSON_BYTES:
            raise ServingError(f"the model's graph has {len(text):,} bytes, allowed are {MAX_JSON_BYTES:,}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _malformed(first_problem(error)[:1000]) from None

    @property
    def largest_batch(self) -> int:
        """The most examples that may be computed at one time."""
        return max(1, MAX_ELEMENTS // self._elements)

    @property
    def batch_of_three(self) -> Mapping[str, torch.Size]:
        """The shape of every tensor value for a batch of three examples."""
        return self._shapes

    def run(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The model's output (batch, *output_shape) for x (batch, *input_shape), on plain or shared tensors.

        Values are released after their last use. Raises UnsupportedOperation or ServingError, naming the node.
        """
        values: dict[str, Any] = {INPUT: x}
        for node in self.nodes:
            with _declared(node, x):
                values[node.name] = _compute(node, values, parameters)
            for name in self._spent[node.name]:
                del values[name]
        result: Tensor = values[self.output]
        return result

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_references()
        self._spent.update(_last_uses(self))
        with torch.no_grad():
            for batch in (2, 3):
                self._check_shapes(batch)
        return self

    def _check_references(self) -> None:
        if self.input_range is not None and not self.input_range[0] < self.input_range[1]:
            raise _malformed(f"its inputs go from {self.input_range[0]} to {self.input_range[1]}")
        parameters = {parameter.name for parameter in self.parameters}
        if len(parameters) != len(self.parameters):
            raise _malformed("two parameters have one name")
        shapes = [self.input_shape, self.output_shape, *(parameter.shape for parameter in self.parameters)]
        if any(math.prod(shape) > MAX_ELEMENTS for shape in shapes):
            raise ServingError(f"the model's graph is too large: a tensor has more than {MAX_ELEMENTS:,} elements")
        values = {INPUT}
        for node in self.nodes:
            if node.op not in OPERATIONS and node.op not in NUMBERS:
                raise unsupported(node.op, node.module or node.name)
            if node.name in values:
                raise _malformed(f"two values are named {node.name!r}")
            for reference in node.references:
                known = reference.value in values if isinstance(reference, Value) else reference.parameter in parameters
                if not known:
                    raise _malformed(f"{node} refers to {reference!r}, which is not known there")
            _check_arguments(node)
            values.add(node.name)
        if self.output not in values:
            raise _malformed(f"its output {self.output!r} is no value of it")

    def _check_shapes(self, batch: int) -> None:
        """Run the graph on tensors without contents; every value must fit, and the output have the batch in front."""
        parameters = {p.name: torch.empty(p.shape, device="meta") for p in self.parameters}
        values: dict[str, Any] = {INPUT: torch.empty(batch, *self.input_shape, device="meta")}
        elements = math.prod(self.input_shape)
        for node in self.nodes:
            value = values[node.name] = _compute(node, values, parameters)
            if isinstance(value, Tensor):
                elements = max(elements, -(-max(value.numel(), _between(node, value, values)) // batch))
            elif not isinstance(value, int):
                raise _malformed(f"{node} gives a {type(value).__name__}")
            if elements > MAX_ELEMENTS:
                raise ServingError(f"the model's graph is too large: {node} gives more than {MAX_ELEMENTS:,} elements")
        shapes = {name: value.shape for name, value in values.items() if isinstance(value, Tensor)}
        found, expected = shapes.get(self.output), (batch, *self.output_shape)
        if found is None or tuple(found) != expected:
            shape = "a number" if found is None else tuple(found)
            raise _malformed(f"its output for {batch} examples is {shape}, expected {expected}")
        self._elements = max(1, elements)
        self._shapes.update(shapes)


def unsupported(op: str, where: str) -> UnsupportedOperation:
    """The error for an operation that no served model may have."""
    known = sorted({name.split(".")[1] for name in OPERATIONS})
    near = difflib.get_close_matches(op.removeprefix("aten.").split(".")[0], known, n=3, cutoff=0.6)
    hint = f"; nearest supported: {', '.join(near)}" if near else ""
    return UnsupportedOperation(f"{where}: {op} cannot be served{hint}")


def _check_arguments(node: Node) -> None:
    """Refuse what a shape does not show: windows that take ages, dropout that drops, several tensors at one place."""
    window = node.argument(1, "kernel_size") if node.op.split(".")[1] in _POOLS else ()
    sides = window if isinstance(window, tuple) else (window,)
    if any(isinstance(side, int) and side > MAX_WINDOW for side in sides):
        raise _malformed(f"{node} has a window wider than {MAX_WINDOW}")
    if node.op == "aten.dropout.default" and node.argument(2, "train") is not False:
        raise _malformed(f"{node} is in training mode")
    if node.op == _ATTENTION and node.argument(4, "dropout_p") not in (None, 0):
        raise _malformed(f"{node} is in training mode")
    if (node.op in PICKS) != (node.pick is not None):
        raise _malformed(f"{node} gives {'several tensors' if node.op in PICKS else 'one tensor'}, pick={node.pick}")
    if node.comparison_bits is not None and node.op not in COMPARING:
        raise _malformed(f"{node} compares nothing that bits are declared for")
    if PICKS.get(node.op) not in (None, node.pick):
        raise _malformed(f"{node}: only what it gives first can be used, pick={node.pick}")


def _between(node: Node, value: Tensor, values: Mapping[str, Any]) -> int:
    """Elements of the largest tensor that a node needs on its way: an attention's scores, a maximum's windows."""
    if node.op == _ATTENTION:
        query, key = (values.get(x.value) if isinstance(x, Value) else None for x in node.args[:2])
        if isinstance(query, Tensor) and isinstance(key, Tensor):
            return query.shape[:-1].numel() * key.shape[-2]
        raise _malformed(f"{node}: its query and key must be values")
    if node.op.startswith("aten.max_pool"):
        window = node.argument(1, "kernel_size")
        sides = window if isinstance(window, tuple) else (window,) * int(node.op.split(".")[1][-2])
        return value.numel() * math.prod(side for side in sides if isinstance(side, int))
    return 0


def _malformed(problem: str) -> ServingError:
    return ServingError(f"the model's graph is malformed: {problem}")


def _compute(node: Node, values: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Any:
    arguments = [_resolve(argument, values, parameters) for argument in node.args]
    named = {name: _resolve(argument, values, parameters) for name, argument in node.kwargs.items()}
    try:
        result = operation(node.op)(*arguments, **named)
        return result if node.pick is None else result[node.pick]
    except UnsupportedOperation as error:
        raise UnsupportedOperation(f"{node}: {error}") from None
    except EncmlError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise _malformed(f"{node} cannot be computed: {reason}") from None


@contextmanager
def _declared(node: Node, x: Tensor) -> Iterator[None]:
    """Have a node compare in the bits that are declared for it."""
    if node.comparison_bits is None or not isinstance(x, SharedTensor):
        yield
        return
    session, before = x.session, x.session.comparison_bits
    session.comparison_bits = node.comparison_bits
    try:
        yield
    finally:
        session.comparison_bits = before


def _resolve(argument: Argument, values: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Any:
    if isinstance(argument, tuple):
        return [_resolve(item, values, parameters) for item in argument]
    if isinstance(argument, Value):
        return values[argument.value]
    if isinstance(argument, ParameterRef):
        return parameters[argument.parameter]
    return argument


def _last_uses(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each node the values that nothing after it needs."""
    last: dict[str, str] = {}
    for node in graph.nodes:
        last[node.name] = node.name
        last.update({reference.value: node.name for reference in node.references if isinstance(reference, Value)})
    last.pop(graph.output, None)
    spent: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
    for value, user in last.items():
        spent[user].append(value)
    return {name: tuple(values) for name, values in spent.items()}
