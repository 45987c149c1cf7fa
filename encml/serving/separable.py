"""Whether a model treats every example of a batch by itself, so that requests of several clients may share a batch.

Without this check a model such as ``x - x.mean(0)`` would mix one client's input into another's answer.
"""

from __future__ import annotations

import math

from encml.serving.graph import INPUT, Graph, Node, Value
from encml.serving.operations import ROWWISE

_VIEWS = ("aten.view.default", "aten.reshape.default")
_MINIMUM_DIMENSIONS = {"aten.conv2d.default": 4, "aten.avg_pool2d.default": 3, "aten.linear.default": 2}
"""With fewer, the leading dimension is not the batch to these operations."""


def separable(graph: Graph) -> bool:
    """True only where row k of the output provably depends on row k of the input alone. Errs on the side of False.

    By induction over the nodes: every tensor has the batch in front, for every size of it, and rows stay apart.
    """
    rowwise, batch_sizes = {INPUT}, set[str]()
    for node in graph.nodes:
        if node.op == "aten.sym_size.int":
            if node.args[1:] == (0,):
                batch_sizes.add(node.name)
        elif _keeps_rows(node, graph, rowwise, batch_sizes):
            rowwise.add(node.name)
        else:
            return False
    return graph.output in rowwise


def _keeps_rows(node: Node, graph: Graph, rowwise: set[str], batch_sizes: set[str]) -> bool:
    source = node.args[0] if node.args else None
    if node.op not in ROWWISE or not isinstance(source, Value) or source.value not in rowwise:
        return False
    shapes = graph.batch_of_three
    if node.op in _VIEWS:
        sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple) else ()
        if not sizes or not all(isinstance(size, int) for size in sizes[1:]):
            return False
        row = math.prod(shapes[source.value][1:])
        keeps_size = sizes[0] == -1 and math.prod(size for size in sizes[1:] if isinstance(size, int)) == row
        return keeps_size or (isinstance(sizes[0], Value) and sizes[0].value in batch_sizes)
    if node.op == "aten.flatten.using_ints":
        return len(node.args) > 1 and isinstance(node.args[1], int) and node.args[1] >= 1
    # No number here may depend on the batch: all values are tensors with the batch in front.
    taken = [reference.value for reference in node.references if isinstance(reference, Value)]
    if not all(value in rowwise for value in taken):
        return False
    if node.op in _MINIMUM_DIMENSIONS:
        return len(taken) == 1 and len(shapes[source.value]) >= _MINIMUM_DIMENSIONS[node.op]
    # Elementwise: values are aligned at the batch, parameters are broadcast over it.
    dimensions = len(shapes[node.name])
    parameters = {parameter.name: len(parameter.shape) for parameter in graph.parameters}
    added = [parameters[r.parameter] for r in node.references if not isinstance(r, Value)]
    return all(len(shapes[value]) == dimensions for value in taken) and all(n < dimensions for n in added)
