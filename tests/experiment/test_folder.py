"""Run folders: complete when they appear, one worker at a time, found again by configuration, never half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from encml.config import ExperimentConfig, with_overrides
from encml.config.loading import check
from encml.errors import ConfigError, EncmlError
from encml.experiment.files import remove_unfinished, write_file, write_folder
from encml.experiment.folder import RunFolder, digest, read_config


def config_in(base: Path, *overrides: str) -> ExperimentConfig:
    values = {
        "experiment": "small",
        "data": {"clients": 2},
        "federated": {"strategy": "fedavg", "rounds": 2, "learning_rate": 0.1},
        "privacy": {"unit": "none"},
        "output": {"folder": str(base)},
    }
    return with_overrides(check(values, ExperimentConfig, "test"), list(overrides))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_new_folder_is_complete_and_reads_back(base: Path) -> None:
    config = config_in(base)
    with RunFolder.create(config, "1.0") as folder:
        assert folder.path.parent == base
        assert folder.path.name.startswith("small-20")
        assert read_config(folder.path) == config
        assert [path.name for path in base.iterdir()] == [folder.path.name]


def test_two_runs_of_one_second_get_two_folders(base: Path) -> None:
    with RunFolder.create(config_in(base), "1.0") as a, RunFolder.create(config_in(base), "1.0") as b:
        assert a.path != b.path


def test_find_takes_the_latest_unfinished_run_of_the_same_configuration(base: Path) -> None:
    config = config_in(base)
    RunFolder.create(config, "1.0").close()
    with RunFolder.create(config, "1.0") as latest:
        pass
    RunFolder.create(config_in(base, "seed=1"), "1.0").close()
    RunFolder.create(config_in(base, "experiment=small-other"), "1.0").close()
    RunFolder.create(config, "0.9").close()
    found = RunFolder.find(config, "1.0")
    assert found is not None
    with found:
        assert found.path == latest.path


def test_find_passes_over_finished_and_busy_runs(base: Path) -> None:
    config = config_in(base)
    with RunFolder.create(config, "1.0") as finished:
        finished.finish(b"{}")
    with RunFolder.create(config, "1.0"):
        assert RunFolder.find(config, "1.0") is None


def test_the_digest_ignores_where_results_go_and_nothing_else(base: Path) -> None:
    config = config_in(base)
    assert digest(config) == digest(config_in(base / "elsewhere"))
    for override in ("seed=3", "federated.rounds=9", "data.test_images=5000", "inference=null"):
        assert digest(config) != digest(with_overrides(config, [override]))


def test_only_one_process_works_in_a_folder(base: Path) -> None:
    with (
        RunFolder.create(config_in(base), "1.0") as folder,
        pytest.raises(ConfigError, match="another process is working on this run"),
    ):
        RunFolder.resume(folder.path, "1.0")
    RunFolder.resume(folder.path, "1.0").close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "run.json").unlink(), "no run folder"),
        (lambda path: (path / "run.json").write_text("{"), "damaged"),
        (lambda path: (path / "metrics.json").write_text("{}"), "is finished"),
        (
            lambda path: (path / "config.yaml").write_text((path / "config.yaml").read_text() + "seed: 5\n"),
            "stands already",
        ),
        (
            lambda path: (path / "config.yaml").write_text(
                (path / "config.yaml").read_text().replace("seed: 0", "seed: 5")
            ),
            "changed after the run began",
        ),
    ],
)
def test_what_cannot_be_resumed_says_why(base: Path, spoil: object, message: str) -> None:
    with RunFolder.create(config_in(base), "1.0") as folder:
        pass
    spoil(folder.path)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message):
        RunFolder.resume(folder.path, "1.0")


def test_another_version_is_not_resumed(base: Path) -> None:
    with RunFolder.create(config_in(base), "1.0") as folder:
        pass
    with pytest.raises(ConfigError, match=r"begun by encml 1\.0, here is 2\.0"):
        RunFolder.resume(folder.path, "2.0")


def test_checkpoints_come_back_and_a_damaged_one_is_refused(base: Path) -> None:
    state = {"round": 3, "model": {"w": torch.arange(4.0)}, "history": [{"accuracy": 0.5, "failed": ()}], "big": 2**90}
    with RunFolder.create(config_in(base), "1.0") as folder:
        assert folder.load_checkpoint() is None
        folder.save_checkpoint(state)
        loaded = folder.load_checkpoint()
        assert loaded is not None
        assert torch.equal(loaded["model"]["w"], torch.arange(4.0))
        assert (loaded["round"], loaded["history"], loaded["big"]) == (3, state["history"], 2**90)
        checkpoint = folder.path / "checkpoint.pt"
        whole = checkpoint.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"x" * len(whole)):
            checkpoint.write_bytes(damaged)
            with pytest.raises(ConfigError, match="damaged"):
                folder.load_checkpoint()


def test_a_checkpoint_never_runs_code(base: Path) -> None:
    with RunFolder.create(config_in(base), "1.0") as folder:
        torch.save({"round": Path("x")}, folder.path / "checkpoint.pt")
        with pytest.raises(ConfigError, match="damaged"):
            folder.load_checkpoint()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")

    def fail(folder: Path) -> None:
        (folder / "party-0").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write_folder(tmp_path / "model", lambda folder: (folder / "party-0").write_bytes(b"whole"))
    with pytest.raises(EncmlError, match="No space left on device"):
        write_folder(tmp_path / "model", fail)
    assert (tmp_path / "model" / "party-0").read_bytes() == b"whole"
    with pytest.raises(EncmlError, match="cannot be written"):
        write_file(tmp_path / "missing" / "a", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "model"]


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EncmlError, match="choose --output"):
        RunFolder.create(config_in(tmp_path / "file"), "1.0")


WRITER = """
import sys
from pathlib import Path
import torch
from encml.config import load_experiment
from encml.experiment.folder import RunFolder
config = load_experiment(sys.argv[1])
print("ready", flush=True)
while True:
    with RunFolder.create(config, "1.0") as folder:
        for number in range(50):
            folder.save_checkpoint({"number": number, "values": torch.full((20_000,), float(number))})
            shares = bytes([number]) * 9999
            folder.write_model(lambda path: [(path / f"party-{i}").write_bytes(shares) for i in range(3)])
"""


def test_killed_at_any_moment_every_folder_is_whole(base: Path, tmp_path: Path) -> None:
    with RunFolder.create(config_in(base), "1.0") as folder:
        pass
    config_file = folder.path / "config.yaml"
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(config_file)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.11 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    runs = [path for path in base.iterdir() if not path.name.startswith(".")]
    assert len(runs) > 1
    for path in runs:
        with RunFolder.resume(path, "1.0") as found:
            assert json.loads((path / "run.json").read_text())["digest"] == digest(found.config)
            state = found.load_checkpoint()
            if state is not None:
                assert torch.equal(state["values"], torch.full((20_000,), float(state["number"])))
            if (path / "model").exists():
                assert len({(path / "model" / f"party-{i}").read_bytes() for i in range(3)}) == 1
            assert not list(path.glob(".*"))
    RunFolder.create(config_in(base), "1.0").close()
    assert not list(base.glob(".new-*"))


def test_leftovers_of_an_interrupted_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.0123.new").write_bytes(b"half")
    (tmp_path / ".model.0123.new").mkdir()
    (tmp_path / ".hidden").write_bytes(b"someone else's")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]
