"""Graphs: what is exported computes what the model computes, on shares too; whatever else comes is refused."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encml import Session, share
from encml.errors import EncmlError, InvalidTensor, ServingError, UnsupportedOperation
from encml.net.local import LocalTransport
from encml.serving.export import export_model
from encml.serving.graph import MAX_ELEMENTS, MAX_JSON_BYTES, Graph
from encml.serving.operations import NUMBERS, OPERATIONS, PICKS, operation
from encml.serving.separable import separable
from encml.tensor.table import HANDLERS


class Mixed(nn.Module):
    """Views by batch size, a buffer, a constant, an in-place step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, stride=2, groups=1)
        self.linear = nn.Linear(3 * 3 * 3, 5)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.conv(x))
        x = self.linear(x.view(x.size(0), -1)) * self.scale
        x = x + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        return x - x.mean(1, keepdim=True)


class Across(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class ByBatchSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[0]


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.t() + 1).t()


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def small(inplace: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.AvgPool2d(2),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(64, 3),
    )


MODELS: list[tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = [
    (small, (2, 8, 8), True),
    (Mixed, (2, 8, 8), True),
    (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), (6,), True),
    (lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2)), (4,), True),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(16, 2)), (4, 4, 4), True),
    (nn.Identity, (3,), True),
    (Across, (4,), False),
    (ByBatchSize, (4,), False),
    (Transposed, (4,), True),
]


@pytest.mark.parametrize(("make", "shape", "_apart"), MODELS)
def test_a_graph_computes_what_its_model_does(
    make: Callable[[], nn.Module], shape: tuple[int, ...], _apart: bool
) -> None:
    torch.manual_seed(0)
    model = make()
    graph, parameters = export_model(model, torch.randn(1, *shape))
    again = Graph.from_json(graph.model_dump_json())
    assert again == graph
    session = Session(LocalTransport())
    shared = {name: share(value, session=session) for name, value in parameters.items()}
    for batch in (1, 4):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected = model.eval()(x)
            assert torch.allclose(again.run(parameters, x), expected, atol=1e-6)
            private = again.run(shared, share(x, session=session)).reveal()
        assert tuple(expected.shape[1:]) == again.output_shape
        assert torch.allclose(private, expected, atol=2e-3)


@pytest.mark.parametrize(("make", "shape", "apart"), MODELS)
def test_batches_are_shared_only_where_rows_stay_apart(
    make: Callable[[], nn.Module], shape: tuple[int, ...], apart: bool
) -> None:
    graph, _ = export_model(make(), torch.randn(2, *shape))
    assert separable(graph) is apart


def test_export_leaves_the_model_as_it_was() -> None:
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    graph, _ = export_model(model, torch.randn(2, 2, 8, 8))
    assert model.training
    assert model[4].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any("_.default" in node.op for node in graph.nodes)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.RReLU())), r"1\.0 \(RReLU\): aten.rrelu"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), r"1 \(BatchNorm1d\).*mixes"),
        (nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4)), "Sequential"),
        (Branches(), "Branches"),
        (TwoInputs(), "TwoInputs"),
        (nn.Sequential(nn.Linear(5, 4)), "Sequential"),
    ],
)
def test_what_cannot_be_served_is_found_at_the_owner(model: nn.Module, named: str) -> None:
    with pytest.raises(UnsupportedOperation, match=named):
        export_model(model, torch.randn(2, 4))


def test_a_model_beyond_the_fixed_point_range_is_found_at_the_owner() -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight[0, 0] = 2.0**40
    with pytest.raises(InvalidTensor, match=r"weight.*range"):
        export_model(model, torch.randn(2, 4))
    wide = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 4))
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.fill_(2.0**14)
    with pytest.raises(InvalidTensor, match="fixed point is off by"):
        export_model(wide, torch.full((2, 4), 2.0**14))
    with pytest.raises(InvalidTensor, match="expected floats"):
        export_model(wide, torch.ones(2, 4, dtype=torch.int64))


def test_every_operation_works_on_secrets_and_changes_nothing_in_place() -> None:
    for name in OPERATIONS:
        found: Any = operation(name)
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(found.name(), "CompositeImplicitAutograd")
        assert found in HANDLERS or composite, name
        assert not found._schema.is_mutable, name
        assert len(found._schema.returns) == 1 or name in PICKS, name
    with pytest.raises(KeyError):
        operation("aten.from_file.default")
    for name in NUMBERS:
        assert operation(name)(7, 2) == {"add": 9, "sub": 5, "mul": 14, "floordiv": 3}[name.removeprefix("number.")]
        with pytest.raises(TypeError, match="whole numbers"):
            operation(name)("7", 2)
    with pytest.raises(ValueError, match="beyond"):
        operation("number.mul")(2**40, 2**40)


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    graph, _ = export_model(small(inplace=False), torch.randn(2, 2, 8, 8))
    found: dict[str, Any] = json.loads(graph.model_dump_json())
    return found


def changed(good: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> str:
    graph = copy.deepcopy(good)
    change(graph)
    return json.dumps(graph)


REFUSED: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda g: g.update(version=2), "version"),
    (lambda g: g.update(extra=1), "extra"),
    (lambda g: g.pop("nodes"), "nodes"),
    (lambda g: g.update(output="nothing"), "nothing"),
    (lambda g: g.update(output_shape=[4]), "expected"),
    (lambda g: g.update(input_shape=[2, 8, 9, 1]), "conv2d"),
    (lambda g: g.update(input_shape=[MAX_ELEMENTS, 2, 2]), "conv2d|large"),
    (lambda g: g.update(input_shape=[2.0, 8, 8]), "input_shape"),
    (lambda g: g["parameters"].append(g["parameters"][0]), "one name"),
    (lambda g: g["parameters"][0].update(shape=[-1]), "shape"),
    (lambda g: g["nodes"][0].update(op="aten.from_file.default"), "from_file"),
    (lambda g: g["nodes"][0].update(op="os.system"), "os.system"),
    (lambda g: g["nodes"][0].update(op="aten.relu_.default"), "relu"),
    (lambda g: g["nodes"][1].update(args=[{"value": "flatten"}, [2, 2]]), "flatten"),
    (lambda g: g["nodes"][1].update(args=[{"parameter": "none"}, [2, 2]]), "none"),
    (lambda g: g["nodes"][1].update(args=[{"value": "conv2d"}, [4096, 4096], [1, 1], [2048, 2048]]), "window"),
    (
        lambda g: g["nodes"][1].update(
            args=[{"value": "conv2d"}], kwargs={"kernel_size": [4096, 4096], "stride": [1, 1], "padding": [2048, 2048]}
        ),
        "window",
    ),
    (lambda g: g["nodes"][1].update(args=[{"value": "conv2d"}, "2"]), "args"),
    (lambda g: g["parameters"][0].update(shape=[MAX_ELEMENTS] * 8), "large"),
    (lambda g: g.update(input_shape=[MAX_ELEMENTS] * 8), "large"),
    (lambda g: g["nodes"][1].update(args=[{"value": "conv2d"}, 10**30]), "AvgPool2d"),
    (lambda g: g["nodes"][1].update(args=[{"value": "conv2d"}, 4096, 1, 2048]), "window"),
    (lambda g: g["nodes"][1].update(name="conv2d"), "two values"),
    (lambda g: g["nodes"][1].update(name="input"), "two values"),
    (lambda g: g["nodes"][0]["kwargs"].update(nothing=1), "conv2d"),
    (lambda g: g["nodes"][4].update(args=[{"value": "flatten"}, 0.5, True]), "training"),
    (
        lambda g: g["nodes"].append(
            {"name": "big", "op": "aten.repeat.default", "args": [{"value": "linear"}, [2**20, 2**20]]}
        ),
        "large",
    ),
    (
        lambda g: g["nodes"].append(
            {"name": "big", "op": "aten.repeat.default", "args": [{"value": "linear"}, [2**62, 2**62]]}
        ),
        "big|large",
    ),
]


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_a_bad_graph_is_refused_by_name(
    good: dict[str, Any], change: Callable[[dict[str, Any]], object], named: str
) -> None:
    Graph.from_json(json.dumps(good))
    with pytest.raises((ServingError, UnsupportedOperation), match=named):
        Graph.from_json(changed(good, change))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "\ufeff{}",
        "[" * 100_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        "9" * 10_000,
        '{"format":"encml-graph","version":1,"input_shape":[NaN]}',
        " " * (MAX_JSON_BYTES + 1),
    ],
    ids=range(10),
)
def test_what_is_no_graph_is_refused(text: str) -> None:
    with pytest.raises(ServingError):
        Graph.from_json(text)


def test_a_graph_made_without_json_is_checked_too() -> None:
    with pytest.raises(ServingError, match="no value"):
        Graph(input_shape=(1,), output_shape=(1,), parameters=(), nodes=(), output="x")


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63 - 1,
    -(2**63),
    2**64,
    1.5,
    1e308,
    "x",
    [],
    [[]],
    {},
    [0],
    [-1, -1],
]


def accepted(text: str | bytes) -> bool:
    """Whether the text is a graph; anything but an error of ours fails the test."""
    try:
        Graph.from_json(text)
    except EncmlError:
        return False
    return True


def test_fuzzed_graphs_never_get_further_than_their_error(good: dict[str, Any]) -> None:
    rng = random.Random(5)
    found = []
    for _ in range(600):
        graph = copy.deepcopy(good)
        for _ in range(rng.randint(1, 3)):
            mutate(graph, rng)
        found.append(accepted(json.dumps(graph)))
    assert 0 < sum(found) < len(found) / 2


def mutate(graph: dict[str, Any], rng: random.Random) -> None:
    """Change one thing somewhere in a JSON tree."""
    place: Any = graph
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and rng.random() < 0.8:
            place = place[key]
            continue
        kind = rng.randrange(5)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, list):
            place.insert(key, rng.choice(place))
        elif kind == 2 and isinstance(place[key], str) and place[key].startswith("aten."):
            place[key] = rng.choice(sorted(OPERATIONS))
        else:
            place[key] = rng.choice(ODD)
        return


def test_a_fuzzed_text_never_gets_further_than_its_error(good: dict[str, Any]) -> None:
    rng = random.Random(6)
    text = json.dumps(good).encode()
    for _ in range(300):
        data = bytearray(text[: rng.randint(0, len(text))] if rng.random() < 0.3 else text)
        for _ in range(rng.randint(0, 5)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        accepted(bytes(data))
