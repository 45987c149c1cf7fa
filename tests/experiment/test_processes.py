"""The command in processes of its own: Ctrl-C, SIGTERM and kill -9 at any moment, and a cluster on this machine."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import opened_model, run_small, small_config, small_file
from typer.testing import CliRunner, Result

from encml.cli.app import app
from encml.data import load_subset, to_float
from encml.experiment.display import Display
from encml.experiment.folder import RunFolder
from encml.experiment.metrics import Metrics, encml_version, read_metrics
from encml.models import seed_network
from encml.serving import save_model_shares
from encml.serving.processes import free_ports

SLOW_ROUNDS = {"strategy": "fedavg", "rounds": 6, "learning_rate": 0.05, "local_epochs": 5, "batch_size": 16}
TLS = {"images": 12, "batch_sizes": [1, 8]}
MARK = "ENCML_TEST_MARK"


class Command:
    """An ``encml`` process and, by a mark in its environment, all processes that it started."""

    def __init__(self, *words: str | Path) -> None:
        self.mark = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "encml", *map(str, words)],
            env=os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.log = ""

    def wait_for(self, text: str) -> None:
        """Read the log until a line with ``text``."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if text in line:
                return
        raise AssertionError(f"ended without {text!r}:\n{self.log}")

    def end(self, number: int | None = None) -> str:
        """Send a signal, if one is given, and wait; what the command printed."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        self.log += err
        return out

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def alive(self) -> list[int]:
        """Processes that carry the mark."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def all_gone(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.alive()


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*words: str | Path) -> Command:
        started.append(Command(*words))
        return started[-1]

    yield start
    for each in started:
        each.close()
        assert each.all_gone(20), "processes were left behind"


def encml(*words: str | Path) -> Result:
    """A command in this process."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def the_run(base: Path) -> Path:
    runs = [path for path in (base / "runs").iterdir() if not path.name.startswith(".")]
    assert len(runs) == 1
    return runs[0]


pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")


def test_stopped_while_training_and_while_asking_it_goes_on(tmp_path: Path, command: Callable[..., Command]) -> None:
    inference = {"images": 40, "batch_sizes": [1]}
    file = small_file(tmp_path, federated=SLOW_ROUNDS, inference=inference)
    first = command("run", file)
    first.wait_for("round 2/6")
    first.end(signal.SIGINT)
    assert first.process.returncode == 130
    assert "Traceback" not in first.log
    assert f"encml run --resume {the_run(tmp_path)}" in first.log

    second = command("run", file)
    second.wait_for("going on with it")
    second.wait_for("going on after round")
    second.wait_for("private inference on")
    assert len(second.alive()) == 4
    second.end(signal.SIGTERM)
    assert second.process.returncode == 143
    assert second.alive() == []
    assert "Traceback" not in second.log

    with RunFolder.resume(the_run(tmp_path), encml_version()) as folder:
        metrics = run_small(folder, Display(), encml_version())
    assert metrics.resumed[1:] == (6,)
    assert metrics.resumed[0] in (2, 3)
    assert metrics.inference is not None
    assert (metrics.inference.transport, metrics.inference.agreeing) == ("tls", 40)
    assert [(batch.rounds, batch.requests) for batch in metrics.inference.batches] == [(35, 40)]


@pytest.mark.slow
def test_killed_at_any_moment_the_run_goes_on(tmp_path: Path, command: Callable[..., Command]) -> None:
    config = small_config(tmp_path / "whole", federated=SLOW_ROUNDS, inference={**TLS, "transport": "in_process"})
    with RunFolder.create(config, "1.0") as folder:
        whole = run_small(folder, Display(), "1.0")
    file = small_file(tmp_path, federated=SLOW_ROUNDS, inference=TLS)
    for moment in ("run folder", "round ", "round ", "starting three parties", "private inference on"):
        killed = command("run", file)
        killed.wait_for(moment)
        time.sleep(secrets.randbelow(1000) / 1000 * 0.3)
        killed.end(signal.SIGKILL)
        assert killed.all_gone(20), "the parties outlived the run"
        if (the_run(tmp_path) / "metrics.json").exists():
            break
        file_names = {path.name for path in the_run(tmp_path).iterdir()}
        assert {"config.yaml", "run.json", "run.lock"} <= file_names
    else:
        last = command("run", file)
        last.end()
        assert last.process.returncode == 0, last.log
    metrics = read_metrics(the_run(tmp_path), Metrics)
    assert [r.accuracy for r in metrics.rounds] == [r.accuracy for r in whole.rounds]
    expected, found = opened_model(folder.path), opened_model(the_run(tmp_path))
    assert all((found[name] == value).all() for name, value in expected.items())
    assert metrics.inference is not None
    assert metrics.inference.agreeing == 12
    assert not list(the_run(tmp_path).rglob(".*"))


def test_owner_parties_and_client_each_in_a_process(tmp_path: Path, command: Callable[..., Command]) -> None:
    save_model_shares(seed_network(), torch.zeros(1, 1, 28, 28), tmp_path / "shares")
    cluster = tmp_path / "cluster.yaml"
    assert encml("keys", "init", tmp_path / "keys", "--clients", "alice", "--write-config", cluster).exit_code == 0
    text = cluster.read_text()
    for old, new in zip((9100, 9101, 9102, 9200, 9201, 9202), free_ports(6), strict=True):
        text = text.replace(f" {old}", f" {new}")
    cluster.write_text(text)
    parties = [command("party", "--config", cluster, "--rank", str(rank)) for rank in range(3)]
    for party in parties:
        party.wait_for("in session with the others")

    served = encml("serve", tmp_path / "shares", "--config", cluster, "--requests", "2", "--model", "digits")
    assert "'digits' is served for 2 requests" in served.stdout
    query = ("query", "--config", cluster, "--name", "alice", "--model", "digits")
    asked = encml(*query, "--images", "0,1,2", "--save", tmp_path / "scores.npy")
    assert asked.exit_code == 0, asked.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in asked.stdout.splitlines() if "│" in line]
    assert [row[:2] for row in rows] == [["0", "7"], ["1", "2"], ["2", "1"]]
    scores = np.load(tmp_path / "scores.npy")
    assert [row[2] for row in rows] == [str(guess) for guess in scores.argmax(1)]
    assert "39 rounds" in asked.stderr
    np.save(tmp_path / "images.npy", to_float(load_subset("of a test").test_images[:3]).numpy())
    again = encml(*query, "--input", tmp_path / "images.npy", "--save", tmp_path / "again.npy")
    assert "0 requests left" in again.stderr
    assert np.abs(np.load(tmp_path / "again.npy") - scores).max() < 1e-3

    refused = encml(*query, "--images", "0")
    assert refused.exit_code == 4
    assert "cap is reached" in refused.stderr
    assert "digits (0 left)" in encml("status", "--config", cluster).stdout
    stranger = encml("query", "--config", cluster, "--name", "mallory", "--model", "digits", "--images", "0")
    assert (stranger.exit_code, "mallory.pem: no such file" in stranger.stderr) == (2, True)
    assert encml("serve", tmp_path / "shares", "--config", cluster).exit_code == 0
    assert encml("stop", "--config", cluster).exit_code == 0
    assert "model (0 left)" in encml("status", "--config", cluster).stdout

    parties[1].end(signal.SIGINT)
    assert parties[1].process.returncode == 0
    gone = encml("status", "--config", cluster)
    assert gone.exit_code == 4
    assert "party 1" in gone.stderr
    for party in (parties[0], parties[2]):
        party.end(signal.SIGTERM)
        assert party.process.returncode == 0
