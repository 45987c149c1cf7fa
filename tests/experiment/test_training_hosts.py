"""Three hosts, each with its own command: what it owns is split, trained on and saved by each for itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from small_runs import TRAINING

from encml.net.certificates import make_cluster_keys
from encml.serving.model_store import load_party_file
from encml.serving.processes import local_config, write_config

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def encml(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "encml", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def start(arguments: Sequence[str], folder: Path, rank: int) -> subprocess.Popen[str]:
    """One host's command; its log lies in ``folder``."""
    command = [sys.executable, "-m", "encml", "train", *arguments, "--rank", str(rank)]
    with (folder / f"log-{rank}").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, text=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A folder with an experiment, a cluster with its keys, and what each owner has."""
    values = {**TRAINING, "data": {"train_images": 60, "test_images": 30, "owners": {"kind": "rows"}}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    config = local_config(tmp_path, timeout=60.0, connect_timeout=120.0)
    make_cluster_keys(config.keys, [party.host for party in config.parties], clients=())
    write_config(config, tmp_path / "cluster.yaml")
    result = encml("split", "small.yaml", "-o", "owners", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[2] == (
        "owners/owner-2.safetensors: train_images (20, 1, 28, 28), train_labels (20,), test_images (10, 1, 28, 28), "
        "test_labels (10,)"
    )
    return tmp_path


def test_each_trains_with_its_own_stops_and_goes_on(hosts: Path) -> None:
    def run(rank: int) -> subprocess.Popen[str]:
        arguments = ["small.yaml", "--cluster", "cluster.yaml", "--data", f"owners/owner-{rank}.safetensors"]
        return start([*arguments, "--output", f"host-{rank}"], hosts, rank)

    first = [run(rank) for rank in range(3)]
    try:
        deadline = time.monotonic() + 120
        while not all((hosts / f"host-{rank}" / "step-4.pt").exists() for rank in range(3)):
            assert time.monotonic() < deadline, (hosts / "log-0").read_text()
            time.sleep(0.05)
        first[1].send_signal(signal.SIGINT)
        assert first[1].wait(30) == 130
        # The others name it, and stop.
        assert [process.wait(60) for process in (first[0], first[2])] == [4, 4]
    finally:
        for process in first:
            process.kill()
    assert "party 1" in (hosts / "log-0").read_text()
    second = [run(rank) for rank in range(3)]
    try:
        assert [process.wait(120) for process in second] == [0, 0, 0], (hosts / "log-0").read_text()
    finally:
        for process in second:
            process.kill()
    logs = [(hosts / f"log-{rank}").read_text() for rank in range(3)]
    last = {next(line for line in log.splitlines() if line.startswith("Accuracy: ")) for log in logs}
    assert len(last) == 1
    parts = [load_party_file(hosts / f"host-{rank}" / "model" / f"party-{rank}.safetensors", rank) for rank in range(3)]
    assert len({part.model_id for part in parts}) == 1
    assert all("Traceback" not in log for log in logs)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("--cluster", "nowhere.yaml", "--rank", "0"), 2, "nowhere.yaml: no such file"),
        (
            ("--cluster", "cluster.yaml", "--rank", "0", "--data", "owner-9.safetensors"),
            3,
            "owner-9.safetensors: no su",
        ),
        (("--cluster", "cluster.yaml", "--rank", "3"), 2, "Invalid value for '--rank'"),
        (("--cluster", "cluster.yaml", "--rank", "0", "--set", "training.epoch=1"), 2, "did you mean 'epochs'?"),
        (("--cluster", "cluster.yaml", "--rank", "0", "--set", "kind=federated"), 2, "kind"),
    ],
)
def test_what_is_wrong_is_said(arguments: Sequence[str], code: int, problem: str, hosts: Path) -> None:
    result = encml("train", "small.yaml", *arguments, folder=hosts)
    assert (result.returncode, "Traceback" in result.stderr) == (code, False), result.stderr
    assert problem in result.stderr


def test_a_federated_experiment_is_run_otherwise(tmp_path: Path) -> None:
    values = {
        "experiment": "small",
        "data": {"clients": 2},
        "federated": {"strategy": "fedavg", "rounds": 1, "learning_rate": 0.1},
        "privacy": {"unit": "none"},
    }
    (tmp_path / "federated.yaml").write_text(yaml.safe_dump(values))
    result = encml("split", "federated.yaml", "-o", "owners", folder=tmp_path)
    assert result.returncode == 2
    assert "kind: federated is run by: encml run federated.yaml" in result.stderr
