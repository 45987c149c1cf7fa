"""A training on encrypted data from its file to its report: in one process, by three, interrupted, and gone on with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import TRAINING, small_training

from encml.config import TrainingConfig, load_experiment
from encml.errors import ConfigError, PartyError
from encml.experiment.display import Display
from encml.experiment.folder import RunFolder
from encml.experiment.metrics import read_metrics
from encml.experiment.run import make_report
from encml.experiment.training.checkpoints import ROOTS
from encml.experiment.training.job import initial_model
from encml.experiment.training.metrics import TrainingMetrics
from encml.experiment.training.runner import run_training
from encml.models import NETWORKS
from encml.serving import load_model_shares


class Heard(Display):
    """Remembers what it is told, and stops the run at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.states: list[tuple[str, int, int, str]] = []
        self.stop_at = stop_at

    def steps(self, name: str, done: int, total: int, state: str = "", seconds_left: float | None = None) -> None:
        self.states.append((name, done, total, state))
        if name == "Steps" and done == self.stop_at:
            raise KeyboardInterrupt


def run(config: TrainingConfig, display: Display | None = None) -> tuple[Path, TrainingMetrics]:
    """Run a training in a new folder."""
    with RunFolder.create(config, "1.0") as folder:
        return folder.path, run_training(folder, config, display or Display(), "1.0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingMetrics, Heard]:
    heard = Heard()
    config = small_training(
        tmp_path_factory.mktemp("finished"), reveal={"loss_every": 3, "accuracy": "epoch", "model": True}
    )
    return *run(config, heard), heard


def test_a_run_leaves_its_model_and_no_trace_of_the_data(finished: tuple[Path, TrainingMetrics, Heard]) -> None:
    path, metrics, _ = finished
    files = {p.relative_to(path).as_posix() for p in path.rglob("*")}
    shares = {f"model/party-{rank}.safetensors" for rank in range(3)}
    assert files == {"config.yaml", "run.json", "run.lock", "metrics.json", "report.html", "model", "model.pt"} | shares
    assert read_metrics(path, TrainingMetrics) == metrics
    weights = torch.load(path / "model.pt")
    initial = initial_model(small_training(path)).state_dict()
    assert weights.keys() == initial.keys()
    assert any(float((weights[name] - initial[name]).abs().max()) > 0.01 for name in weights)
    NETWORKS[metrics.network]().load_state_dict(weights)
    assert len(load_model_shares(path / "model")) == 3


def test_it_says_how_far_it_is_and_what_was_revealed(finished: tuple[Path, TrainingMetrics, Heard]) -> None:
    _, metrics, heard = finished
    steps = [(done, total, state) for name, done, total, state in heard.states if name == "Steps"]
    assert [done for done, _, _ in steps] == list(range(1, 13))
    assert {total for _, total, _ in steps} == {12}
    assert [state for _, _, state in steps][:2] == ["", ""]
    assert re.fullmatch(r"loss \d\.\d{3}", steps[2][2])
    assert re.fullmatch(r"loss \d\.\d{3}, accuracy \d+\.\d\d %", steps[-1][2])
    assert [step for step, _ in metrics.losses] == [3, 6, 9, 12]
    assert metrics.plain is not None
    assert [record.step for record in metrics.plain.accuracy] == [0, 6, 12]


def test_the_report_shows_both_curves_and_where_the_bytes_went(finished: tuple[Path, TrainingMetrics, Heard]) -> None:
    path, metrics, _ = finished
    text = (path / "report.html").read_text(encoding="utf-8")
    for part in ("on secrets", "in plaintext", "Accuracy on the test images", "Loss of the step", "relu", "points"):
        assert part in text, part
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert f"{100 * metrics.accuracy[-1].share:.2f} %" in text
    before = text
    make_report(path)
    assert (path / "report.html").read_text(encoding="utf-8") == before


def test_interrupted_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    config = small_training(tmp_path, data={"train_images": 60, "test_images": 30, "owners": {"kind": "rows"}})
    folder = RunFolder.create(config, "1.0")
    with folder, pytest.raises(KeyboardInterrupt):
        run_training(folder, config, Heard(stop_at=5), "1.0")
    assert (folder.path / "owners").is_dir()
    again = RunFolder.find(config, "1.0")
    assert again is not None
    heard = Heard()
    with again:
        metrics = run_training(again, config, heard, "1.0")
    assert metrics.resumed == (4,)
    assert [done for name, done, _, _ in heard.states if name == "Steps"] == list(range(5, 13))
    assert [step for step, _ in metrics.losses] == [3, 6, 9, 12]
    assert not (folder.path / "owners").exists()


def test_three_processes_train_what_one_does_and_serve_it(tmp_path: Path) -> None:
    """Interrupted, too: every party goes on from its own checkpoint."""
    sections = {
        "data": {"train_images": 60, "test_images": 30, "owners": {"kind": "columns", "labels": 2}},
        "parties": {"transport": "tls"},
        "inference": {"images": 10, "batch_sizes": [1, 5]},
    }
    config = small_training(tmp_path, **sections)
    folder = RunFolder.create(config, "1.0")
    with folder, pytest.raises(KeyboardInterrupt):
        run_training(folder, config, Heard(stop_at=7), "1.0")
    for rank in range(3):
        assert (folder.path / f"party-{rank}" / "step-6.pt").stat().st_mode & 0o777 == 0o600
    with RunFolder.resume(folder.path, "1.0") as again:
        metrics = run_training(again, config, Display(), "1.0")
    assert metrics.resumed in ((6,), (8,))
    _, expected = run(
        small_training(tmp_path, **{**sections, "parties": {"transport": "in_process"}, "inference": None})
    )
    assert [loss for _, loss in metrics.losses] == pytest.approx([loss for _, loss in expected.losses], abs=0.02)
    relu, theirs = (next(cost for cost in found.training if cost.operation == "relu") for found in (metrics, expected))
    assert relu.rounds == theirs.rounds
    assert relu.bytes_per_party == pytest.approx(theirs.bytes_per_party)
    assert metrics.predictions is not None
    assert [batch.batch_size for batch in metrics.predictions.batches] == [1, 5]
    assert metrics.predictions.images == 10
    assert 0 <= metrics.predictions.right <= 10


def test_a_party_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    config = small_training(tmp_path, parties={"transport": "tls"}, compare=False)
    folder = RunFolder.create(config, "1.0")
    (folder.path / "party-1").mkdir()
    (folder.path / "party-1" / ROOTS).write_bytes(b"nothing")
    with folder, pytest.raises(PartyError, match=r"(?s)party \d has ended \(exit status 1\).*(party 1|roots.*damaged)"):
        run_training(folder, config, Display(), "1.0")


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"kind": "encrypted_trainin"}, r"did you mean 'encrypted_training'"),
        ({"model": {"kind": "network_e"}}, r"model.kind: found 'network_e'"),
        ({"data": {"public": "images", "owners": {"kind": "rows"}}}, r"what is public has no owner"),
        ({"data": {"owners": {"kind": "features_and_labels", "labels": 0}}}, r"party 0 has both"),
        ({"training": {"learning_rate": 0.1, "batch_size": 100}}, r"batch_size: 100 is more than"),
        ({"privacy": {"noise_multiplier": 1.0, "delta": 0.5, "max_grad_norm": 1.0}}, r"is no protection for 60 images"),
        (
            {"privacy": {"noise_multiplier": 1.0, "delta": 1e-5, "max_grad_norm": 1.0}},
            r"reveal.loss_every: 3 shows what the noise of privacy is to hide",
        ),
        ({"inference": {"images": 5, "transport": "in_process"}}, r"predictions from a training's shares"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    sections: dict[str, object], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    values = json.loads(json.dumps({**TRAINING, **sections}))
    if "data" in sections:
        values["data"] = {**TRAINING["data"], **values["data"]}  # type: ignore[dict-item]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=problem):
        load_experiment(path)
