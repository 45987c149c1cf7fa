"""From an nn.Module to a graph and its parameters, on the owner's side, where every problem is found."""

from __future__ import annotations

import copy
import math
import operator
import threading
import warnings
from collections.abc import Mapping
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from encml.config.loading import first_problem
from encml.errors import InvalidTensor, UnsupportedOperation
from encml.mpc.session import Session
from encml.net.local import LocalTransport
from encml.ring.fixed import DEFAULT_FRACTION_BITS, bound
from encml.serving.bounds import Range, declare_comparisons
from encml.serving.folding import BATCH_NORMS, fold
from encml.serving.graph import (
    INPUT,
    MAX_NAME,
    Argument,
    Graph,
    Item,
    Node,
    Parameter,
    ParameterRef,
    Value,
    Word,
    unsupported,
)
from encml.serving.operations import NUMBERS, OPERATIONS, PICKS
from encml.tensor import SharedTensor, share

MAX_DEVIATION = 0.1
"""A model whose output on the example is further off than this, relative to its size, leaves the fixed-point range."""

_tracing = threading.Lock()
"""PyTorch traces one model at a time in a process."""

_COPIES = ("aten.alias.default", "aten.clone.default", "aten.detach.default")
"""What PyTorch does with constants; of a parameter they are the parameter."""


def export_model(
    model: nn.Module,
    example: Tensor,
    fraction_bits: int = DEFAULT_FRACTION_BITS,
    input_range: Range | None = None,
) -> tuple[Graph, dict[str, Tensor]]:
    """The architecture of ``model`` in evaluation mode, and its parameters, buffers and constants by name.

    Batch norms are folded into the weights before them, see ``encml.serving.folding``. Masks among the constants are
    secret too; for minus infinity they hold half of the fixed-point range's lower end.

    example: an input (batch, ...) of the kind that will be asked about; its contents only steer the trial below.
    input_range: the lowest and highest value of any input that will be asked about, such as (0, 1) for images. The
        graph then says in how many bits the model compares, as few as no such input can exceed
        (``encml.serving.bounds``): fewer bytes and rounds. Clients refuse to ask about other inputs, whose results
        would be wrong. The range, and these numbers of bits, are public; the latter tell how large sums of the
        weights' absolute values are, to a factor of 16.

    The graph is then tried: the example's first row goes through it in shares, with all parties in this process, and
    must give what the model gives. Raises UnsupportedOperation, naming module and operation, for what cannot be
    served, and InvalidTensor where a parameter, or the model in fixed point, leaves the range.
    """
    if example.ndim < 1 or not len(example) or not example.is_floating_point():
        raise InvalidTensor(
            f"the example is a {example.dtype} tensor of shape {tuple(example.shape)}; expected floats (batch, ...)"
        )
    if input_range is not None and not (example.min() >= input_range[0] and example.max() <= input_range[1]):
        raise InvalidTensor(
            f"the example goes from {float(example.min()):.6g} to {float(example.max()):.6g}, beyond the declared "
            f"range of inputs from {input_range[0]:.6g} to {input_range[1]:.6g}"
        )
    frozen = copy.deepcopy(model).eval()
    row = example[:1].detach()
    program = trace(frozen, row)
    graph, parameters = graph_of(program, row, {**program.state_dict, **program.constants}, fraction_bits)
    if input_range is not None:
        graph = declare_comparisons(graph, parameters, input_range, fraction_bits)
    result = run_on_shares(graph, parameters, row, fraction_bits)
    with torch.no_grad():
        expected = frozen(row)
    deviation = float((result.double() - expected.double()).abs().max())
    size = max(1.0, float(expected.abs().max()))
    if not deviation <= MAX_DEVIATION * size:
        raise InvalidTensor(
            f"on the example the model in fixed point is off by {deviation:.3g}, where its output goes up to "
            f"{size:.3g}: it leaves the range at {fraction_bits} fraction bits; scale its inputs or weights"
        )
    return graph, parameters


def trace(model: nn.Module, row: Tensor) -> torch.export.ExportedProgram:
    """What PyTorch makes of a model in evaluation mode and an input (1, ...). Raises UnsupportedOperation."""
    with _tracing, torch.no_grad(), warnings.catch_warnings():
        # PyTorch's own, about how it walks its trees and what it notes while it traces.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        return _export(model, row)


def graph_of(
    program: torch.export.ExportedProgram, row: Tensor, values: Mapping[str, Tensor], fraction_bits: int
) -> tuple[Graph, dict[str, Tensor]]:
    """The graph of a traced model, and its parameters by name.

    values: those of all parameters, buffers and constants that the program names, plain or shared.
    """
    state = dict(values)
    try:
        with torch.no_grad():
            graph = _to_graph(program, row, state)
    except ValidationError as error:
        raise UnsupportedOperation(f"the model cannot be served: {first_problem(error)}") from None
    parameters = {parameter.name: state[parameter.name].detach() for parameter in graph.parameters}
    for name, value in parameters.items():
        if not value.is_floating_point():
            raise UnsupportedOperation(f"the model's {name} is a {value.dtype} tensor; a served model's are floats")
        if not isinstance(value, SharedTensor):
            # What a mask adds to hide an entry. The mask is secret like all parameters, so nothing is left out.
            parameters[name] = value.masked_fill(value == -math.inf, -bound(fraction_bits) / 2)
    return graph, parameters


def run_on_shares(graph: Graph, parameters: Mapping[str, Tensor], row: Tensor, fraction_bits: int) -> Tensor:
    """What plain parameters give for a row, computed on shares with all parties in this process."""
    session = Session(LocalTransport(), fraction_bits=fraction_bits)
    shared: dict[str, Tensor] = {}
    for name, value in parameters.items():
        try:
            shared[name] = share(value, session=session)
        except InvalidTensor as error:
            raise InvalidTensor(f"the model's {name}: {error}") from None
    with torch.no_grad():
        result: Tensor = graph.run(shared, share(row, session=session)).reveal()  # type: ignore[attr-defined]
    return result


def _export(model: nn.Module, row: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        # Two rows: PyTorch takes a batch of one for a constant.
        program = torch.export.export(model, (torch.cat([row, row]),), dynamic_shapes=({0: batch},))
        if any(node.op == "call_function" and _mutates(node.target) for node in program.graph.nodes):
            program = program.run_decompositions({})
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnsupportedOperation(
            f"{type(model).__name__} cannot be exported as a graph for any batch size: {reason} "
            "(its forward must take one tensor (batch, ...) and not branch on values)"
        ) from error
    return program


def _mutates(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _to_graph(program: torch.export.ExportedProgram, row: Tensor, state: dict[str, Tensor]) -> Graph:
    references: dict[str, Value | ParameterRef] = {}
    several: dict[str, Node] = {}
    nodes: list[Node] = []
    ranks: dict[str, int] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    needed = _needed(program.graph)
    output: Any = None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind != InputKind.USER_INPUT:
                assert spec.target is not None
                references[node.name] = ParameterRef(parameter=spec.target)
                continue
            if Value(value=INPUT) in references.values():
                raise UnsupportedOperation("a served model takes one tensor; this one takes several")
            references[node.name] = Value(value=INPUT)
        elif node.op == "output":
            (output,) = node.args
        elif node.op != "call_function":
            raise UnsupportedOperation(f"{_where(node)}: a node of kind {node.op!r} cannot be served")
        elif node in needed:
            if node.target is operator.getitem:
                source, place = node.args
                made = _picked(several[source.name], place).model_copy(update={"name": node.name})
            else:
                made = _to_node(node, references)
                if made.op in _COPIES and isinstance(made.args[0], ParameterRef):
                    references[node.name] = made.args[0]
                    continue
                if isinstance(node.meta["val"], list | tuple):
                    several[node.name] = made
                    continue
            nodes.append(made)
            ranks[node.name] = getattr(node.meta["val"], "ndim", 0)
            references[node.name] = Value(value=node.name)
    outputs = output if isinstance(output, list | tuple) else (output,)
    result = references.get(getattr(outputs[0], "name", "")) if len(outputs) == 1 else None
    if not isinstance(result, Value):
        raise UnsupportedOperation("a served model gives one tensor that depends on its input; this one does not")
    shape = tuple(outputs[0].meta["val"].shape)
    if not all(isinstance(size, int) for size in shape[1:]):
        raise UnsupportedOperation(f"the model's output {shape} has a size beside the first that depends on the batch")
    nodes = fold(nodes, ranks, result.value, state)
    named = (r.parameter for node in nodes for r in node.references if isinstance(r, ParameterRef))
    return Graph(
        input_shape=tuple(row.shape[1:]),
        output_shape=tuple(int(size) for size in shape[1:]),
        parameters=tuple(Parameter(name=name, shape=tuple(state[name].shape)) for name in dict.fromkeys(named)),
        nodes=tuple(nodes),
        output=result.value,
    )


def _needed(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The nodes that the output depends on: attention weights that nobody asked for are not computed."""
    needed: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed.update(node.all_input_nodes)
    return needed


def _picked(node: Node, place: int) -> Node:
    """The same operation, of whose results the one at ``place`` is meant."""
    if PICKS.get(node.op, 0) not in (None, place):
        raise UnsupportedOperation(f"{node}: only the first of what it gives can be used in a served model")
    return node.model_copy(update={"pick": place}) if node.op in PICKS else node


def _to_node(node: torch.fx.Node, references: Mapping[str, Value | ParameterRef]) -> Node:
    op = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else _named(node.target)
    if op not in OPERATIONS and op not in NUMBERS and op not in BATCH_NORMS:
        raise unsupported(op, _where(node))
    return Node(
        name=node.name,
        op=op,
        module=_where(node),
        args=tuple(_to_argument(argument, node, references) for argument in node.args),
        kwargs={name: _to_argument(argument, node, references) for name, argument in node.kwargs.items()},
    )


def _to_argument(argument: Any, node: torch.fx.Node, references: Mapping[str, Value | ParameterRef]) -> Argument:
    if isinstance(argument, list | tuple):
        return tuple(_to_item(item, node, references) for item in argument)
    return _to_item(argument, node, references)


def _to_item(item: Any, node: torch.fx.Node, references: Mapping[str, Value | ParameterRef]) -> Item:
    if isinstance(item, torch.fx.Node):
        return references[item.name]
    if item is None or isinstance(item, bool | int | float):
        return item
    if isinstance(item, str) and item in get_args(Word):
        word: Word = item  # type: ignore[assignment]  # just looked up
        return word
    raise UnsupportedOperation(f"{_where(node)}: {node.target} with the argument {item!r} cannot be served")


def _where(node: torch.fx.Node) -> str:
    """The module that a node comes from, such as ``features.3 (Conv2d)``."""
    stack = [entry for entry in node.meta.get("nn_module_stack", {}).values() if "empty_nn_module" not in entry[0]]
    if not stack:
        return node.name
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    label = f"{path or 'model'} ({kind.rsplit('.', 1)[-1]})"
    return label.encode("ascii", "replace").decode()[:MAX_NAME]


def _named(target: Any) -> str:
    name = str(getattr(target, "__name__", target))
    return f"number.{name}" if target is getattr(operator, name, None) else name
