"""What goes wrong in a cluster of real processes: each fault is named in time, nothing is left behind, all recovers.

Starting a party takes seconds, so the tests that start many are marked slow.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from serving_support import Long, alive, network, state, until

from encml.config.cluster import ClusterConfig
from encml.errors import ConfigError, EncmlError, PartyError, PartyTimeout
from encml.net.certificates import make_cluster_keys
from encml.serving import Client, Cluster, Status, run_party
from encml.serving.processes import LocalParties, free_ports, local_config

TIMEOUT = 2.0
SLACK = 2.0
"""Seconds for Python, on a busy machine, beyond the configured time-out."""
MODEL = network()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.local(timeout=TIMEOUT, connect_timeout=20.0) as found:
        found.share(MODEL, torch.randn(1, 6), "small")
        found.serve(name="small")
        found.share(Long(), torch.randn(1, 6), "long")
        found.serve(name="long", num_requests=100)
        yield found


def error_of(call: Callable[[], object]) -> tuple[EncmlError, float]:
    """The error that a call ends with, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(EncmlError) as caught:
        call()
    return caught.value, time.monotonic() - start


class Asking(threading.Thread):
    """Asks the long model in the background; ``error`` is how it ended."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client
        self.error: BaseException | None = None
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        try:
            self.client.query_model(torch.randn(1500, 6), "long")
        except EncmlError as error:
            self.error = error
        self.ended = time.monotonic()


def answers(cluster: Cluster) -> bool:
    x = torch.randn(2, 6)
    with cluster.client() as client, torch.no_grad():
        return torch.allclose(client.query_model(x, "small"), MODEL(x), atol=1e-3)


def answers_again(cluster: Cluster) -> bool:
    """Whether a party that was stalled serves once more. A party that still waits for it ends its session a little
    later, and a request until then fails with it."""
    cluster.wait_ready()
    try:
        return answers(cluster)
    except PartyError:
        return False


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_party_killed_while_it_computes_is_named_and_serves_again(cluster: Cluster, rank: int) -> None:
    assert cluster.parties is not None
    before = state(cluster, 1).models
    with cluster.client() as client:
        asking = Asking(client)
        until(lambda: state(cluster, rank).state == "busy")
        cluster.parties.kill(rank)
        killed = time.monotonic()
        asking.join(timeout=20)
    assert isinstance(asking.error, PartyError)
    assert asking.error.rank == rank
    assert f"party {rank}" in str(asking.error)
    assert asking.ended - killed < TIMEOUT + SLACK
    for other in (r for r in range(3) if r != rank):
        until(lambda other=other: state(cluster, other).state == "connecting")
        problem = state(cluster, other).problem
        assert problem is not None
        assert problem.rank == rank
    with cluster.client() as client:
        error, seconds = error_of(lambda: client.query_model(torch.randn(1, 6), "small"))
    assert isinstance(error, PartyError)
    assert error.rank == rank
    assert seconds < TIMEOUT
    cluster.parties.start(rank)
    cluster.wait_ready()
    # Its shares and counts come from its store; the owner has nothing to do.
    assert [(m.name, m.model_id) for m in state(cluster, rank).models] == [(m.name, m.model_id) for m in before]
    assert answers(cluster)


def test_parties_end_when_told_and_are_missed_without_any_request(cluster: Cluster) -> None:
    """SIGTERM and SIGINT end a party in order; the third notices while idle; back again, all serve.

    A file in the store that is no model costs nothing but a line in the log.
    """
    assert cluster.parties is not None
    spoiled = cluster.config.store / "party-1" / "spoiled.safetensors"
    spoiled.write_bytes(b"\0" * 100)
    for rank, number in ((1, signal.SIGTERM), (2, signal.SIGINT)):
        os.kill(cluster.parties.pid(rank), number)
        assert cluster.parties.wait(rank, 10.0) == 0
        assert f"party {rank}: stopped" in cluster.parties.tail(rank)
        assert "Traceback" not in cluster.parties.tail(rank, lines=1000)
        assert until(lambda: state(cluster, 0).state == "connecting") < TIMEOUT + SLACK
    problem = state(cluster, 0).problem
    assert problem is not None
    assert problem.rank in (1, 2)
    cluster.start()
    assert answers(cluster)
    assert "spoiled.safetensors: not a whole safetensors file" in cluster.parties.tail(1, lines=1000)
    spoiled.unlink()


def test_a_stalled_party_is_named_within_the_time_out_and_may_come_back(cluster: Cluster) -> None:
    assert cluster.parties is not None
    with cluster.client() as client:
        asking = Asking(client)
        until(lambda: state(cluster, 0).state == "busy")
        os.kill(cluster.parties.pid(2), signal.SIGSTOP)
        stopped = time.monotonic()
        asking.join(timeout=20)
    assert isinstance(asking.error, PartyError)
    assert asking.error.rank == 2
    assert asking.ended - stopped < TIMEOUT + SLACK
    os.kill(cluster.parties.pid(2), signal.SIGCONT)
    until(lambda: answers_again(cluster))


def test_a_party_that_stalls_before_a_request_is_named(cluster: Cluster) -> None:
    assert cluster.parties is not None
    os.kill(cluster.parties.pid(1), signal.SIGSTOP)
    with cluster.client() as client:
        error, seconds = error_of(lambda: client.query_model(torch.randn(1, 6), "small"))
    os.kill(cluster.parties.pid(1), signal.SIGCONT)
    assert isinstance(error, PartyError)
    assert error.rank == 1
    assert seconds < TIMEOUT + SLACK
    until(lambda: answers_again(cluster))


@pytest.mark.slow
def test_counts_survive_and_the_lowest_holds(cluster: Cluster) -> None:
    """A party that missed a stop learns of it when it is back; nobody answers more than the owner allowed."""
    assert cluster.parties is not None
    cluster.share(MODEL, torch.randn(1, 6), "counted")
    cluster.serve(5, "counted")
    with cluster.client() as client:
        client.query_model(torch.randn(1, 6), "counted")
    cluster.parties.kill(0)
    with pytest.raises(PartyError, match="party 0"):
        cluster.serve(2, "counted")
    cluster.parties.start(0)
    cluster.wait_ready()
    with cluster.client() as client:
        left = 0
        while True:
            try:
                client.query_model(torch.randn(1, 6), "counted")
            except EncmlError as error:
                assert "cap" in str(error)  # noqa: PT017 (the loop ends with it)
                break
            left += 1
    assert left in (2, 4), "2 where the new count reached a party before it failed, else what was left"
    remaining = {m.remaining for rank in range(3) for m in state(cluster, rank).models if m.name == "counted"}
    assert remaining == {0}


@pytest.mark.slow
def test_a_port_in_use_is_told_with_the_log_and_nothing_is_left(tmp_path: Path) -> None:
    config = local_config(tmp_path, timeout=TIMEOUT)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.parties[1].api_port))
        taken.listen()
        cluster = Cluster(config, auto_managed=True)
        with pytest.raises(PartyError, match=r"party 1 has ended[\s\S]*cannot listen on") as caught:
            cluster.__enter__()
    assert caught.value.rank == 1
    assert cluster.parties is not None
    assert not any(cluster.parties.running(rank) for rank in range(3))


def test_a_wrong_cluster_ends_a_party_at_once(tmp_path: Path) -> None:
    config = local_config(tmp_path)
    with pytest.raises(ConfigError, match="keys init"):
        run_party(config, 0)
    make_cluster_keys(config.keys, ["127.0.0.1"] * 3)
    ports = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        busy = config.parties[0].model_copy(update={"mesh_port": ports[0]})
        parties = (busy, config.parties[1], config.parties[2])
        with pytest.raises(ConfigError, match="mesh_port"):
            run_party(config.model_copy(update={"parties": parties}), 0)


@pytest.mark.slow
def test_parties_that_do_not_come_up_are_named(tmp_path: Path) -> None:
    config = local_config(tmp_path, timeout=TIMEOUT)
    make_cluster_keys(config.keys, ["127.0.0.1"] * 3)
    parties = LocalParties(config)
    try:
        for rank in (0, 2):
            parties.start(rank)
        with pytest.raises(ConfigError, match="running already"):
            parties.start(0)
        cluster = Cluster(config)
        until(lambda: all(isinstance(cluster.status()[rank], Status) for rank in (0, 2)))
        with pytest.raises(PartyTimeout, match=r"party 1 is not up after 0\.2 s") as caught:
            cluster.wait_ready(timeout=0.2)
        assert caught.value.rank == 1
        with cluster.client() as client:
            error, _ = error_of(lambda: client.query_model(torch.randn(1, 6), "small"))
        assert isinstance(error, PartyError)
        cluster.close()
    finally:
        parties.stop()


PARENT = """
    import sys, time
    from encml.serving import Cluster

    with Cluster.local() as cluster:
        print(*(cluster.parties.pid(rank) for rank in range(3)), flush=True)
        {then}
    """


@pytest.mark.parametrize(
    ("then", "number", "code"),
    [
        pytest.param("time.sleep(600)", signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("time.sleep(600)", signal.SIGINT, -signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("raise ValueError('stop')", None, 1, marks=pytest.mark.slow),
        pytest.param("sys.exit(3)", None, 3, marks=pytest.mark.slow),
    ],
)
def test_no_party_outlives_the_process_that_started_it(then: str, number: signal.Signals | None, code: int) -> None:
    script = textwrap.dedent(PARENT.format(then=then))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3
    if number is not None:
        parent.send_signal(number)
    assert parent.wait(timeout=30) == code
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_party_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    """The same with one party that still waits for the others."""
    script = """
        import sys, time
        from pathlib import Path
        from encml.net.certificates import make_cluster_keys
        from encml.serving.processes import LocalParties, local_config

        config = local_config(Path(sys.argv[1]))
        make_cluster_keys(config.keys, ["127.0.0.1"] * 3)
        parties = LocalParties(config)
        parties.start(0)
        while "listens" not in parties.tail(0):
            time.sleep(0.05)
        print(parties.pid(0), flush=True)
        time.sleep(600)
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    until(lambda: not alive(pid))


def test_a_cluster_file_of_a_running_cluster(tmp_path: Path, cluster: Cluster) -> None:
    """Owner and client from the file alone, as on other hosts."""
    path = tmp_path / "cluster.yaml"
    path.write_text(cluster.config.model_dump_json(exclude_none=True))
    owner = Cluster(path)
    assert isinstance(owner.config, ClusterConfig)
    owner.wait_ready()
    owner.close()
    owner.close()
    with Client(path) as client:
        assert client.query_model(torch.randn(1, 6), "small").shape == (1, 3)
