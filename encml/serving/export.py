"""From an nn.Module to a graph and its parameters, on the owner's side, where every problem is found."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from encml.config.loading import first_problem
from encml.errors import InvalidTensor, UnsupportedOperation
from encml.mpc.session import Session
from encml.net.local import LocalTransport
from encml.ring.fixed import DEFAULT_FRACTION_BITS
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
    unsupported,
)
from encml.serving.operations import OPERATIONS
from encml.tensor import share

MAX_DEVIATION = 0.1
"""A model whose output on the example is further off than this, relative to its size, leaves the fixed-point range."""


def export_model(
    model: nn.Module, example: Tensor, fraction_bits: int = DEFAULT_FRACTION_BITS
) -> tuple[Graph, dict[str, Tensor]]:
    """The architecture of ``model`` in evaluation mode, and its parameters, buffers and constants by name.

    example: an input (batch, ...) of the kind that will be asked about; its contents only steer the trial below.

    The graph is then tried: the example's first row goes through it in shares, with all parties in this process, and
    must give what the model gives. Raises UnsupportedOperation, naming module and operation, for what cannot be
    served, and InvalidTensor where a parameter, or the model in fixed point, leaves the range.
    """
    if example.ndim < 1 or not len(example) or not example.is_floating_point():
        raise InvalidTensor(
            f"the example is a {example.dtype} tensor of shape {tuple(example.shape)}; expected floats (batch, ...)"
        )
    frozen = copy.deepcopy(model).eval()
    row = example[:1].detach()
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch's own, about how it walks its trees and what it notes while it traces.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        program = _export(frozen, row)
    state: dict[str, Tensor] = {**program.state_dict, **program.constants}
    try:
        graph = _to_graph(program, row, state)
    except ValidationError as error:
        raise UnsupportedOperation(f"{type(model).__name__} cannot be served: {first_problem(error)}") from None
    parameters = {parameter.name: state[parameter.name].detach() for parameter in graph.parameters}
    _try(frozen, graph, parameters, row, fraction_bits)
    return graph, parameters


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


def _to_graph(program: torch.export.ExportedProgram, row: Tensor, state: Mapping[str, Tensor]) -> Graph:
    references: dict[str, Value | ParameterRef] = {}
    used: list[str] = []
    nodes: list[Node] = []
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    output: Any = None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind != InputKind.USER_INPUT:
                assert spec.target is not None
                references[node.name] = ParameterRef(parameter=spec.target)
                used += [spec.target] if node.users else []
                continue
            if Value(value=INPUT) in references.values():
                raise UnsupportedOperation("a served model takes one tensor; this one takes several")
            references[node.name] = Value(value=INPUT)
        elif node.op == "call_function":
            nodes.append(_to_node(node, references))
            references[node.name] = Value(value=node.name)
        elif node.op == "output":
            (output,) = node.args
        else:
            raise UnsupportedOperation(f"{_where(node)}: a node of kind {node.op!r} cannot be served")
    outputs = output if isinstance(output, list | tuple) else (output,)
    result = references.get(getattr(outputs[0], "name", "")) if len(outputs) == 1 else None
    if not isinstance(result, Value):
        raise UnsupportedOperation("a served model gives one tensor that depends on its input; this one does not")
    shape = tuple(outputs[0].meta["val"].shape)
    if not all(isinstance(size, int) for size in shape[1:]):
        raise UnsupportedOperation(f"the model's output {shape} has a size beside the first that depends on the batch")
    return Graph(
        input_shape=tuple(row.shape[1:]),
        output_shape=tuple(int(size) for size in shape[1:]),
        parameters=tuple(Parameter(name=name, shape=tuple(state[name].shape)) for name in used),
        nodes=tuple(nodes),
        output=result.value,
    )


def _to_node(node: torch.fx.Node, references: Mapping[str, Value | ParameterRef]) -> Node:
    op = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else _named(node.target)
    if op not in OPERATIONS:
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
    return str(getattr(target, "__name__", target))


def _try(model: nn.Module, graph: Graph, parameters: Mapping[str, Tensor], row: Tensor, fraction_bits: int) -> None:
    session = Session(LocalTransport(), fraction_bits=fraction_bits)
    shared: dict[str, Tensor] = {}
    for name, value in parameters.items():
        try:
            shared[name] = share(value, session=session)
        except InvalidTensor as error:
            raise InvalidTensor(f"the model's {name}: {error}") from None
    with torch.no_grad():
        result = graph.run(shared, share(row, session=session)).reveal()  # type: ignore[attr-defined]
        expected = model(row)
    deviation = float((result.double() - expected.double()).abs().max())
    size = max(1.0, float(expected.abs().max()))
    if not deviation <= MAX_DEVIATION * size:
        raise InvalidTensor(
            f"on the example the model in fixed point is off by {deviation:.3g}, where its output goes up to "
            f"{size:.3g}: it leaves the range at {fraction_bits} fraction bits; scale its inputs or weights"
        )
