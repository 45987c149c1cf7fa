"""Batch norms in evaluation mode, folded into the weights by the owner, who knows them.

    (x - mean) weight / sqrt(variance + eps) + bias  =  x scale + shift

with one scale and shift a channel. Behind a convolution or a linear layer these go into its weights and bias, and the
parties compute nothing; elsewhere a product and a sum are left, 3 rounds. Running statistics never leave the owner, and
the inverse deviations are those of float64, not of fixed point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.serving.graph import Argument, Node, ParameterRef, Value

BATCH_NORMS = {
    "aten.batch_norm.default": (6, 7),
    "aten._native_batch_norm_legit_no_training.default": (5, 6),
}
"""Batch norms as PyTorch exports them, with the places of momentum and eps; first come x, weight, bias, statistics."""
_LAYERS = {"aten.linear.default": 2, "aten.conv1d.default": 3, "aten.conv2d.default": 4, "aten.conv3d.default": 5}
"""What a scale goes into, with the dimensions of its output where channels are the second of them."""


def fold(nodes: Sequence[Node], ranks: Mapping[str, int], output: str, state: dict[str, Tensor]) -> list[Node]:
    """The nodes without batch norms; what they need instead is added to ``state``, the values of the parameters.

    ranks: the number of dimensions of each node's value. Raises UnsupportedOperation for a batch norm that learns, or
    that normalises by the batch itself.
    """
    uses = Counter(r.value for node in nodes for r in node.references if isinstance(r, Value)) + Counter([output])
    done: dict[str, Node] = {}
    for node in nodes:
        if node.op not in BATCH_NORMS:
            done[node.name] = node
            continue
        source = node.args[0]
        scale, shift = _scale_and_shift(node, state)
        assert isinstance(source, Value)
        layer = done.get(source.value)
        if layer is not None and uses[layer.name] == 1 and _takes(layer, ranks[layer.name]):
            # In the layer's place, under the name of the norm.
            del done[layer.name]
            done[node.name] = _scaled(layer, node, scale, shift, state)
            continue
        shape = (-1, *(1,) * (ranks[node.name] - 2))
        product = f"{node.name}.product"
        done[product] = node.model_copy(
            update={
                "name": product,
                "op": "aten.mul.Tensor",
                "args": (source, _added(f"{node.name}.scale", scale.reshape(shape), state)),
                "kwargs": {},
            }
        )
        done[node.name] = node.model_copy(
            update={
                "op": "aten.add.Tensor",
                "args": (Value(value=product), _added(f"{node.name}.shift", shift.reshape(shape), state)),
                "kwargs": {},
            }
        )
    return list(done.values())


def _scale_and_shift(node: Node, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """By channel, float64."""
    if node.op == "aten.batch_norm.default" and node.args[5] is not False:
        raise UnsupportedOperation(
            f"{node.module or node.name}: a batch norm without running statistics mixes the examples of a batch; "
            "expected track_running_stats=True"
        )
    weight, bias, mean, variance = (_value(argument, node, state) for argument in node.args[1:5])
    eps = node.args[BATCH_NORMS[node.op][1]]
    if mean is None or variance is None or not isinstance(eps, int | float):
        raise UnsupportedOperation(f"{node.module or node.name}: a batch norm without running statistics")
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return scale, -mean * scale if bias is None else bias - mean * scale


def _value(argument: Argument, node: Node, state: Mapping[str, Tensor]) -> Tensor | None:
    if argument is None:
        return None
    if not isinstance(argument, ParameterRef):
        raise UnsupportedOperation(f"{node.module or node.name}: a batch norm whose weights depend on the input")
    return state[argument.parameter].detach().double()


def _takes(layer: Node, rank: int) -> bool:
    """Whether a scale and shift by channel can go into this layer's parameters."""
    parameters = [argument for argument in layer.args[1:3] if argument is not None]
    return (
        _LAYERS.get(layer.op) == rank
        and not layer.kwargs
        and bool(parameters)
        and all(isinstance(argument, ParameterRef) for argument in parameters)
    )


def _scaled(layer: Node, norm: Node, scale: Tensor, shift: Tensor, state: dict[str, Tensor]) -> Node:
    weight = _value(layer.args[1], layer, state)
    assert weight is not None
    bias = _value(layer.args[2], layer, state) if len(layer.args) > 2 else None
    weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    shift = shift if bias is None else bias * scale + shift
    parameters = (_added(f"{norm.name}.weight", weight, state), _added(f"{norm.name}.bias", shift, state))
    return layer.model_copy(update={"name": norm.name, "args": (layer.args[0], *parameters, *layer.args[3:])})


def _added(name: str, value: Tensor, state: dict[str, Tensor]) -> ParameterRef:
    while name in state:
        name += "_"
    state[name] = value.to(torch.float32)
    return ParameterRef(parameter=name)
