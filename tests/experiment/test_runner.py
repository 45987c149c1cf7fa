"""The main job at small size: what it leaves behind, and that an interruption changes nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from small_runs import opened_model, run_small, small_config

from encml.data import load_subset, to_float
from encml.errors import ConfigError, DataError
from encml.experiment.display import Display
from encml.experiment.federation import build, used_data
from encml.experiment.folder import RunFolder
from encml.experiment.metrics import Metrics, Round, read_metrics
from encml.federated.client import Client
from encml.models import seed_network
from encml.ring.fixed import decode

CLIENT_PRIVACY = {"unit": "client", "clip": 1.0, "noise_multiplier": 0.5, "delta": 0.01, "accountant": "rdp"}
EXAMPLE_PRIVACY = {"unit": "example", "max_grad_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "accountant": "rdp"}


class Interrupting(Display):
    """Presses Ctrl-C after a round, or when a phase begins."""

    def __init__(self, after_round: int = -1, at_phase: str = "no such phase") -> None:
        super().__init__()
        self.after_round, self.at_phase = after_round, at_phase

    def phase(self, text: str) -> None:
        if self.at_phase in text:
            raise KeyboardInterrupt

    def round_done(self, record: Round, rounds: int, seconds_left: float) -> None:
        if record.round == self.after_round:
            raise KeyboardInterrupt


def run(base: Path, **sections: object) -> tuple[Path, Metrics]:
    with RunFolder.create(small_config(base, **sections), "1.0") as folder:
        return folder.path, run_small(folder, Display(), "1.0")


def interrupt(folder: RunFolder, display: Display) -> None:
    with folder, pytest.raises(KeyboardInterrupt):
        run_small(folder, display, "1.0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metrics]:
    return run(tmp_path_factory.mktemp("finished"))


def test_a_run_leaves_everything_behind(finished: tuple[Path, Metrics]) -> None:
    path, metrics = finished
    files = {p.relative_to(path).as_posix() for p in path.rglob("*")}
    shares = {f"model/party-{rank}.safetensors" for rank in range(3)}
    assert (
        files
        == {"config.yaml", "run.json", "run.lock", "metrics.json", "report.html", "classified.safetensors"}
        | {"model"}
        | shares
    )
    assert read_metrics(path, Metrics) == metrics


def test_metrics_say_what_happened(finished: tuple[Path, Metrics]) -> None:
    path, metrics = finished
    values = json.loads((path / "metrics.json").read_text())
    assert set(values) == set(Metrics.model_fields)
    assert (metrics.data.train_images, metrics.data.test_images, metrics.data.clients) == (300, 200, 3)
    assert "ships with encml" in metrics.data.source
    assert [r.round for r in metrics.rounds] == [1, 2, 3]
    assert all((r.selected, r.accepted, r.failed, r.epsilon) == (3, 3, (), None) for r in metrics.rounds)
    assert all(r.uploaded > 3 * 8 * 29_066 and r.protocol_rounds > 10 for r in metrics.rounds)
    assert metrics.accuracy == metrics.rounds[-1].accuracy
    assert metrics.privacy.unit == "none"
    assert "No differential privacy" in metrics.privacy.sentence
    assert {cost.operation for cost in metrics.aggregation} >= {"norm check", "clipping"}
    inference = metrics.inference
    assert inference is not None
    assert (inference.images, inference.agreeing) == (12, 12)
    assert [(b.batch_size, b.requests, b.rounds) for b in inference.batches] == [(1, 12, 38), (8, 2, 44)]
    assert sum(cost.rounds for cost in inference.costs) == 44


def test_the_shared_model_is_the_trained_one(finished: tuple[Path, Metrics]) -> None:
    path, metrics = finished
    model = seed_network()
    model.load_state_dict({name: decode(value, 16, torch.float32) for name, value in opened_model(path).items()})
    data = load_subset("of a test")
    with torch.no_grad():
        predicted = model(to_float(data.test_images[:200])).argmax(1)
    accuracy = float((predicted == data.test_labels[:200]).double().mean())
    assert abs(accuracy - metrics.accuracy) <= 1 / 200


@pytest.mark.parametrize(
    "display",
    [Interrupting(after_round=1), Interrupting(after_round=3), Interrupting(at_phase="private inference")],
    ids=["between rounds", "after the last round", "in the inference"],
)
def test_an_interruption_changes_nothing(tmp_path: Path, finished: tuple[Path, Metrics], display: Interrupting) -> None:
    config = small_config(tmp_path)
    interrupt(RunFolder.create(config, "1.0"), display)
    folder = RunFolder.find(config, "1.0")
    assert folder is not None
    with folder:
        metrics = run_small(folder, Display(), "1.0")
    whole_path, whole = finished
    assert metrics.resumed == (display.after_round if display.after_round > 0 else 3,)
    assert [r.accuracy for r in metrics.rounds] == [r.accuracy for r in whole.rounds]
    expected, found = opened_model(whole_path), opened_model(folder.path)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for ours, theirs in zip(metrics.aggregation, whole.aggregation, strict=True):
        assert (ours.operation, ours.bytes_per_party) == (theirs.operation, theirs.bytes_per_party)
        # A process that goes on sets its session up anew.
        assert ours.rounds == theirs.rounds
    assert not (folder.path / "checkpoint.pt").exists()


@pytest.mark.parametrize("privacy", [CLIENT_PRIVACY, EXAMPLE_PRIVACY], ids=["client", "example"])
def test_the_budget_is_kept_over_an_interruption(tmp_path: Path, privacy: dict[str, object]) -> None:
    federated = {"strategy": "fedavg", "rounds": 3, "learning_rate": 0.1, "sample_rate": 1.0}
    sections = {"privacy": privacy, "federated": federated, "inference": None}
    whole = run(tmp_path / "whole", **sections)[1]
    config = small_config(tmp_path / "interrupted", **sections)
    interrupt(RunFolder.create(config, "1.0"), Interrupting(after_round=2))
    folder = RunFolder.find(config, "1.0")
    assert folder is not None
    with folder:
        metrics = run_small(folder, Display(), "1.0")
    epsilons = [r.epsilon for r in metrics.rounds]
    assert epsilons == [r.epsilon for r in whole.rounds]
    assert None not in epsilons
    assert epsilons == sorted(epsilons)  # type: ignore[type-var]
    assert metrics.privacy.epsilon == epsilons[-1]
    assert str(privacy["delta"]) in metrics.privacy.sentence


@pytest.mark.parametrize("privacy", [CLIENT_PRIVACY, EXAMPLE_PRIVACY], ids=["client", "example"])
def test_a_target_epsilon_is_used_up_but_not_exceeded(tmp_path: Path, privacy: dict[str, object]) -> None:
    wanted = {name: value for name, value in privacy.items() if name != "noise_multiplier"} | {"target_epsilon": 8.0}
    federated = {"strategy": "fedavg", "rounds": 2, "learning_rate": 0.1, "sample_rate": 1.0, "batch_size": 50}
    config = small_config(tmp_path, privacy=wanted, federated=federated, inference=None)
    runner = build(config, used_data(config, load_subset("of a test")), lambda: None).runner
    spent = [result.epsilon for result in runner.run(2)]
    assert spent[-1] is not None
    assert 7.8 < spent[-1] <= 8.0


def test_a_failing_client_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = Client.upload

    def failing(self: Client, *args: object) -> bytes:
        if self.name == "client-1":
            raise RuntimeError("secret pixels: 1 2 3")
        return upload(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "upload", failing)
    path, metrics = run(tmp_path, inference=None)
    assert all([f.client for f in r.failed] == ["client-1"] and r.accepted == 2 for r in metrics.rounds)
    assert "secret pixels" not in (path / "metrics.json").read_text() + (path / "report.html").read_text()
    assert "Clients left out" in (path / "report.html").read_text()


def test_other_data_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path)
    interrupt(RunFolder.create(config, "1.0"), Interrupting(after_round=1))
    folder = RunFolder.find(config, "1.0")
    assert folder is not None
    data = load_subset("of a test")
    data.train_images[0] += 1
    monkeypatch.setattr("encml.experiment.runner.load_mnist", lambda *_: data)
    with folder, pytest.raises(ConfigError, match="the data have changed"):
        run_small(folder, Display(), "1.0")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"clients": 3, "train_images": 9001}}, "train_images: 9,001 wanted"),
        ({"data": {"clients": 3, "test_images": 1501}}, "test_images: 1,501 wanted"),
        ({"data": {"clients": 9001}}, "9,001 clients need"),
        ({"data": {"clients": 3}, "inference": {"images": 1501}}, "inference.images: 1,501 wanted"),
    ],
)
def test_more_than_there_is_says_so(tmp_path: Path, sections: dict[str, object], message: str) -> None:
    with (
        RunFolder.create(small_config(tmp_path, **sections), "1.0") as folder,
        pytest.raises(DataError, match=message),
    ):
        run_small(folder, Display(), "1.0")


def test_the_log_tells_each_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="encml"):
        run(tmp_path, inference=None)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("round ") for line in lines) == 3
    assert any("data: the subset of MNIST" in line for line in lines)
