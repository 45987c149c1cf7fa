"""What whole steps of training take, exactly: rounds, and bytes of all parties together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import encml
from encml import Session
from encml.models import network_a, network_b, network_c, network_d, seed_network
from encml.mpc.costs import COSTS
from encml.mpc.session import current_session
from encml.net.ledger import Cost
from encml.tensor.handlers.signs import AT_ONCE
from encml.tensor.shared import secret


def cross_entropy(scores: Tensor, hot: Tensor) -> Tensor:
    return F.cross_entropy(scores, hot)


def squares(scores: Tensor, hot: Tensor) -> Tensor:
    return F.mse_loss(scores, hot)


def step_cost(network: Callable[[], nn.Module], loss: Callable[[Tensor, Tensor], Tensor], batch: int) -> Cost:
    """Of the second step of stock SGD, secret one-hot labels, until the parameters are there."""
    torch.manual_seed(0)
    session, model = current_session(), encml.share(network())
    images = encml.share(torch.rand(batch, 1, 28, 28))
    hot = encml.share(F.one_hot(torch.arange(batch) % 10, 10).float())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        start = session.ledger.total
        optimizer.zero_grad()
        loss(model(images), hot).backward()
        optimizer.step()
        for p in model.parameters():
            secret(p).settle()
    return session.ledger.total - start


def sent(name: str, n: int, width: int) -> int:
    return COSTS[name].sent(n, width)


def rectified(n: int, declared: int | None) -> int:
    """Bytes of a product's truncation, its comparison with 0, and the selection."""
    if n <= AT_ONCE:
        compared = sent("negative_rows", n, 64 if declared is None else declared + 16)
    else:
        compared = sent("negative", n, 48 if declared is None else declared)
    return sent("product_truncate", n, 16) + compared + sent("select", n, 0)


@pytest.mark.parametrize("declared", [None, 32])
def test_network_a_by_its_squared_errors(declared: int | None) -> None:
    """Two hidden layers of 13 rounds each (12 with a declared range), 3 for the scores, 2 for their gradient (nobody
    looks at the loss), 3 for a gradient through each ReLU, 4 for the updates.

    The gradient of the scores is settled, so all others have 16 more fraction bits than they keep; 0.01 has 22.
    """
    with Session(seed=1, comparison_bits=declared):
        cost = step_cost(network_a, squares, 128)
    hidden, scores = 128 * 128, 128 * 10
    weights, biases = [784 * 128, 128 * 128, 128 * 10], [128, 128, 10]
    assert cost.rounds == (26 if declared is None else 24) + 3 + 2 + 6 + 4
    expected = 2 * rectified(hidden, declared) + sent("product_truncate", scores, 16) + sent("truncate", scores, 25)
    expected += 2 * sent("select_rows", hidden, 16)
    expected += sum((sent("scale_rows", n, 16) + sent("scale_rows", n, 22)) // 2 for n in weights)
    expected += sum(sent("truncate", n, 22) for n in biases)
    assert cost.bytes == expected


A_CROSS_ENTROPY = {None: (86, 3_416_055), 32: (84, 3_223_543)}


@pytest.mark.parametrize("declared", [None, 32])
def test_network_a_by_cross_entropy(declared: int | None) -> None:
    """As with squared errors, but for the 47 rounds of a softmax, its logarithm and its gradient."""
    with Session(seed=1, comparison_bits=declared):
        cost = step_cost(network_a, cross_entropy, 128)
    assert (cost.rounds, round(cost.bytes_per_party)) == A_CROSS_ENTROPY[declared]


CONVOLUTIONS = {
    ("b", 2, None): (135, 4162788),
    ("b", 2, 32): (130, 3789156),
    ("c", 2, None): (135, 17898172),
    ("c", 2, 32): (130, 17306500),
    ("d", 4, None): (83, 3805360),
    ("d", 4, 32): (82, 3727360),
}
"""Network, batch and declared range -> rounds and bytes of a step. Networks of pools have 2 tournaments of 2 levels."""


@pytest.mark.parametrize(("name", "batch", "declared"), CONVOLUTIONS)
def test_networks_with_convolutions(name: str, batch: int, declared: int | None) -> None:
    network = {"b": network_b, "c": network_c, "d": network_d}[name]
    with Session(seed=1, comparison_bits=declared):
        cost = step_cost(network, cross_entropy, batch)
    assert (cost.rounds, cost.bytes) == CONVOLUTIONS[name, batch, declared]


@pytest.mark.parametrize(("batch", "declared", "rounds", "most"), [(1, None, 36, 220e3), (1, 32, 35, 190e3)])
def test_the_seed_network_answers(batch: int, declared: int | None, rounds: int, most: float) -> None:
    """Three times a truncation with 2 more bits for the pooling, a comparison and a selection; then the scores."""
    with Session(seed=1, comparison_bits=declared) as session, torch.no_grad():
        model, images = encml.share(seed_network().eval()), encml.share(torch.rand(batch, 1, 28, 28))
        with session.ledger.measure() as spent:
            secret(model(images)).settle()
    expected = sent("product_truncate", 10 * batch, 16)
    for n in (batch * 16 * 14 * 14, batch * 32 * 7 * 7, batch * 64 * 3 * 3):
        beside = n <= AT_ONCE
        bits = (64 if beside else 48) if declared is None else declared + (18 if beside else 0)
        expected += sent("product_truncate", n, 18) + sent("select", n, 0)
        expected += sent("negative_rows" if beside else "negative", n, bits)
    assert (spent[0].rounds, spent[0].bytes) == (rounds, expected)
    assert spent[0].bytes_per_party < most


def test_a_batch_of_the_seed_network_by_its_formula() -> None:
    """64 images with a declared range of 28 bits: every layer is settled before it is compared, 10 MB at most."""
    sizes = [64 * 16 * 14 * 14, 64 * 32 * 7 * 7, 64 * 64 * 3 * 3]
    total = sum(sent("product_truncate", n, 18) + sent("negative", n, 28) + sent("select", n, 0) for n in sizes) + sent(
        "product_truncate", 640, 16
    )
    assert min(sizes) > AT_ONCE
    assert total / 3 < 10e6
