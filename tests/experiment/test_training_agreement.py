"""Before anything is computed the parties make sure that they train the same, and go on with the same."""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from party_threads import Links, ThreadTransport
from small_runs import small_training
from torch import Tensor

from encml.config.cluster import ClusterConfig, PartyConfig
from encml.data.mnist import load_subset
from encml.errors import ConfigError, EncmlError
from encml.experiment.training import checkpoints as module
from encml.experiment.training.checkpoints import ROOTS, Checkpoints
from encml.experiment.training.events import Event, Step
from encml.experiment.training.job import TrainingJob
from encml.experiment.training.owners import cut, used_data
from encml.experiment.training.party import run_party
from encml.mpc.session import Session
from encml.net.local import LocalTransport
from encml.net.transport import PARTIES

PARTS = [{"train_labels": torch.arange(10) + rank} for rank in range(PARTIES)]
Make = Callable[[int, Session], Checkpoints]


def at_three(make: Make, **formats: tuple[int | None, ...]) -> list[Checkpoints | EncmlError]:
    """What ``make`` gives, or raises, at each of three parties with processes of their own (threads here)."""
    links: Links = {(a, b): queue.Queue() for a in range(PARTIES) for b in range(PARTIES) if a != b}
    found: dict[int, Checkpoints | EncmlError] = {}

    def run(rank: int) -> None:
        settings = {key: values[rank] for key, values in formats.items()}
        transport = ThreadTransport(rank, links)
        with Session(transport, **settings) as session:  # type: ignore[arg-type]
            try:
                found[rank] = make(rank, session)
            except EncmlError as error:
                found[rank] = error
                transport.close()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(PARTIES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[rank] for rank in range(PARTIES)]


def made(folder: Path, rank: int, session: Session, about: str = "a test", *, fresh: bool = False) -> Checkpoints:
    return Checkpoints(folder / f"party-{rank}", session, {rank: PARTS[rank]}, about, fresh=fresh)


def begun(folder: Path, *steps: int) -> None:
    """A run that has checkpoints after ``steps``."""

    def make(rank: int, session: Session) -> Checkpoints:
        result = made(folder, rank, session)
        for step in steps:
            result.save(step, {"from": step})
        return result

    assert not any(isinstance(result, EncmlError) for result in at_three(make))


def messages(results: list[Checkpoints | EncmlError]) -> list[str]:
    assert all(isinstance(result, ConfigError) for result in results), results
    return [str(result) for result in results]


def test_different_experiments_are_named_at_every_party(tmp_path: Path) -> None:
    told = messages(at_three(lambda rank, session: made(tmp_path, rank, session, "ab"[rank == 1])))
    assert len(set(told)) == 1
    assert "the parties' experiments or public data differ (party 0: " in told[0]
    assert not list(tmp_path.glob(f"*/{ROOTS}"))


def test_different_formats_are_named_at_every_party(tmp_path: Path) -> None:
    def make(rank: int, session: Session) -> Checkpoints:
        return made(tmp_path, rank, session)

    told = messages(at_three(make, fraction_bits=(16, 16, 14)))
    assert {text.split(": use")[0] for text in told} == {
        "the parties' fraction_bits differ (party 0: 16, party 1: 16, party 2: 14)"
    }
    told = messages(at_three(make, comparison_bits=(32, None, None)))
    assert "comparison_bits differ (party 0: 32, party 1: 0, party 2: 0)" in told[1]


def test_beginning_anew_takes_all_three(tmp_path: Path) -> None:
    begun(tmp_path, 4)
    told = messages(at_three(lambda rank, session: made(tmp_path, rank, session, fresh=rank == 1)))
    assert "--fresh differ (party 0: 0, party 1: 1, party 2: 0): give it to all parties, or to none" in told[0]
    assert (tmp_path / "party-0" / "step-4.pt").exists()
    before = (tmp_path / "party-0" / ROOTS).read_bytes()
    results = at_three(lambda rank, session: made(tmp_path, rank, session, fresh=True))
    assert not any(isinstance(result, EncmlError) for result in results)
    assert not list(tmp_path.glob("*/step-*"))
    assert (tmp_path / "party-0" / ROOTS).read_bytes() != before


def test_who_comes_without_files_does_not_cost_the_others_theirs(tmp_path: Path) -> None:
    begun(tmp_path, 4)
    shutil.rmtree(tmp_path / "party-1")
    told = messages(at_three(lambda rank, session: made(tmp_path, rank, session)))
    assert "a run of which party 1 has no files" in told[0]
    assert (tmp_path / "party-0" / "step-4.pt").exists()
    # Where nothing is lost, a party that was stopped before it wrote its roots is no obstacle.
    begun(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "party-1")
    begun(tmp_path / "other")


def test_files_of_different_runs_do_not_go_together(tmp_path: Path) -> None:
    begun(tmp_path, 4)
    begun(tmp_path / "other", 4)
    shutil.rmtree(tmp_path / "party-1")
    (tmp_path / "other" / "party-1").rename(tmp_path / "party-1")
    results = at_three(lambda rank, session: made(tmp_path, rank, session))
    assert all(isinstance(result, EncmlError) for result in results)
    assert any("different sessions" in str(result) and "--fresh" in str(result) for result in results)


def masks(folder: Path, about: str = "a test", **settings: int) -> Tensor:
    with Session(**settings) as session:  # type: ignore[arg-type]
        Checkpoints(folder, session, dict(enumerate(PARTS)), about).begin("train 0")
        return session.parties.zero((32,))


def test_what_decides_the_messages_must_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = masks(tmp_path)
    assert torch.equal(masks(tmp_path), first)
    with pytest.raises(ConfigError, match="the configuration or the public data have changed since this run began"):
        masks(tmp_path, "another test")
    with pytest.raises(ConfigError, match="fraction_bits have changed"):
        masks(tmp_path, fraction_bits=14)
    with pytest.raises(ConfigError, match="comparison_bits have changed"):
        masks(tmp_path, comparison_bits=32)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_program", lambda: "edited")
        with pytest.raises(ConfigError, match="encml's or PyTorch's code have changed"):
            masks(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_platform", lambda: "upgraded")
        with pytest.raises(ConfigError, match="Python, the libraries or the kind of machine have changed"):
            masks(tmp_path)
    # Refused, nothing was written: the run goes on as it began.
    assert torch.equal(masks(tmp_path), first)


def test_two_runs_of_one_session_have_other_masks(tmp_path: Path) -> None:
    """The same roots, configuration and data, but noise of their own."""
    found = []
    with Session() as session:
        for name in ("one", "other"):
            run = Checkpoints(tmp_path / name, session, dict(enumerate(PARTS)), "a test")
            run.begin("train 0")
            found.append(session.parties.zero((32,)))
            found.append(torch.tensor([list(key) for key in run.noise_keys]))
    assert not bool((found[0] == found[2]).any())
    assert not torch.equal(found[1], found[3])


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EncmlError, match="file/run: nothing can be kept here: Not a directory; choose another"):
        masks(tmp_path / "file" / "run")


def test_whoever_was_set_back_is_waited_for(tmp_path: Path) -> None:
    begun(tmp_path, 8, 12)
    begun_at: list[int] = []

    def make(rank: int, session: Session) -> Checkpoints:
        result = made(tmp_path, rank, session)
        if rank == 1:
            result._path(12).unlink()
        begun_at.append(result.latest())
        result.save(10, {})
        return result

    assert not any(isinstance(result, EncmlError) for result in at_three(make))
    assert begun_at == [8, 8, 8]
    for rank in range(PARTIES):
        assert sorted(path.name for path in (tmp_path / f"party-{rank}").glob("step-*")) == ["step-10.pt", "step-8.pt"]


def test_the_cluster_files_format_is_the_experiments(tmp_path: Path) -> None:
    zero, one, two = (PartyConfig(host="127.0.0.1", mesh_port=9000 + r, api_port=9100 + r) for r in range(PARTIES))
    config = small_training(tmp_path, parties={"comparison_bits": 40})
    for cluster, problem in (
        (ClusterConfig(parties=(zero, one, two), fraction_bits=18), "parties.fraction_bits: the experiment says 16"),
        (ClusterConfig(parties=(zero, one, two)), "--set parties.comparison_bits=null"),
    ):
        with pytest.raises(ConfigError, match=problem):
            run_party(config, cluster, 0, None, tmp_path, lambda event: None)


class Stop(Exception):
    """An interruption."""


def test_masks_that_come_again_hide_the_very_same_messages(tmp_path: Path) -> None:
    """All messages under the masks of a phase: of the first time, and of a party that goes on in another process."""
    config = small_training(
        tmp_path,
        training={"epochs": 2, "batch_size": 10, "learning_rate": 0.125, "momentum": 0.5, "steps": 8},
        privacy={"noise_multiplier": 0.8, "delta": 1e-3, "max_grad_norm": 1.0},
        reveal={"accuracy": "epoch", "model": True},
    )
    parts = dict(enumerate(cut(config.data, used_data(config.data, load_subset("of a test")))))

    def run(stop: int | None) -> dict[bytes, list[str]]:
        told: dict[bytes, list[str]] = {}
        phase = [b"the session's own masks, never used again"]

        def tap(source: int, destination: int, payload: Tensor, operation: str) -> None:
            # What a resumption says is no secret and not masked.
            if operation not in ("setup", "resume", "load"):
                content = hashlib.sha256(payload.contiguous().numpy().tobytes()).hexdigest()
                told[phase[0]].append(f"{source} {destination} {operation} {tuple(payload.shape)} {content}")

        def tell(event: Event) -> None:
            if isinstance(event, Step) and event.step == stop:
                raise Stop

        with Session(LocalTransport(tap=tap)) as session:
            rekey = session.rekey

            def begin(context: bytes) -> None:
                phase[0] = context
                told[context] = []
                rekey(context)

            session.rekey = begin  # type: ignore[method-assign]
            try:
                TrainingJob(config, session, parts, tmp_path / "run", tell, "a test").run()
            except Stop:
                assert stop is not None
        return told

    first: dict[bytes, list[str]] = {}
    for stop in (3, 3, 7, None):
        for context, found in run(stop).items():
            expected = first.setdefault(context, found)
            common = min(len(expected), len(found))
            assert found[:common] == expected[:common], context
            if len(found) > common:
                first[context] = found
    assert sum(map(len, first.values())) > 2000
