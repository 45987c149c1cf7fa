"""Whether a model treats every example of a batch by itself, so that requests of several clients may share a batch.

Without this check a model such as ``x - x.mean(0)`` would mix one client's input into another's answer. The proof is by
induction over the nodes: the input's batch is dimension 0, an operation has a rule that says where it is in the result,
or there is no proof.
"""

from __future__ import annotations

from encml.serving.graph import Graph, Node, Value
from encml.serving.lane_rules import RULES, SIZED
from encml.serving.lanes import Lane, Proof


def separable(graph: Graph) -> bool:
    """True only where row k of the output provably depends on row k of the input alone. Errs on the side of False."""
    proof = Proof(graph)
    return all(_extends(proof, node) for node in graph.nodes) and proof.lanes.get(graph.output) == Lane(0)


def _extends(proof: Proof, node: Node) -> bool:
    """Extend the proof by a node; whether that was possible."""
    if node.op == "aten.sym_size.int" or node.op.startswith("number."):
        count = proof.count(node)
        if count is not None:
            proof.counts[node.name] = count
        return count is not None
    if node.op not in SIZED and any(isinstance(r, Value) and r.value in proof.counts for r in node.references):
        return False
    rule = RULES.get(node.op)
    lane = None if rule is None else rule(proof, node)
    if lane is not None:
        proof.lanes[node.name] = lane
    return lane is not None
