"""The parties' program: it learns what plaintext training learns, reveals what it may, and goes on bit for bit."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small_runs import small_training
from torch import Tensor

from encml.config import TrainingConfig
from encml.data import MnistData
from encml.data.mnist import load_subset
from encml.errors import ConfigError, DataError, PrivacyError
from encml.experiment.training.checkpoints import ROOTS
from encml.experiment.training.events import Accuracy, Done, Event, Step
from encml.experiment.training.job import PLAIN, TrainingJob, batches, steps_of
from encml.experiment.training.owners import Part, cut, used_data
from encml.experiment.training.plaintext import train_plainly
from encml.mpc.session import Session
from encml.net.local import LocalTransport, Tap
from encml.privacy.accounting import Accountant
from encml.serving import load_model_shares


class Stop(Exception):
    """An interruption."""


def prepared(config: TrainingConfig) -> tuple[MnistData, Sequence[Part]]:
    data = used_data(config.data, load_subset("of a test"))
    return data, cut(config.data, data)


def train(
    config: TrainingConfig, folder: Path, parts: Sequence[Part], stop_after: int | None = None, tap: Tap | None = None
) -> list[Event]:
    """The events of a training in one process; Stop after so many steps. ``tap`` sees every message."""
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step) and event.step == stop_after:
            raise Stop

    with Session(LocalTransport(tap=tap), fraction_bits=config.parties.fraction_bits) as session:
        TrainingJob(config, session, dict(enumerate(parts)), folder, tell, "a test").run()
    return events


def stored(folder: Path, step: int) -> dict[str, Tensor]:
    """The shares of the weights, and of the optimizer, in a checkpoint."""
    with Session():
        state = torch.load(folder / f"step-{step}.pt")
    tensors = dict(state["model"])
    for number, values in state["optimizer"]["state"].items():
        tensors |= {f"{number} {name}": value for name, value in values.items() if isinstance(value, Tensor)}
    return {name: secret._secret.terms for name, secret in tensors.items()}


def test_it_learns_what_plaintext_training_learns(tmp_path: Path) -> None:
    config = small_training(tmp_path, reveal={"loss_every": 1, "accuracy": "epoch", "model": True})
    data, parts = prepared(config)
    events = train(config, tmp_path / "run", parts)
    plain = train_plainly(config, data, lambda done, of: None)
    done = events[-1]
    assert isinstance(done, Done)
    assert [step for step, _ in done.losses] == list(range(1, 13))
    assert done.losses[-1][1] < 0.9 * done.losses[0][1]
    # Twelve steps: rounding to multiples of 2^-16 has hardly added up.
    assert [loss for _, loss in done.losses] == pytest.approx([loss for _, loss in plain.losses], abs=0.02)
    assert [(record.step, record.tests) for record in done.accuracy] == [(6, 30), (12, 30)]
    assert [record.right for record in done.accuracy] == pytest.approx(
        [record.right for record in plain.accuracy[1:]], abs=1
    )
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, 13))
    assert [event for event in events if isinstance(event, Accuracy)] == list(done.accuracy)
    weights = torch.load(tmp_path / "run" / PLAIN)
    assert stat.S_IMODE((tmp_path / "run" / PLAIN).stat().st_mode) == 0o600
    assert {name: tuple(value.shape) for name, value in weights.items()}["0.weight"] == (5, 1, 5, 5)
    assert len(load_model_shares(tmp_path / "run" / "model")) == 3


PRIVACY = {"noise_multiplier": 0.8, "delta": 1e-3, "max_grad_norm": 1.0}


@pytest.mark.parametrize(("momentum", "private"), [(0.0, False), (0.5, False), (0.5, True)])
def test_interrupted_it_goes_on_bit_for_bit(momentum: float, private: bool, tmp_path: Path) -> None:
    steps = {"epochs": 2, "batch_size": 10, "learning_rate": 0.125, "momentum": momentum}
    config = small_training(tmp_path, training=steps)
    if private:
        config = small_training(tmp_path, training=steps, privacy=PRIVACY, reveal={"accuracy": "epoch"})
    _, parts = prepared(config)
    whole, part = tmp_path / "whole", tmp_path / "part"
    expected = train(config, whole, parts)[-1]
    # The roots of a run decide its masks; what it trained meanwhile is not taken over.
    part.mkdir()
    shutil.copy(whole / ROOTS, part / ROOTS)
    for stop in (1, 5, 9):
        with pytest.raises(Stop):
            train(config, part, parts, stop_after=stop)
    found = train(config, part, parts)[-1]
    assert isinstance(expected, Done)
    assert isinstance(found, Done)
    assert (found.resumed, expected.resumed) == ((4, 8), ())
    assert found.losses == expected.losses
    assert found.accuracy == expected.accuracy
    assert found.privacy == expected.privacy
    for step in (10, 12):
        one, other = stored(whole, step), stored(part, step)
        assert one.keys() == other.keys()
        assert len(one) == (12 if momentum else 6)
        assert all(torch.equal(one[name], other[name]) for name in one)
    # What was counted is what a run without interruption costs, but for saving and loading.
    training = {cost.operation: (cost.rounds, cost.bytes_per_party) for cost in expected.training}
    again = {cost.operation: (cost.rounds, cost.bytes_per_party) for cost in found.training}
    assert {name: again[name] for name in training if name not in ("resume", "load", "save")} == {
        name: cost for name, cost in training.items() if name not in ("resume", "load", "save")
    }


def test_under_privacy_every_step_is_accounted_for(tmp_path: Path) -> None:
    config = small_training(tmp_path, privacy=PRIVACY, reveal={"accuracy": "end", "model": True})
    _, parts = prepared(config)
    done = train(config, tmp_path / "one", parts)[-1]
    assert isinstance(done, Done)
    accountant = Accountant("prv", PRIVACY["delta"])
    accountant.step(PRIVACY["noise_multiplier"], 10 / 60, 12)
    assert done.privacy.epsilon == pytest.approx(accountant.epsilon())
    assert (done.privacy.unit, done.privacy.noise_multiplier) == ("example", 0.8)
    assert "Poisson sample" in done.privacy.sentence
    # Noise and samples are those of the run, not of the public seed.
    train(config, tmp_path / "other", parts)
    one, other = (torch.load(tmp_path / name / PLAIN) for name in ("one", "other"))
    assert all(float((one[name] - other[name]).abs().max()) > 0.01 for name in one)


def test_a_delta_that_protects_nobody_is_refused(tmp_path: Path) -> None:
    # As many rows as the owners turn out to have: the configuration names no number.
    data = {"test_images": 10, "owners": {"kind": "one", "party": 0}}
    config = small_training(tmp_path, data=data, privacy={**PRIVACY, "delta": 0.02}, reveal={"accuracy": "never"})
    _, parts = prepared(small_training(tmp_path))
    with pytest.raises(PrivacyError, match=r"0\.02 is no protection for 60 images"):
        train(config, tmp_path / "run", parts)


def test_another_run_has_other_masks(tmp_path: Path) -> None:
    config = small_training(tmp_path, training={"epochs": 1, "steps": 2, "batch_size": 10, "learning_rate": 0.125})
    _, parts = prepared(config)
    train(config, tmp_path / "one", parts)
    train(config, tmp_path / "other", parts)
    one, other = stored(tmp_path / "one", 2), stored(tmp_path / "other", 2)
    assert all(not bool((one[name] == other[name]).any()) for name in one)


def test_nothing_is_revealed_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    revealed: list[int] = []

    def tap(source: int, destination: int, payload: Tensor, operation: str) -> None:
        if "reveal" in operation:
            revealed.append(payload.numel())

    config = small_training(tmp_path, reveal={"loss_every": None, "accuracy": "never", "model": False})
    _, parts = prepared(config)
    done = train(config, tmp_path / "run", parts, tap=tap)[-1]
    assert isinstance(done, Done)
    assert (done.losses, done.accuracy, revealed) == ((), (), [])
    assert not (tmp_path / "run" / PLAIN).exists()
    train(small_training(tmp_path), tmp_path / "other", parts, tap=tap)
    # Losses after 3, 6, 9 and 12 steps, and how many are right after each epoch: a number from each party to the next.
    assert revealed == [1] * 3 * 6


def test_changed_data_are_refused(tmp_path: Path) -> None:
    config = small_training(tmp_path, data={"train_images": 60, "test_images": 30, "owners": {"kind": "rows"}})
    _, parts = prepared(config)
    with pytest.raises(Stop):
        train(config, tmp_path / "run", parts, stop_after=3)
    changed = dict(parts[1])
    changed["train_labels"] = changed["train_labels"].flip(0)
    with pytest.raises(DataError, match="the data of party 1 have changed since this run began"):
        train(config, tmp_path / "run", [parts[0], changed, parts[2]])


def damage_checkpoint(folder: Path) -> None:
    path = max(folder.glob("step-*.pt"))
    path.write_bytes(path.read_bytes()[:-100])


def damage_roots(folder: Path) -> None:
    (folder / ROOTS).write_bytes(b"nothing")


@pytest.mark.parametrize("damage", [damage_checkpoint, damage_roots])
def test_damaged_files_are_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    config = small_training(tmp_path)
    _, parts = prepared(config)
    with pytest.raises(Stop):
        train(config, tmp_path / "run", parts, stop_after=3)
    damage(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"damaged \(.*start anew with --fresh"):
        train(config, tmp_path / "run", parts)


@pytest.mark.parametrize(
    ("accuracy", "steps"), [("never", []), ("end", [12]), ("epoch", [5, 10, 12]), (4, [4, 8, 12]), (5, [5, 10, 12])]
)
def test_accuracy_is_revealed_after_these_steps(accuracy: object, steps: list[int], tmp_path: Path) -> None:
    reveal = small_training(tmp_path, reveal={"accuracy": accuracy}).reveal
    assert [step for step in range(1, 13) if reveal.accuracy_after(step, 12, 5)] == steps


def test_every_row_is_used_once_an_epoch(tmp_path: Path) -> None:
    config = small_training(tmp_path, training={"epochs": 3, "batch_size": 16, "learning_rate": 0.1})
    assert steps_of(config, 60) == (3, 9)
    rows = list(batches(config, 60))
    assert len(rows) == 9
    for epoch in range(3):
        of_epoch = torch.cat(rows[3 * epoch : 3 * epoch + 3])
        assert len(set(of_epoch.tolist())) == 48
    assert not torch.equal(rows[0], rows[3])
    assert all(torch.equal(one, other) for one, other in zip(rows, batches(config, 60), strict=True))
    with pytest.raises(DataError, match="batch_size: 16 is more than the 15 rows"):
        steps_of(config, 15)
