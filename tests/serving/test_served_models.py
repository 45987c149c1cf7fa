"""Usual architectures, served: residual networks, inverted residuals and Transformers; their rows kept apart."""

from __future__ import annotations

import copy
import importlib
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import encml.data.vision
from encml import Session, share
from encml.errors import EncmlError, ServingError, UnsupportedOperation
from encml.models import NETWORKS
from encml.net.local import LocalTransport
from encml.serving import Cluster, Graph
from encml.serving.export import export_model
from encml.serving.model_store import share_model
from encml.serving.separable import separable

assert encml.data.vision  # which makes torchvision work in an installation without CUDA
models: Any = importlib.import_module("torchvision.models")


class Residual(nn.Module):
    """The block of a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


class Classifier(nn.Module):
    """A Transformer over a sequence with learned positions."""

    def __init__(self, activation: str = "relu", norm_first: bool = False, token: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8,
            2,
            16,
            batch_first=True,
            norm_first=norm_first,
            activation=activation,  # type: ignore[arg-type]
        )
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.token = nn.Parameter(torch.randn(1, 1, 8)) if token else None
        self.positions = nn.Parameter(torch.randn(1, 5 + token, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.encoder(x + self.positions)
        result: Tensor = self.head(x.mean(1) if self.token is None else x[:, 0])
        return result


class ByHand(nn.Module):
    """Attention as it is often written: one projection, cut into three."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (part.reshape(batch, length, 2, width // 2).transpose(1, 2) for part in self.into(x).chunk(3, dim=-1))
        weights = torch.softmax(q @ k.transpose(-2, -1) / 2, -1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


def residual_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Residual(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def inverted_residuals() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU6(inplace=True),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def loose_norms() -> nn.Module:
    """Batch norms with nothing before them to be folded into."""
    return nn.Sequential(
        nn.BatchNorm1d(5), nn.MaxPool1d(2), nn.BatchNorm1d(5, affine=False), nn.AdaptiveMaxPool1d(2), nn.Flatten()
    )


def activations() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 6), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus()),
        *(nn.LeakyReLU(), nn.ELU(), nn.Hardtanh(), nn.Hardsigmoid(), nn.PReLU(), nn.Softmax(1), nn.GLU(1)),
    )


def pads_and_shuffles() -> nn.Module:
    return nn.Sequential(
        *(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4), nn.ReflectionPad2d(1), nn.ZeroPad2d(1)),
        *(nn.PixelShuffle(2), nn.GroupNorm(1, 1), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.LogSoftmax(1)),
    )


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (residual_network, (3, 10, 10)),
    "inverted": (inverted_residuals, (3, 6, 6)),
    "norms": (loose_norms, (5, 8)),
    "activations": (activations, (6,)),
    "pads": (pads_and_shuffles, (3, 4, 4)),
    "encoder": (Classifier, (5, 8)),
    "norm first": (lambda: Classifier("gelu", norm_first=True, token=True), (5, 8)),
    "by hand": (ByHand, (5, 8)),
}


def trained(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """The model in evaluation mode, with running statistics and affine weights unlike those it began with."""
    torch.manual_seed(3)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(3):
            model(1 + 2 * torch.randn(16, *shape))
    return model.eval()


def run_in_shares(graph: Graph, parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, int]:
    """The scores, and the rounds that they took."""
    session = Session(LocalTransport())
    shared = {name: share(value, session=session) for name, value in parameters.items()}
    with torch.no_grad():
        secret = share(x, session=session)
        with session.ledger.measure() as spent:
            scores: Any = graph.run(shared, secret)
            scores = scores.reveal()
    return scores, spent[0].rounds


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_the_model_and_rows_stay_apart(name: str) -> None:
    make, shape = ARCHITECTURES[name]
    model = trained(make, shape)
    graph, parameters = export_model(model, torch.randn(1, *shape))
    assert not any("norm" in node.op and "batch" in node.op for node in graph.nodes)
    assert separable(graph)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(graph.run(parameters, x), expected, atol=1e-4)
    scores, _ = run_in_shares(graph, parameters, x)
    assert float((scores - expected).abs().max()) < 2e-3


def test_a_batch_norm_behind_a_convolution_or_a_linear_layer_costs_nothing() -> None:
    for layer, norm, shape in (
        (nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), (2, 5, 5)),
        (nn.Linear(4, 3), nn.BatchNorm1d(3), (4,)),
    ):
        model = trained(lambda layer=layer, norm=norm: nn.Sequential(layer, norm), shape)  # type: ignore[misc]
        with_norm = export_model(model, torch.randn(1, *shape))
        without = export_model(nn.Sequential(layer), torch.randn(1, *shape))
        x = torch.randn(2, *shape)
        assert run_in_shares(*with_norm, x)[1] == run_in_shares(*without, x)[1]
    # A layer whose output is used once more keeps its weights.
    model = trained(lambda: TwiceUsed(), (2, 5, 5))
    _, parameters = export_model(model, torch.randn(1, 2, 5, 5))
    assert {"conv.weight", "conv.bias"} <= parameters.keys()
    assert all("running" not in name and "tracked" not in name for name in parameters)


class TwiceUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


def test_three_parties_serve_a_residual_network_and_a_transformer() -> None:
    with Cluster.local(timeout=20.0) as cluster, cluster.client() as client:
        for name in ("residual", "encoder"):
            make, shape = ARCHITECTURES[name]
            model = trained(make, shape)
            cluster.share(model, torch.randn(1, *shape), name)
            cluster.serve(name=name)
            x = torch.randn(3, *shape)
            with torch.no_grad():
                expected = model(x)
            graph, parameters = export_model(model, torch.randn(1, *shape))
            costs = []
            for _ in range(2):
                scores = client.query_model(x, model=name)
                assert float((scores - expected).abs().max()) < 2e-3
                assert client.last_cost is not None
                costs.append(client.last_cost.rounds)
            # Revealing takes one round more; nothing about the weights is worked out for the first request only.
            assert costs == [run_in_shares(graph, parameters, x)[1] - 1] * 2


def test_three_parties_serve_the_networks_on_which_training_is_compared() -> None:
    """Maxima of 2 x 2, strides, linear layers of images; each request of the same rounds as in one process."""
    torch.manual_seed(4)
    x = torch.rand(3, 1, 28, 28)
    with Cluster.local(timeout=20.0) as cluster, cluster.client() as client:
        for name in ("network_a", "network_b", "network_c", "network_d"):
            model = NETWORKS[name]().eval()
            graph, parameters = export_model(model, x)
            assert separable(graph)
            cluster.share(model, x, name)
            cluster.serve(name=name)
            with torch.no_grad():
                expected = model(x)
            scores = client.query_model(x, name)
            # Some 800 products a sum, each rounded to 2^-17 in its weight, and three layers of truncations.
            assert float((scores - expected).abs().max()) < 5e-4
            assert client.last_cost is not None
            # Revealing takes one round more.
            assert client.last_cost.rounds == run_in_shares(graph, parameters, x)[1] - 1


@pytest.mark.parametrize(
    ("make", "nodes"),
    [
        (lambda: models.resnet18(weights=None, num_classes=10), 50),
        pytest.param(lambda: models.mobilenet_v2(weights=None, num_classes=10), 102, marks=pytest.mark.slow),
        pytest.param(
            lambda: nn.Sequential(models.vgg11_bn(weights=None).features, nn.Flatten(), nn.Linear(512, 10)),
            30,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["resnet18", "mobilenet_v2", "vgg11_bn"],
)
def test_networks_of_torchvision_can_be_served(make: Callable[[], nn.Module], nodes: int) -> None:
    """Exporting tries the model on shares, and raises if it is off."""
    torch.manual_seed(0)
    graph, _ = export_model(make(), torch.randn(1, 3, 32, 32))
    assert len(graph.nodes) <= nodes
    assert separable(graph)


def test_what_a_proof_needs_is_not_taken_for_granted() -> None:
    class BatchAsLength(nn.Module):
        """An attention over (length, batch, width) that takes the batch for the length."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.attention(x, x, x)[0]
            return result

    class Heads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 2).softmax(0).reshape(x.shape)

    class ByBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(-1, 8).flip(0).reshape(-1, 4, 2)

    for model, shape in ((BatchAsLength(), (5, 8)), (Heads(), (4, 2)), (ByBatch(), (4, 2))):
        assert not separable(export_model(model, torch.randn(1, *shape))[0])


def test_proofs_hold_for_graphs_made_up_at_random() -> None:
    """Wherever rows are said to stay apart, each row alone gives what it gives in company."""
    rng = random.Random(8)
    graphs = []
    for name in ("encoder", "by hand", "residual"):
        make, shape = ARCHITECTURES[name]
        graph, parameters = export_model(trained(make, shape), torch.randn(1, *shape))
        graphs.append((json.loads(graph.model_dump_json()), parameters))
    proven = 0
    for _ in range(600):
        source, parameters = rng.choice(graphs)
        changed = copy.deepcopy(source)
        for _ in range(rng.randint(1, 2)):
            disturb(changed, rng)
        try:
            graph = Graph.from_json(json.dumps(changed))
        except EncmlError:
            continue
        if not separable(graph):
            continue
        proven += 1
        x = torch.randn(3, *graph.input_shape)
        with torch.no_grad():
            together = graph.run(parameters, x)
            each = torch.cat([graph.run(parameters, row) for row in x.split(1)])
        assert torch.allclose(together, each, atol=1e-4, equal_nan=True), changed
    assert proven > 20


def test_proofs_hold_for_chains_of_operations() -> None:
    """The same for operations in any order, along any dimensions."""
    rng = random.Random(9)
    torch.manual_seed(9)
    p = torch.randn(4, 4)
    proven = 0
    for _ in range(1200):
        x = torch.randn(3, 2, 4)
        nodes = [{"name": "size", "op": "aten.sym_size.int", "args": [{"value": "input"}, 0]}]
        names = ["input"]
        for step in range(rng.randint(2, 5)):
            op, *arguments = rng.choice(STEPS)
            filled = [rng.randint(-3, 2) if a == "dim" else {"value": rng.choice(names[-2:])} if a == "x" else a
                      for a in arguments]  # fmt: skip
            if op == "aten.cat.default":
                filled = [filled[:2], filled[2]]
            names.append(f"step{step}")
            nodes.append({"name": names[-1], "op": op, "args": filled})
        graph = {
            "input_shape": [2, 4],
            "parameters": [{"name": "p", "shape": [4, 4]}],
            "nodes": nodes,
            "output": names[-1],
        }
        for shape in ([2, 4], [4, 2], [8], [4], [2], [1, 2, 4], [2, 1]):
            try:
                found = Graph.from_json(json.dumps(graph | {"output_shape": shape}))
            except EncmlError:
                continue
            if separable(found):
                proven += 1
                with torch.no_grad():
                    together = found.run({"p": p}, x)
                    each = torch.cat([found.run({"p": p}, row) for row in x.split(1)])
                assert torch.allclose(together, each, atol=1e-4, rtol=1e-4), graph
            break
    assert proven > 20


P = {"parameter": "p"}
SIZE = {"value": "size"}
STEPS: list[list[Any]] = [
    ["aten.softmax.int", "x", "dim"],
    ["aten.mean.dim", "x", "dim", True],
    ["aten.cumsum.default", "x", "dim"],
    ["aten.transpose.int", "x", "dim", "dim"],
    ["aten.transpose.int", "x", 0, 1],
    ["aten.transpose.int", "x", 0, 1],
    ["aten.transpose.int", "x", -1, -2],
    ["aten.cat.default", "x", "x", "dim"],
    ["aten.add.Tensor", "x", "x"],
    ["aten.mul.Tensor", "x", P],
    ["aten.linear.default", "x", P],
    ["aten.matmul.default", "x", "x"],
    ["aten.scaled_dot_product_attention.default", "x", "x", "x"],
    ["aten.layer_norm.default", "x", [4]],
    ["aten.select.int", "x", "dim", 0],
    ["aten.unsqueeze.default", "x", "dim"],
    ["aten.view.default", "x", [SIZE, -1]],
    ["aten.reshape.default", "x", [SIZE, 2, 4]],
    ["aten.reshape.default", "x", [-1, 4, 2]],
    ["aten.reshape.default", "x", [2, -1, 4]],
    ["aten.reshape.default", "x", [-1, 4]],
    ["aten.flatten.using_ints", "x", "dim", "dim"],
]
"""Operations with "x" for one of the last two values and "dim" for any dimension."""


def disturb(graph: dict[str, Any], rng: random.Random) -> None:
    """Change a number, a reference or an operation of a node."""
    node = rng.choice(graph["nodes"])
    place = rng.randrange(len(node["args"]))
    argument = node["args"][place]
    others = [{"value": other["name"]} for other in graph["nodes"]]
    if isinstance(argument, list) and argument:
        kind = rng.randrange(3)
        if kind == 0:
            rng.shuffle(argument)
        else:
            argument[rng.randrange(len(argument))] = rng.choice([-1, 0, 1, 2, 5, 8, 10, *others])
    elif isinstance(argument, int):
        node["args"][place] = rng.choice([-3, -2, -1, 0, 1, 2, 3])
    elif rng.random() < 0.5:
        node["args"][place] = rng.choice(others)
    else:
        node["op"] = rng.choice([other["op"] for other in graph["nodes"]])


CAUSAL = torch.triu(torch.full((5, 5), -torch.inf), 1)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", CAUSAL)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, src_mask=self.mask)
        return result


class Chosen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("chosen", torch.tensor([True, False, True, True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.chosen


def test_what_a_causal_mask_hides_stays_hidden() -> None:
    model = Masked().eval()
    part, _, _ = share_model(model, torch.randn(1, 5, 8), "masked")
    graph, parameters = export_model(model, torch.randn(1, 5, 8))
    assert part.graph == graph
    x = torch.randn(2, 5, 8)
    scores, _ = run_in_shares(graph, parameters, x)
    with torch.no_grad():
        assert float((scores - model(x)).abs().max()) < 2e-3


@pytest.mark.parametrize(
    ("model", "shape", "error", "named"),
    [
        (nn.Sequential(nn.LSTM(8, 4, batch_first=True)), (5, 8), UnsupportedOperation, "lstm|zeros"),
        (nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 4), UnsupportedOperation, "mixes the examples"),
        (nn.InstanceNorm2d(3), (3, 4, 4), UnsupportedOperation, "instance_norm"),
        (nn.AdaptiveMaxPool2d(2, return_indices=True), (3, 4, 4), UnsupportedOperation, "only the first"),
        (Chosen(), (5,), UnsupportedOperation, "chosen is a torch.bool tensor"),
    ],
)
def test_what_is_refused_is_named(
    model: nn.Module, shape: tuple[int, ...], error: type[EncmlError], named: str
) -> None:
    with pytest.raises(error, match=named):
        export_model(model, torch.randn(1, *shape))


def attention(**changes: Any) -> dict[str, Any]:
    node = {
        "name": "out",
        "op": "aten.scaled_dot_product_attention.default",
        "args": [{"value": "input"}, {"value": "input"}, {"value": "input"}],
    }
    return node | changes


@pytest.mark.parametrize(
    ("node", "shape", "named"),
    [
        (attention(kwargs={"dropout_p": 0.5}), (2, 4, 4), "training"),
        (attention(pick=0), (2, 4, 4), "one tensor"),
        (attention(), (2, 2**14, 4), "too large"),
        (attention(op="aten.chunk.default", args=[{"value": "input"}, 2, 1]), (2, 4, 4), "several tensors"),
        (
            attention(op="aten.adaptive_max_pool2d.default", args=[{"value": "input"}, [2, 4]], pick=1),
            (2, 4, 4),
            "first",
        ),
        (attention(op="aten.max_pool2d.default", args=[{"value": "input"}, 300]), (2, 4, 4), "window"),
        (attention(op="aten.max_pool2d.default", args=[{"value": "input"}, 99, 1, 49]), (1, 99, 99), "too large"),
        (attention(op="aten.batch_norm.default"), (2, 4, 4), "batch_norm"),
    ],
)
def test_a_party_refuses_what_no_owner_would_send(node: dict[str, Any], shape: tuple[int, ...], named: str) -> None:
    graph = {"input_shape": shape, "output_shape": shape, "parameters": [], "nodes": [node], "output": "out"}
    with pytest.raises((ServingError, UnsupportedOperation), match=named):
        Graph.from_json(json.dumps(graph))
