"""Rounds of a federation: what they compute, whom they leave out, and that they learn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from federation import NAN, D, Fixed, clients, data, model, parameters, run, runner
from torch import Tensor, nn

from encml.data import load_subset, split_iid, to_float
from encml.errors import ProtocolError
from encml.federated import (
    AggregationSettings,
    Client,
    ClientSampling,
    ExamplePrivacy,
    FedAvg,
    FederatedRunner,
    FederatedServer,
    FedSGD,
    ServerStep,
)
from encml.federated.client import encode_update
from encml.federated.sealing import upload_bytes
from encml.federated.training import flat
from encml.models import seed_network
from encml.mpc.session import Session
from encml.net.local import LocalTransport
from encml.privacy.wraparound import NORM_LIMIT

# What a round computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rounds_of_fedavg_are_those_computed_in_the_clear(weighting: str, momentum: float) -> None:
    members = clients(4)
    federation = runner(members, weighting=weighting, server=ServerStep(0.7, momentum), seed=5)
    reference, velocity = model(), torch.zeros(D, dtype=torch.float64)
    for result in federation.run(3):
        updates, weights = [], []
        for client in members:
            seed = _seed_of(5, client.name, result.round)
            x, y = client._inputs, client._targets
            updates.append(client.training.run(reference, x, y, F.cross_entropy, seed).update.double())
            weights.append(client.examples if weighting == "examples" else 1)
        mean = sum(w * u for w, u in zip(weights, updates, strict=True)) / sum(weights)
        velocity = momentum * velocity + mean
        nn.utils.vector_to_parameters((flat(reference) + 0.7 * velocity).float(), reference.parameters())
        torch.testing.assert_close(parameters(federation), flat(reference), rtol=0, atol=1e-5)
        assert result.accepted == result.sampled == tuple(client.name for client in members)
        assert result.failed == {}
        assert result.epsilon is None


def _seed_of(seed: int, name: str, round_number: int) -> int:
    from_module = FederatedRunner.__init__.__globals__["_seed"]
    value: int = from_module(seed, "batches", name, round_number)
    return value


def test_fedsgd_is_gradient_descent_on_all_data() -> None:
    """Weighted by examples, a round is one full-batch step of the union of all clients' data."""
    members = clients(3, FedSGD(), size=1100)
    federation = runner(members, weighting="examples", server=ServerStep(0.5))
    central = model()
    optimizer = torch.optim.SGD(central.parameters(), lr=0.5)
    x, y = (torch.cat([data(i, 1100 + i)[k] for i in range(3)]) for k in range(2))
    for _ in federation.run(3):
        optimizer.zero_grad()
        F.cross_entropy(central(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(parameters(federation), flat(central), rtol=0, atol=3e-6)


def test_updates_beyond_the_clipping_norm_count_no_more_than_it() -> None:
    long = torch.zeros(D)
    long[0] = 25.0
    members = [Client("long", *data(0, 5), Fixed(long)), Client("zero", *data(1, 5), Fixed(torch.zeros(D)))]
    federation = runner(members, aggregation=AggregationSettings(clip=2.0))
    before = parameters(federation)
    run(federation, 1)
    moved = parameters(federation) - before
    assert 0.9999 < float(moved[0]) <= 1.0
    assert not moved[1:].any()


def test_updates_longer_than_the_ring_allows_are_scaled_down_by_their_client() -> None:
    encoded = encode_update(torch.full((40_000,), 3.0e4), 20)
    assert 0.999 * NORM_LIMIT < float(encoded.double().norm()) <= NORM_LIMIT
    short = torch.randn(40_000, dtype=torch.float64) / 200
    assert torch.equal(encode_update(short, 20), (short * 2**20).round().long())


def test_several_workers_compute_the_same() -> None:
    one, two = runner(clients(5)), runner(clients(5), workers=2)
    threads = torch.get_num_threads()
    run(one, 2)
    run(two, 2)
    assert torch.equal(parameters(one), parameters(two))
    assert torch.get_num_threads() == threads


def test_the_global_model_is_only_changed_by_the_server() -> None:
    members = clients(3)
    federation = runner(members)
    before = parameters(federation)
    context = federation._server.begin_round()
    members[0].upload(federation.model, context, federation._public_keys, 1)
    assert torch.equal(parameters(federation), before)


def test_results_report_what_was_sent() -> None:
    (result,) = run(runner(clients(3)), 1)
    assert result.round == 1
    assert result.uploaded == 3 * upload_bytes(D)
    assert result.released == 3 * 8 * D
    assert result.cost.rounds == 40
    assert result.cost.bytes > 0
    assert min(result.training_seconds, result.aggregation_seconds) > 0


# Clients that fail -------------------------------------------------------------------------------------------------

SECRET = "patient 4711 is ill"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Fixed(error=RuntimeError(SECRET)), "training failed: RuntimeError"),
        (Fixed(error=KeyError(SECRET)), "training failed: KeyError"),
        (Fixed(error=MemoryError(SECRET)), "training failed: MemoryError"),
        (Fixed(NAN), "training failed: InvalidTensor"),
        (Fixed(torch.full((D,), math.inf)), "training failed: InvalidTensor"),
        (Fixed(torch.cat([NAN[:1], torch.zeros(D - 1)])), "training failed: InvalidTensor"),
        (Fixed(torch.zeros(D + 1)), "training failed: ProtocolError"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_that_fails_is_left_out_and_reported(bad: Fixed, reason: str, workers: int) -> None:
    """With a reason that tells nothing of its data."""
    good = clients(2, Fixed())
    federation = runner([good[0], Client("bad", *data(7, 5), bad), good[1]], workers=workers)
    before = parameters(federation)
    for result in federation.run(2):
        assert result.sampled == ("client 0", "bad", "client 1")
        assert result.accepted == ("client 0", "client 1")
        assert dict(result.failed) == {"bad": reason}
    torch.testing.assert_close(parameters(federation) - before, torch.full((D,), 0.02), rtol=0, atol=2e-6)


def test_a_client_whose_upload_is_damaged_on_the_way_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = runner(clients(3, Fixed()))
    receive = FederatedServer.receive

    def damage(self: FederatedServer, client: str, upload: bytes) -> None:
        receive(self, client, upload[:-1] + bytes([upload[-1] ^ 1]) if client == "client 1" else upload)

    monkeypatch.setattr(FederatedServer, "receive", damage)
    (result,) = run(federation, 1)
    assert dict(result.failed) == {"client 1": "upload does not open"}
    assert result.accepted == ("client 0", "client 2")


def test_if_all_clients_fail_the_error_says_so_and_the_round_can_be_tried_again() -> None:
    members = clients(3, Fixed(NAN))
    federation = runner(members)
    before = parameters(federation)
    with pytest.raises(ProtocolError, match=r"round 1: all 3 clients failed \(training failed: InvalidTensor\)"):
        run(federation, 1)
    assert torch.equal(parameters(federation), before)
    assert federation.round == 0
    for client in members:
        client.training = Fixed()
    (result,) = run(federation, 1)
    assert result.round == 1


def test_an_interrupt_is_not_a_failed_client() -> None:
    federation = runner(clients(2, Fixed(error=KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(federation, 1)
    assert federation.round == 0


def test_a_second_upload_in_a_round_is_refused() -> None:
    members = clients(1)
    federation = runner(members)
    context = federation._server.begin_round()
    upload = members[0].upload(federation.model, context, federation._public_keys, 1)
    federation._server.receive("client 0", upload)
    with pytest.raises(ProtocolError, match="already uploaded in round 1"):
        federation._server.receive("client 0", upload)
    with pytest.raises(ProtocolError, match="not an upload"):
        federation._server.receive("client 1", upload[:-1])
    federation._server.begin_round()
    assert federation._server.uploads() == {}


# Sampling ----------------------------------------------------------------------------------------------------------


def test_a_fixed_count_of_clients_is_drawn_anew_each_round_and_repeatably() -> None:
    drawn = [
        [r.sampled for r in runner(clients(6, Fixed()), sampling=ClientSampling(count=2), seed=s).run(8)]
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {len(names) for names in drawn[0]} == {2}
    assert len(set(drawn[0])) > 2


def test_poisson_sampling_is_not_repeatable_and_may_draw_nobody() -> None:
    def drawn() -> list[tuple[str, ...]]:
        return [r.sampled for r in runner(clients(5, Fixed()), sampling=ClientSampling(rate=0.3), seed=1).run(20)]

    one, two = drawn(), drawn()
    assert one != two
    assert min(map(len, one + two)) == 0
    assert 30 < sum(map(len, one + two)) < 90  # 60 expected of 200, standard deviation 6.5


def test_a_round_without_clients_and_without_noise_changes_nothing() -> None:
    federation = runner(clients(1, Fixed()), sampling=ClientSampling(rate=1e-9))
    before = parameters(federation)
    (result,) = run(federation, 1)
    assert (result.sampled, result.accepted, dict(result.failed), result.uploaded) == ((), (), {}, 0)
    assert torch.equal(parameters(federation), before)


# Real data ---------------------------------------------------------------------------------------------------------


def mnist(images: int, parts: int, training: FedAvg) -> tuple[list[Client], Tensor, Tensor]:
    digits = load_subset("it is a test")
    x, y = to_float(digits.train_images[:images]), digits.train_labels[:images]
    split = split_iid(images, parts, seed=0)
    members = [Client(f"client {i}", x[part], y[part], training) for i, part in enumerate(split)]
    return members, to_float(digits.test_images), digits.test_labels


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())


def test_it_learns_digits() -> None:
    torch.manual_seed(0)
    members, x, y = mnist(3000, 3, FedAvg(0.05, batch_size=16, momentum=0.9))
    federation = FederatedRunner(seed_network(), members, session=Session(LocalTransport()))
    results = run(federation, 3)
    assert accuracy(federation.model, x, y) > 0.8
    assert all(result.accepted == result.sampled for result in results)


@pytest.mark.slow
def test_it_learns_digits_with_example_level_privacy() -> None:
    torch.manual_seed(0)
    privacy = ExamplePrivacy(0.6, 1.0, 1e-5, "rdp")
    members, x, y = mnist(9000, 3, FedAvg(0.5, local_epochs=3, batch_size=128, privacy=privacy))
    federation = FederatedRunner(seed_network(), members, session=Session(LocalTransport()))
    results = run(federation, 2)
    assert accuracy(federation.model, x, y) > 0.4
    assert 1 < results[-1].epsilon < 30
