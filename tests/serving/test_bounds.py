"""Declared ranges: bits that no input from the range exceeds, fewer bytes for them, and other inputs refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_support import request_id
from torch import Tensor, nn

from encml import Session, share
from encml.errors import InvalidTensor, ServingError
from encml.models import NETWORKS
from encml.mpc.dealing import deal
from encml.net.ledger import Cost
from encml.net.local import LocalTransport
from encml.ring.fixed import encode
from encml.serving import Cluster, Graph, Status
from encml.serving.calls import Call, Calls
from encml.serving.export import export_model
from encml.serving.graph import COMPARING, INPUT, Value
from encml.serving.operations import operation
from encml.serving.wire import pack_parcel

BITS = 16


def on_shares(graph: Graph, parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Cost]:
    session = Session(LocalTransport(), seed=1)
    shared = {name: share(value, session=session) for name, value in parameters.items()}
    with torch.no_grad():
        secret = share(x, session=session)
        with session.ledger.measure() as spent:
            scores: Any = graph.run(shared, secret)
            scores = scores.reveal()
    assert session.comparison_bits is None
    return scores, spent[0]


def compared(graph: Graph, parameters: dict[str, Tensor], x: Tensor) -> Iterator[tuple[int, float]]:
    """The declared bits of each comparison, and the largest value that meets in it in float64."""
    values: dict[str, Any] = {INPUT: x.double()}
    plain = {name: value.double() for name, value in parameters.items()}

    def at(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return [at(item) for item in argument]
        return values[argument.value] if isinstance(argument, Value) else plain.get(
            getattr(argument, "parameter", ""), argument
        )  # fmt: skip

    for node in graph.nodes:
        arguments = [at(argument) for argument in node.args]
        result = operation(node.op)(*arguments, **{name: at(value) for name, value in node.kwargs.items()})
        values[node.name] = result if node.pick is None else result[node.pick]
        if node.comparison_bits is not None:
            yield node.comparison_bits, float(arguments[0].abs().max())


def corners(graph: Graph, parameters: dict[str, Tensor], low: float, high: float) -> Tensor:
    """Inputs from the range: random ones, its ends, and what drives the first weights as far as they go."""
    shape = graph.input_shape
    inputs = [low + (high - low) * torch.rand(4, *shape), torch.full((1, *shape), low), torch.full((1, *shape), high)]
    for weight in parameters.values():
        if weight.ndim > 1 and weight[0].numel() == inputs[0][0].numel():
            inputs.append(torch.where(weight.reshape(-1, *shape) > 0, high, low))
    return torch.cat(inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_input_from_the_range_exceeds_the_bits(name: str) -> None:
    torch.manual_seed(6)
    model = NETWORKS[name]().eval()
    x = torch.rand(2, 1, 28, 28)
    graph, parameters = export_model(model, x, input_range=(0.0, 1.0))
    plain_graph, _ = export_model(model, x)
    assert graph.input_range == (0.0, 1.0)
    assert plain_graph.input_range is None
    found = list(compared(graph, parameters, corners(graph, parameters, 0.0, 1.0)))
    assert len(found) == sum(node.op in COMPARING for node in graph.nodes)
    for bits, largest in found:
        assert largest < 2.0 ** (bits - 1 - BITS)
        # Not so many that nothing is won.
        assert bits <= 32
        assert bits % 4 == 0
    with torch.no_grad():
        expected = model(x)
    scores, cost = on_shares(graph, parameters, x)
    all_bits, whole = on_shares(plain_graph, parameters, x)
    assert float((scores - expected).abs().max()) < 1e-3
    assert float((all_bits - expected).abs().max()) < 1e-3
    assert cost.bytes < 0.85 * whole.bytes
    assert cost.rounds <= whole.rounds


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), low=st.sampled_from([-3.0, 0.0, 0.25]), width=st.sampled_from([0.5, 1.0, 20.0]))
def test_bounds_hold_for_networks_made_up_at_random(seed: int, low: float, width: float) -> None:
    torch.manual_seed(seed)
    pieces = [
        lambda: nn.Conv2d(2, 2, 3, padding=1),
        lambda: nn.MaxPool2d(2, 1, 1),
        lambda: nn.AvgPool2d(3, 1, 1),
        lambda: nn.BatchNorm2d(2),
        nn.ReLU,
        nn.ReLU6,
        nn.Hardtanh,
        nn.LeakyReLU,
        Mixed,
    ]
    model = nn.Sequential(*(pieces[int(k)]() for k in torch.randint(len(pieces), (5,))), nn.ReLU()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    x = low + width * torch.rand(3, 2, 4, 4)
    graph, parameters = export_model(model, x, input_range=(low, low + width))
    inputs = torch.cat([x, torch.where(torch.rand(8, 2, 4, 4) < 0.5, low, low + width)])
    for bits, largest in compared(graph, parameters, inputs):
        assert largest < 2.0 ** (bits - 1 - BITS)
    with torch.no_grad():
        expected = model(inputs)
    scores, _ = on_shares(graph, parameters, inputs)
    # Weights of up to a few hundred units of the last place, five layers of them.
    assert float((scores - expected).abs().max()) < 1e-2 * (1 + float(expected.abs().max()))


class Mixed(nn.Module):
    """Sums, differences and products of values with bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weight
        return (torch.cat([y, -x], 1)[:, 1:3] - 0.5 * x) + y.clamp(-1.0, 2.0) * (1 - x).clamp(min=-1.5).clamp(max=1.5)


def test_the_widest_input_meets_the_bits_and_beyond_them_results_are_wrong() -> None:
    model = nn.Sequential(nn.Linear(8, 1), nn.ReLU())
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x = torch.ones(1, 8)
    graph, parameters = export_model(model.eval(), x * 0.5, input_range=(-0.9, 0.99))
    assert [node.comparison_bits for node in graph.nodes] == [None, 20]
    assert on_shares(graph, parameters, 0.99 * x)[0].item() == pytest.approx(7.92, abs=1e-3)
    assert on_shares(graph, parameters, -0.9 * x)[0].item() == 0
    # 8 * 1.5 is beyond 2^3: the sign that is seen is not that of the value. So the bits are used.
    assert on_shares(graph, parameters, 1.5 * x)[0].item() == 0


def test_what_has_no_bounds_is_compared_in_all_bits() -> None:
    class AcrossTheBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x - x.mean(0, keepdim=True))

    x = torch.rand(2, 4)
    graph, _ = export_model(AcrossTheBatch(), x, input_range=(0.0, 1.0))
    assert graph.input_range is None
    graph, _ = export_model(nn.Sequential(nn.Softmax(1), nn.ReLU()), x, input_range=(0.0, 1.0))
    assert (graph.input_range, [node.comparison_bits for node in graph.nodes]) == (None, [None, None])
    # A known range begins anew where a value is cut off.
    graph, _ = export_model(nn.Sequential(nn.ReLU(), nn.Softmax(1), nn.Linear(4, 4), nn.ReLU()), x, input_range=(0, 1))
    assert [node.comparison_bits for node in graph.nodes] == [20, None, None, None]
    # More bits than values can have are none that help.
    wide = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    nn.init.constant_(wide[0].weight, 8000.0)
    graph, _ = export_model(wide, 0.01 * x, input_range=(0.0, 8000.0))
    assert graph.input_range is None


def test_wrong_ranges_are_refused() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.rand(2, 4)
    with pytest.raises(InvalidTensor, match=r"beyond the declared range of inputs from 0 to 0\.1"):
        export_model(model, x, input_range=(0.0, 0.1))
    graph, _ = export_model(model, x, input_range=(0.0, 1.0))
    text = json.loads(graph.model_dump_json())
    assert Graph.from_json(json.dumps(text)) == graph
    for change, problem in (
        ({"input_range": [1.0, 0.0]}, "its inputs go from 1.0 to 0.0"),
        ({"nodes": [{**node, "comparison_bits": 20} for node in text["nodes"]]}, "compares nothing"),
        ({"nodes": [{**node, "comparison_bits": 65} for node in text["nodes"]]}, "comparison_bits"),
    ):
        with pytest.raises(ServingError, match=problem):
            Graph.from_json(json.dumps({**text, **change}))


def test_clients_keep_to_the_range() -> None:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 3)).eval()
    x = torch.rand(5, 6)
    with torch.no_grad():
        expected = model(x)
    with Cluster.local(timeout=10.0) as cluster, cluster.client() as client:
        cluster.share(model, x, "free")
        assert cluster.share(model, x, "ranged", input_range=(0.0, 1.0)).input_range == (0.0, 1.0)
        sent = {}
        for name in ("free", "ranged"):
            cluster.serve(name=name)
            assert float((client.query_model(x, name) - expected).abs().max()) < 1e-3
            assert client.last_cost is not None
            sent[name] = sum(client.last_cost.sent_bytes)
        assert sent["ranged"] < 0.85 * sent["free"]
        for wrong in (x + 1, x - 0.5, x.clone().fill_(torch.nan)):
            with pytest.raises(InvalidTensor, match=r"takes values from 0 to 1, as its owner declared"):
                client.query_model(wrong, "ranged")
        assert client.query_model(x + 1, "free").shape == (5, 3)
        _parties_refuse_what_nobody_checked(cluster, x)
        # Another model under the same name: what the client checked is not what is asked for now.
        cluster.share(model, x, "ranged", input_range=(-2.0, 2.0))
        cluster.serve(name="ranged")
        with pytest.raises(InvalidTensor, match="takes inputs from -2 to 2; the client checked another range"):
            client.query_model(x, "ranged")
        assert client.query_model(x - 1, "ranged").shape == (5, 3)


def _parties_refuse_what_nobody_checked(cluster: Cluster, x: Tensor) -> None:
    bodies = [pack_parcel(parcel) for parcel in deal(encode(x, BITS))]
    with Calls(cluster.config, "client") as calls:
        for query in ({"shape": "5,6"}, {"shape": "5,6", "range": "0,1"}, {"shape": "5,6", "range": "-9.0,9.0"}):
            path = f"/models/ranged/queries/{request_id()}"
            with pytest.raises(InvalidTensor, match="takes inputs from 0 to 1"):
                calls.all([Call("POST", path, body, query) for body in bodies], 10)
    statuses = [status for status in cluster.status() if isinstance(status, Status)]
    assert {m.input_range for status in statuses for m in status.models if m.name == "ranged"} == {(0.0, 1.0)}
