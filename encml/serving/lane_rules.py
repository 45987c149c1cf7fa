"""Rules: where the lane of an operation's result is, if its operands have theirs (see ``encml.serving.lanes``).

None where an operation mixes examples, or nothing proves that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from encml.serving.graph import Argument, Node, ParameterRef, Value
from encml.serving.lanes import Count, Lane, Proof

Rule = Callable[[Proof, Node], Lane | None]


def _alike(proof: Proof, node: Node) -> Lane | None:
    """Every element by itself."""
    found = proof.alone(node)
    return found[0] if found else None


def _elementwise(proof: Proof, node: Node) -> Lane | None:
    """Elements that meet, by broadcasting."""
    lane = proof.meeting(node, node.args[:2])
    return None if lane is None else lane.at(proof.rank(node.name) + lane.axis)


def _linear(proof: Proof, node: Node) -> Lane | None:
    found = proof.alone(node)
    return found[0] if found and found[0].axis != found[1] - 1 else None


def _matmul(proof: Proof, node: Node) -> Lane | None:
    """Products of matrices: of an example's own, or of one that has the batch in its rows with a parameter."""
    left, right = (*node.args, None, None)[:2]
    if isinstance(left, Value) and isinstance(right, ParameterRef):
        rank, lane = proof.rank(left.value), proof.lanes[left.value]
        if rank >= 2 and lane.axis == rank - 2 and len(proof.parameters[right.parameter]) == 2:
            return lane.at(proof.rank(node.name) - 2)
    if any(isinstance(x, ParameterRef) and len(proof.parameters[x.parameter]) < 2 for x in (left, right)):
        return None
    lane_of_both = proof.meeting(node, (left, right), least=3)
    return None if lane_of_both is None else lane_of_both.at(proof.rank(node.name) + lane_of_both.axis)


def _attention(proof: Proof, node: Node) -> Lane | None:
    """Values of one rank whose batch is before length and width; a mask, if any, is for all examples."""
    if node.kwargs.get("enable_gqa") or len(node.args) > 7:
        return None
    mask = node.argument(3, "attn_mask")
    lane = proof.meeting(node, (*node.args[:3], mask), least=3)
    if lane is None or not all(isinstance(x, Value) for x in node.args[:3]) or isinstance(mask, Value):
        return None
    return lane.at(proof.rank(node.name) + lane.axis)


def _images(dimensions: int) -> Rule:
    """Examples (channels, ...) of so many spatial dimensions."""

    def rule(proof: Proof, node: Node) -> Lane | None:
        found = proof.alone(node)
        return found[0] if found and found[0].axis == 0 and found[1] == dimensions + 2 else None

    return rule


def _channels(proof: Proof, node: Node) -> Lane | None:
    """The batch before the channels."""
    found = proof.alone(node)
    return found[0] if found and found[0].axis == 0 and found[1] >= 2 else None


def _last_dimensions(proof: Proof, node: Node) -> Lane | None:
    found, normalised = proof.alone(node), node.argument(1, "normalized_shape")
    if not found or not isinstance(normalised, tuple):
        return None
    return found[0] if found[0].axis < found[1] - len(normalised) else None


def _pads(proof: Proof, node: Node) -> Lane | None:
    found, sizes = proof.alone(node), node.argument(1, "padding" if "tion" in node.op else "pad")
    if not found or not isinstance(sizes, tuple):
        return None
    return found[0] if found[0].axis < found[1] - len(sizes) // 2 else None


def _dims(argument: Argument, rank: int) -> list[int] | None:
    """Dimensions counted from the front; None for all of them, or what is no dimension."""
    dims = argument if isinstance(argument, tuple) else (argument,)
    found = [dim % rank for dim in dims if type(dim) is int and -rank <= dim < rank]
    return found if found and len(found) == len(dims) else None


def _beside(place: int, name: str, otherwise: int | None = None) -> Rule:
    """What mixes the entries along some dimensions, or takes some of them, and keeps the dimensions."""

    def rule(proof: Proof, node: Node) -> Lane | None:
        found, argument = proof.alone(node), node.argument(place, name)
        dims = _dims(otherwise if argument is None else argument, found[1]) if found else None
        return found[0] if found and dims is not None and found[0].axis not in dims else None

    return rule


def _slice(proof: Proof, node: Node) -> Lane | None:
    """Some of a dimension that is not the lane; or all of it, whichever it is."""
    found = proof.alone(node)
    start, end, step = node.argument(2, "start"), node.argument(3, "end"), node.argument(4, "step")
    if found and start in (None, 0) and end in (None, 2**63 - 1) and step in (None, 1):
        return found[0]
    return _beside(1, "dim", 0)(proof, node)


def _reduces(name: str) -> Rule:
    """What makes one entry of those along some dimensions."""

    def rule(proof: Proof, node: Node) -> Lane | None:
        found, keeps = proof.alone(node), node.argument(2, "keepdim")
        dims = _dims(node.argument(1, name), found[1]) if found else None
        if not found or dims is None or found[0].axis in dims:
            return None
        lane = found[0]
        return lane if keeps is True else lane.at(lane.axis - sum(dim < lane.axis for dim in set(dims)))

    return rule


def _takes_one(proof: Proof, node: Node) -> Lane | None:
    """select, unbind"""
    found = proof.alone(node)
    dims = _dims(0 if node.argument(1, "dim") is None else node.argument(1, "dim"), found[1]) if found else None
    if not found or dims is None or found[0].axis in dims:
        return None
    return found[0].at(found[0].axis - (dims[0] < found[0].axis))


def _squeeze(proof: Proof, node: Node) -> Lane | None:
    found = proof.alone(node)
    dims = _dims(node.argument(1, "dim"), found[1]) if found else None
    source = node.args[0]
    if not found or dims is None or found[0].axis in dims or not isinstance(source, Value):
        return None
    gone = [dim for dim in set(dims) if proof.sizes(source.value)[dim].times == 1]
    return found[0].at(found[0].axis - sum(dim < found[0].axis for dim in gone))


def _unsqueeze(proof: Proof, node: Node) -> Lane | None:
    found = proof.alone(node)
    dims = _dims(node.argument(1, "dim"), found[1] + 1) if found else None
    return found[0].at(found[0].axis + (dims[0] <= found[0].axis)) if found and dims else None


def _moves(order: Callable[[Node, int], Sequence[int] | None]) -> Rule:
    """What puts dimensions into another order."""

    def rule(proof: Proof, node: Node) -> Lane | None:
        found = proof.alone(node)
        dims = order(node, found[1]) if found else None
        return found[0].at(dims.index(found[0].axis)) if found and dims is not None else None

    return rule


def _transposed(node: Node, rank: int) -> Sequence[int] | None:
    first, second = _dims(node.argument(1, "dim0"), rank), _dims(node.argument(2, "dim1"), rank)
    order = list(range(rank))
    if first is None or second is None:
        return None
    order[first[0]], order[second[0]] = second[0], first[0]
    return order


def _permuted(node: Node, rank: int) -> Sequence[int] | None:
    dims = _dims(node.argument(1, "dims"), rank)
    return dims if dims is not None and sorted(dims) == list(range(rank)) else None


def _turned(node: Node, rank: int) -> Sequence[int]:
    return list(range(rank))[::-1]


def _joins(proof: Proof, node: Node) -> Lane | None:
    """cat, stack: of values whose batch is at the same place."""
    parts, new = node.args[0] if node.args else None, node.op == "aten.stack.default"
    if not isinstance(parts, tuple) or not all(isinstance(part, Value) for part in parts):
        return None
    lanes = {(proof.lanes[part.value], proof.rank(part.value)) for part in parts if isinstance(part, Value)}
    if len(lanes) != 1:
        return None
    ((lane, rank),) = lanes
    dims = _dims(0 if node.argument(1, "dim") is None else node.argument(1, "dim"), rank + new)
    if dims is None or (not new and lane.axis in dims):
        return None
    return lane.at(lane.axis + (new and dims[0] <= lane.axis))


def _view(proof: Proof, node: Node) -> Lane | None:
    source, sizes = (*node.args, None, None)[:2]
    if not isinstance(source, Value) or source.value not in proof.lanes or not isinstance(sizes, tuple):
        return None
    return _reshaped(proof, source.value, [None if size == -1 else proof.given(size) for size in sizes], sizes)


def _flatten(proof: Proof, node: Node) -> Lane | None:
    found, source = proof.alone(node), node.args[0]
    if not found or not found[1] or not isinstance(source, Value):
        return None
    start, end = node.argument(1, "start_dim"), node.argument(2, "end_dim")
    first, last = (_dims(given if given is not None else e, found[1]) for given, e in ((start, 0), (end, -1)))
    if first is None or last is None or first[0] > last[0]:
        return None
    old = proof.sizes(source.value)
    merged = old[first[0] : last[0] + 1]
    one = Count(math.prod(size.times for size in merged), any(size.batches for size in merged))
    return _reshaped(proof, source.value, [*old[: first[0]], one, *old[last[0] + 1 :]], ())


def _reshaped(proof: Proof, source: str, sizes: list[Count | None], given: Sequence[Argument]) -> Lane | None:
    """The lane when elements in their order get other sizes; None among these stands for -1."""
    old, lane = proof.sizes(source), proof.lanes[source]
    before = math.prod(size.times for size in old[: lane.axis]) * lane.outer
    behind = lane.inner * math.prod(size.times for size in old[lane.axis + 1 :])
    unknown = [i for i, size in enumerate(sizes) if size is None]
    if len(unknown) > 1 or any(given[i] != -1 for i in unknown):
        return None
    known = [size for size in sizes if size is not None]
    batched = sum(size.batches for size in known)
    total = math.prod(size.times for size in known)
    if total < 1 or (before * behind) % total or batched + len(unknown) < 1 or batched > 1:
        return None
    whole = [size or Count(before * behind // total, not batched) for size in sizes]
    axis = next(i for i, size in enumerate(whole) if size.batches)
    outside, inside = (math.prod(size.times for size in part) for part in (whole[:axis], whole[axis + 1 :]))
    if before % outside or behind % inside or math.prod(size.times for size in whole) != before * behind:
        return None
    return Lane(axis, before // outside, behind // inside)


def _unflatten(proof: Proof, node: Node) -> Lane | None:
    found, sizes = proof.alone(node), node.argument(2, "sizes")
    dims = _dims(node.argument(1, "dim"), found[1]) if found else None
    if not found or dims is None or dims[0] == found[0].axis or not isinstance(sizes, tuple):
        return None
    return found[0].at(found[0].axis + (len(sizes) - 1 if dims[0] < found[0].axis else 0))


def _expand(proof: Proof, node: Node) -> Lane | None:
    """A value for more than it was; or a parameter for every example."""
    source, given = (*node.args, None, None)[:2]
    if not isinstance(given, tuple) or node.kwargs:
        return None
    sizes = [proof.given(size) for size in given]
    batched = [i for i, size in enumerate(sizes) if size is not None and size.batches]
    if None in sizes or len(batched) > 1:
        return None
    if isinstance(source, ParameterRef):
        count = sizes[batched[0]] if batched else None
        return Lane(batched[0], 1, count.times) if count is not None and count.times > 0 else None
    if not isinstance(source, Value) or source.value not in proof.lanes:
        return None
    lane = proof.lanes[source.value]
    axis = len(given) - proof.rank(source.value) + lane.axis
    if axis < 0 or batched not in ([], [axis]):
        return None
    wanted = Count(lane.outer * lane.inner, True) if batched else Count(-1)
    return lane.at(axis) if sizes[axis] == wanted else None


def _named(rule: Rule, *names: str) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names}


SIZED = ("aten.view.default", "aten.reshape.default", "aten.expand.default")
"""Operations whose sizes may depend on the batch."""

RULES: dict[str, Rule] = {
    **{
        f"aten.{name}.default": _alike
        for name in (
            *("clone", "detach", "alias", "contiguous", "dropout", "neg", "square", "abs", "logical_not"),
            *("relu", "relu6", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "clamp", "clamp_min", "clamp_max"),
            *("exp", "log", "sqrt", "rsqrt", "reciprocal", "sigmoid", "log_sigmoid", "tanh", "erf", "gelu", "silu"),
            *("mish", "softplus", "elu", "celu", "selu"),
        )
    },
    **_named(_alike, "pow.Tensor_Scalar", "rsub.Scalar"),
    **_named(_alike, *(f"{name}.Scalar" for name in ("add", "sub", "mul", "div", "lt", "le", "gt", "ge", "eq", "ne"))),
    **_named(_elementwise, *(f"{n}.Tensor" for n in ("add", "sub", "mul", "div", "lt", "le", "gt", "ge", "eq", "ne"))),
    **_named(_linear, "linear.default"),
    **_named(_matmul, "matmul.default", "mm.default", "bmm.default"),
    **_named(_attention, "scaled_dot_product_attention.default"),
    **_named(_images(1), "conv1d.default", "conv_transpose1d.default", "reflection_pad1d.default"),
    **_named(
        _images(2), "conv2d.default", "conv_transpose2d.input", "pixel_shuffle.default", "pixel_unshuffle.default"
    ),
    **_named(_images(3), "conv3d.default"),
    **{
        f"aten.{kind}_pool{n}d.default": _images(n)
        for kind in ("avg", "max", "adaptive_avg", "adaptive_max")
        for n in (1, 2, 3)
    },
    **_named(_channels, "group_norm.default", "channel_shuffle.default", "prelu.default"),
    **_named(_last_dimensions, "layer_norm.default", "rms_norm.default"),
    **_named(_pads, "pad.default", "constant_pad_nd.default", "reflection_pad2d.default", "replication_pad2d.default"),
    **_named(_beside(1, "dim"), "softmax.int", "log_softmax.int", "cumsum.default", "narrow.default"),
    **_named(_beside(1, "dim", -1), "glu.default"),
    **_named(_beside(1, "dims"), "flip.default"),
    **_named(_beside(2, "dim", 0), "chunk.default", "split.Tensor", "split_with_sizes.default"),
    **_named(_slice, "slice.Tensor"),
    **_named(_reduces("dim"), "sum.dim_IntList", "mean.dim", "amax.default", "amin.default"),
    **_named(_takes_one, "select.int", "unbind.int"),
    **_named(_squeeze, "squeeze.dim", "squeeze.dims"),
    **_named(_unsqueeze, "unsqueeze.default"),
    **_named(_moves(_transposed), "transpose.int"),
    **_named(_moves(_permuted), "permute.default"),
    **_named(_moves(_turned), "t.default"),
    **_named(_joins, "cat.default", "stack.default"),
    **_named(_view, *(name.removeprefix("aten.") for name in SIZED[:2])),
    **_named(_flatten, "flatten.using_ints"),
    **_named(_unflatten, "unflatten.int"),
    **_named(_expand, "expand.default"),
}
