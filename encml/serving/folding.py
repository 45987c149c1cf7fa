"""Batch norms in evaluation mode, folded into the weights: by the owner, who knows them, or on shares of them.

    (x - mean) weight / sqrt(variance + eps) + bias  =  x scale + shift

with one scale and shift a channel. Behind a convolution or a linear layer these go into its weights and bias, and the
parties compute nothing; elsewhere a product and a sum are left, 3 rounds. Running statistics of plain weights never
leave the owner, and the inverse deviations are those of float64; of a model that exists as shares only, they are those
that its own evaluation in fixed point divides by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.serving.graph import Argument, Node, ParameterRef, Value
from encml.tensor import SharedTensor

BATCH_NORMS = {
    "aten.batch_norm.default": (6, 7),
    "aten._native_batch_norm_legit_no_training.default": (5, 6),
}
"""Batch norms as PyTorch exports them, with the places of momentum and eps; first come x, weight, bias, statistics."""
_LAYERS = {"aten.linear.default": 2, "aten.conv1d.default": 3, "aten.conv2d.default": 4, "aten.conv3d.default": 5}
"""What a scale goes into, with the dimensions of its output where channels are the second of them."""


def fold(nodes: Sequence[Node], ranks: Mapping[str, int], output: str, state: dict[str, Tensor]) -> list[Node]:
    """The nodes without batch norms; what they need instead is added to ``state``, the values of the parameters.

    ranks: the number of dimensions of each node's value. Free where the state is plain; on shares, for each norm at
    most 36 rounds, 0.2 kB a channel and 8.75 B an element of the weights before it, and nothing is revealed.

    Raises UnsupportedOperation for a batch norm that learns, or that normalises by the batch itself.
    """
    uses = Counter(r.value for node in nodes for r in node.references if isinstance(r, Value)) + Counter([output])
    done: dict[str, Node] = {}
    for node in nodes:
        if node.op not in BATCH_NORMS:
            done[node.name] = node
            continue
        source = node.args[0]
        assert isinstance(source, Value)
        _check_statistics(node)
        layer = done.get(source.value)
        if layer is not None and uses[layer.name] == 1 and _takes(layer, ranks[layer.name]):
            # In the layer's place, under the name of the norm.
            del done[layer.name]
            done[node.name] = _scaled(layer, node, state)
            continue
        channels = torch.zeros(1, _channels(node, state), dtype=torch.float64)
        scale = _normed(channels + 1, node, state, centred=True)[0]
        shift = _normed(channels, node, state, centred=False)[0]
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


def _normed(rows: Tensor, norm: Node, state: Mapping[str, Tensor], *, centred: bool) -> Tensor:
    """Rows (N, channels) as the norm makes them; with ``centred`` only scaled, as if mean and bias were 0."""
    weight, bias, mean, variance = (_value(argument, norm, state) for argument in norm.args[1:5])
    eps = norm.args[BATCH_NORMS[norm.op][1]]
    assert mean is not None
    assert isinstance(eps, int | float)
    if centred:
        # (x - 0) scale + 0: rounded once, however small or large the scale is.
        mean, bias = torch.zeros(rows.shape[1], dtype=torch.float64), None
    return F.batch_norm(rows, mean, variance, weight, bias, eps=eps)


def _check_statistics(norm: Node) -> None:
    if norm.op == "aten.batch_norm.default" and norm.args[5] is not False:
        raise UnsupportedOperation(
            f"{norm.module or norm.name}: a batch norm without running statistics mixes the examples of a batch; "
            "expected track_running_stats=True"
        )
    eps = norm.args[BATCH_NORMS[norm.op][1]]
    if not all(isinstance(argument, ParameterRef) for argument in norm.args[3:5]) or not isinstance(eps, int | float):
        raise UnsupportedOperation(f"{norm.module or norm.name}: a batch norm without running statistics")


def _channels(norm: Node, state: Mapping[str, Tensor]) -> int:
    variance = norm.args[4]
    assert isinstance(variance, ParameterRef)
    return len(state[variance.parameter])


def _value(argument: Argument, node: Node, state: Mapping[str, Tensor]) -> Tensor | None:
    """The value of a parameter, float64 where it is plain."""
    if argument is None:
        return None
    if not isinstance(argument, ParameterRef):
        raise UnsupportedOperation(f"{node.module or node.name}: a batch norm whose weights depend on the input")
    value = state[argument.parameter]
    return value if isinstance(value, SharedTensor) else value.detach().double()


def _takes(layer: Node, rank: int) -> bool:
    """Whether a scale and shift by channel can go into this layer's parameters."""
    parameters = [argument for argument in layer.args[1:3] if argument is not None]
    return (
        _LAYERS.get(layer.op) == rank
        and not layer.kwargs
        and bool(parameters)
        and all(isinstance(argument, ParameterRef) for argument in parameters)
    )


def _scaled(layer: Node, norm: Node, state: dict[str, Tensor]) -> Node:
    """The layer with the norm in its parameters: its rows of weights, and its bias, are normalised by channel."""
    weight = _value(layer.args[1], layer, state)
    assert weight is not None
    bias = _value(layer.args[2], layer, state) if len(layer.args) > 2 else None
    if bias is None:
        bias = torch.zeros(len(weight), dtype=torch.float64)
    rows = weight.reshape(len(weight), -1).t()
    scaled = _normed(rows, norm, state, centred=True).t().reshape(weight.shape)
    shift = _normed(bias.reshape(1, -1), norm, state, centred=False)[0]
    parameters = (_added(f"{norm.name}.weight", scaled, state), _added(f"{norm.name}.bias", shift, state))
    return layer.model_copy(update={"name": norm.name, "args": (layer.args[0], *parameters, *layer.args[3:])})


def _added(name: str, value: Tensor, state: dict[str, Tensor]) -> ParameterRef:
    while name in state:
        name += "_"
    state[name] = value if isinstance(value, SharedTensor) else value.to(torch.float32)
    return ParameterRef(parameter=name)
