"""What a federation spends, that it can be resumed, and which ones are refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from federation import NAN, NOISY, D, Fixed, clients, data, model, parameters, run, runner, saved
from torch import nn

from encml.errors import ConfigError, DataError, PrivacyError, ProtocolError, UnsupportedOperation
from encml.federated import (
    AggregationSettings,
    Client,
    ClientSampling,
    ExamplePrivacy,
    FedAvg,
    FederatedRunner,
    FedSGD,
    ServerStep,
)
from encml.federated.training import require_federated
from encml.mpc.session import Session
from encml.net.local import LocalTransport
from encml.privacy.accounting import Accountant

# Privacy -----------------------------------------------------------------------------------------------------------


def test_client_level_privacy_is_accounted_for_each_round() -> None:
    federation = runner(clients(5, Fixed()), aggregation=NOISY, sampling=ClientSampling(rate=0.5), delta=1e-3)
    accountant = Accountant("rdp", 1e-3)
    for result in federation.run(4):
        accountant.step(1.5, 0.5)
        assert result.epsilon == pytest.approx(accountant.epsilon())
    statement = federation.privacy()
    assert (statement.unit, statement.delta, statement.sampled) == ("client", 1e-3, True)
    assert statement.epsilon == accountant.epsilon()


def test_with_noise_the_mean_is_over_the_expected_number_of_clients() -> None:
    """So that neither the denominator nor a round with nobody in it says who took part."""
    settings = AggregationSettings(clip=1.0, noise_multiplier=1e-3)
    federation = runner(clients(8, Fixed()), aggregation=settings, sampling=ClientSampling(rate=0.5), delta=0.5)
    for _ in range(6):
        before = parameters(federation)
        result = federation.step()
        moved = (parameters(federation) - before).double()
        assert float(moved.mean()) == pytest.approx(0.01 * len(result.accepted) / 4, abs=5e-4)
        assert moved.unique().numel() > D // 2


def test_a_round_with_noise_and_nobody_in_it_is_noise_and_counts() -> None:
    federation = runner(clients(1, Fixed()), aggregation=NOISY, sampling=ClientSampling(rate=1e-9), delta=1e-3)
    before = parameters(federation)
    (result,) = run(federation, 1)
    assert result.sampled == ()
    assert result.epsilon is not None
    assert (parameters(federation) != before).all()
    assert federation.state_dict()["values"]["accountant"]["steps"] == [[1.5, 1e-9, 1]]


def test_nothing_is_spent_where_nothing_is_released() -> None:
    federation = runner(clients(2, Fixed(NAN)), aggregation=NOISY, delta=1e-3)
    with pytest.raises(ProtocolError, match="all 2 clients failed"):
        run(federation, 1)
    assert federation.privacy().epsilon == 0.0


def test_example_level_privacy_reports_the_client_that_spent_most() -> None:
    training = FedAvg(0.1, local_epochs=2, batch_size=8, privacy=ExamplePrivacy(2.0, 1.0, 1e-4, "rdp"))
    members = [Client(name, *data(1, size), training) for name, size in (("small", 16), ("large", 64))]
    federation = runner(members)
    results = run(federation, 2)
    expected = []
    for steps in (2, 8):  # an epoch of ceil(n / 8) steps
        accountant = Accountant("rdp", 1e-4)
        accountant.step(2.0, 1 / steps, 2 * 2 * steps)
        expected.append(accountant.epsilon())
    assert results[1].epsilon == pytest.approx(max(expected))
    assert results[0].epsilon < results[1].epsilon
    statement = federation.privacy()
    assert (statement.unit, statement.sampled, statement.delta) == ("example", True, 1e-4)


def test_one_client_without_privacy_means_no_privacy_to_speak_of() -> None:
    private = FedAvg(0.1, batch_size=8, privacy=ExamplePrivacy(2.0, 1.0, 1e-4, "rdp"))
    members = [Client("a", *data(1, 16), private), Client("b", *data(2, 16), FedAvg(0.1))]
    (result,) = run(runner(members), 1)
    assert result.epsilon is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"aggregation": NOISY}, "give one"),
        ({"aggregation": NOISY, "delta": 1e-3, "sampling": ClientSampling(count=2)}, "give a rate instead of a count"),
        ({"aggregation": NOISY, "delta": 1e-3, "weighting": "examples"}, "weighting must be uniform"),
        ({"delta": 1e-3}, "without noise"),
        ({"aggregation": NOISY, "delta": 0.0}, "delta"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(PrivacyError, match=says):
        runner(clients(3), **settings)


# Resumption --------------------------------------------------------------------------------------------------------


def test_resumed_is_as_if_never_interrupted() -> None:
    settings: dict[str, Any] = {"server": ServerStep(0.8, 0.9), "sampling": ClientSampling(count=3), "seed": 4}
    whole = runner(clients(5), **settings)
    results = run(whole, 4)
    first = runner(clients(5), **settings)
    run(first, 2)
    state = saved(first)
    run(first, 3)  # what comes after the last save is lost
    second = FederatedRunner(model(9), clients(5), session=Session(LocalTransport()), **settings)
    second.load_state_dict(state)
    assert second.round == 2
    again = run(second, 4)
    assert [r.round for r in again] == [3, 4]
    assert [r.sampled for r in again] == [r.sampled for r in results[2:]]
    assert torch.equal(parameters(whole), parameters(second))
    assert run(second, 4) == []


def test_what_was_spent_is_resumed() -> None:
    private = FedAvg(0.1, batch_size=8, privacy=ExamplePrivacy(2.0, 1.0, 1e-4, "rdp"))
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (Fixed(), {"aggregation": NOISY, "sampling": ClientSampling(rate=0.5), "delta": 1e-3}),
        (private, {}),
    ]
    for training, settings in kinds:
        first = runner(clients(3, training), **settings)
        run(first, 2)
        second = runner(clients(3, training), **settings)
        second.load_state_dict(saved(first))
        assert second.privacy() == first.privacy()
        assert run(first, 3)[0].epsilon == run(second, 3)[0].epsilon


def test_states_that_do_not_belong_are_refused() -> None:
    state = saved(run_and_keep())
    cases: list[tuple[Any, dict[str, Any], type[Exception]]] = [
        (clients(4), {}, DataError),
        (clients(3), {"seed": 1}, DataError),
        (clients(3, FedAvg(0.1, privacy=ExamplePrivacy(1.0, 1.0, 1e-5))), {}, DataError),
        (clients(3), {"aggregation": NOISY, "delta": 1e-3}, PrivacyError),
    ]
    for members, settings, error in cases:
        with pytest.raises(error):
            runner(members, **settings).load_state_dict(copy.deepcopy(state))
    for change in ({"tensors": {}}, {"values": {}}, {"more": 1}):
        with pytest.raises(DataError):
            runner(clients(3)).load_state_dict(copy.deepcopy(state) | change)
    tensors = state["tensors"]
    name = next(iter(tensors))
    for wrong in (
        tensors | {name: torch.zeros(2)},
        tensors | {"model.x": torch.zeros(2)},
        dict(list(tensors.items())[1:]),
    ):
        with pytest.raises(DataError, match="does not fit this model"):
            runner(clients(3)).load_state_dict({"tensors": wrong, "values": state["values"]})


def run_and_keep() -> FederatedRunner:
    federation = runner(clients(3), server=ServerStep(1.0, 0.5))
    run(federation, 1)
    return federation


# What is refused ---------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match=r"running_mean.*use GroupNorm"):
        require_federated(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    for other in (nn.Linear(2, 2).double(), nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(UnsupportedOperation, match="not float32"):
            require_federated(other)


@pytest.mark.parametrize(
    "settings",
    [
        {"weighting": "Uniform"},
        {"sampling": ClientSampling(count=4)},
        {"workers": 0},
    ],
)
def test_impossible_federations_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        runner(clients(3), **settings)


def test_clients_need_names_of_their_own_and_data() -> None:
    for members in ([], [*clients(2), *clients(1)]):
        with pytest.raises(ConfigError, match="distinct names"):
            runner(members)
    for x, y in ((torch.zeros(0, 3), torch.zeros(0)), (torch.zeros(2, 3), torch.zeros(3))):
        with pytest.raises(DataError, match="at least one"):
            Client("a", x, y, FedSGD())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClientSampling(count=1, rate=0.5),
        lambda: ClientSampling(count=0),
        lambda: ClientSampling(rate=0.0),
        lambda: ClientSampling(rate=1.1),
        lambda: ServerStep(0.0),
        lambda: ServerStep(1.0, 1.0),
        lambda: FedAvg(0.0),
        lambda: FedAvg(math.nan),
        lambda: FedAvg(0.1, momentum=1.0),
        lambda: FedAvg(0.1, local_epochs=0),
        lambda: FedAvg(0.1, batch_size=0),
    ],
)
def test_impossible_settings_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
