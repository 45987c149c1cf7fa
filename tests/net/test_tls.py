"""Three parties over mutual TLS on loopback: what they compute with, and how each fault ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from loopback import Parties, spin

from encml.config.cluster import ClusterConfig
from encml.errors import PartyError, PartyTimeout, ProtocolError
from encml.net.ledger import Ledger
from encml.net.local import LocalTransport
from encml.net.tls import TlsTransport
from encml.net.transport import Message, Transport

DTYPES = [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (3, 0, 2), (7,), (2, 3, 4), (2045,), (2042,), (5000, 3)]


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 100
    return torch.randint(0, high, shape, generator=generator).to(dtype)


def send(source: int, destination: int, payload: torch.Tensor, rank: int | None) -> Message:
    here = payload if rank is None or rank == source else None
    return Message(source, destination, here, tuple(payload.shape), payload.dtype)


def script(transport: Transport) -> list[torch.Tensor]:
    """A program over every dtype and shape; what each local party received, per call."""
    received = []
    rank = None if len(transport.local) == 3 else transport.local[0]
    for place, shape in enumerate(SHAPES):
        for dtype in DTYPES:
            rows = values((3, *shape), dtype, place)
            for step in (1, -1):
                received.append(transport.rotate(rows[list(transport.local)], step, "rotate"))
            pairs = [(0, 1), (0, 1), (1, 0), (2, 1), (0, 2), (1, 2)]
            payloads = [values((*shape, 2), dtype, place + k).transpose(0, -1) for k in range(len(pairs))]
            messages = [send(s, d, payload, rank) for (s, d), payload in zip(pairs, payloads, strict=True)]
            results = transport.exchange(messages, "exchange")
            for (_, destination), result in zip(pairs, results, strict=True):
                assert (result is not None) == (destination in transport.local)
            received += [result for result in results if result is not None]
    return received


def test_parties_receive_what_the_in_process_transport_delivers(cluster: ClusterConfig, parties: Parties) -> None:
    reference = LocalTransport()
    seen: list[list[torch.Tensor]] = [[], [], []]
    reference._tap = lambda source, destination, payload, operation: seen[destination].append(payload.clone())
    script(reference)
    transports = parties.connect(cluster)
    assert len({transport.session for transport in transports}) == 1
    found = parties.run(*(lambda t=t: script(t) for t in transports))
    for rank, received in enumerate(found):
        assert not isinstance(received, BaseException), received
        assert len(received) == len(seen[rank])
        for got, expected in zip(received, seen[rank], strict=True):
            assert got.dtype == expected.dtype
            assert torch.equal(got.reshape(expected.shape), expected)
    for rank, transport in enumerate(transports):
        assert transport.ledger.total.rounds == reference.ledger.total.rounds
        assert transport.ledger.total.sent[rank] == reference.ledger.total.sent[rank]
        assert sum(transport.ledger.total.sent) == transport.ledger.total.sent[rank]


def test_result_does_not_alias_the_payload(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    rows = torch.arange(30000).view(3, 10000)

    def work(transport: TlsTransport) -> torch.Tensor:
        mine = rows[[transport.rank]].clone()
        received = transport.rotate(mine, 1, "spin")
        mine.fill_(-1)
        return received

    for rank, got in enumerate(parties.run(*(lambda t=t: work(t) for t in transports))):
        assert torch.equal(got[0], rows[(rank - 1) % 3])


@pytest.mark.parametrize("everybody", [True, False])
def test_16_mb_each_way_does_not_deadlock(cluster: ClusterConfig, parties: Parties, everybody: bool) -> None:
    transports = parties.connect(cluster)
    big = torch.arange(2**21)
    pairs = [(s, d) for s in range(3) for d in range(3) if s != d] if everybody else [(0, 2), (2, 0)]

    def work(transport: TlsTransport) -> bool:
        messages = [send(s, d, big + s, transport.rank) for s, d in pairs]
        results = transport.exchange(messages, "big")
        return all(r is None or torch.equal(r, big + s) for r, (s, _) in zip(results, pairs, strict=True))

    assert parties.run(*(lambda t=t: work(t) for t in transports)) == [True, True, True]


def test_sessions_are_fresh(cluster: ClusterConfig, parties: Parties) -> None:
    first = parties.connect(cluster)[0].session
    for transport in parties.opened:
        transport.close()
    assert parties.connect(cluster)[0].session != first


# --- three real processes --------------------------------------------------------------------------------------


def _process(config: ClusterConfig, rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    transport = TlsTransport.connect(config, rank, Ledger())
    pipe.send([tensor.numpy() for tensor in script(transport)])
    try:
        while True:
            transport.rotate(torch.zeros(1, 4, dtype=torch.int64), 1, "spin")
    except PartyError as error:
        pipe.send((type(error).__name__, error.rank, str(error), time.monotonic()))


class _Processes:
    def __init__(self, config: ClusterConfig) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "encml.net.tls"])
        self.pipes = []
        self.processes = []
        for rank in range(3):
            ours, theirs = context.Pipe()
            process = context.Process(target=_process, args=(config, rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def take(self, rank: int) -> Any:
        assert self.pipes[rank].poll(60), f"party {rank} says nothing"
        return self.pipes[rank].recv()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_real_processes_and_a_lost_party(cluster: ClusterConfig, how: str) -> None:
    reference = LocalTransport()
    seen: list[list[Any]] = [[], [], []]
    reference._tap = lambda source, destination, payload, operation: seen[destination].append(payload.numpy().copy())
    script(reference)
    group = _Processes(cluster)
    try:
        for rank in range(3):
            for got, expected in zip(group.take(rank), seen[rank], strict=True):
                assert got.tobytes() == expected.tobytes()
        time.sleep(0.2)
        start = time.monotonic()
        pid = group.processes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        for rank in (0, 2):
            name, culprit, message, end = group.take(rank)
            assert culprit == 1
            assert cluster.parties[1].mesh_address in message
            if how == "killed":
                assert end - start < 1.5
            else:
                assert name == "PartyTimeout" or "has failed" in message
                assert 0.9 * cluster.timeout < end - start < 1.5 * cluster.timeout + 1
    finally:
        group.end()


# --- faults between rounds and within them, in one process -----------------------------------------------------


@pytest.mark.parametrize("step", [1, -1])
def test_closed_party_is_named_by_both(cluster: ClusterConfig, parties: Parties, step: int) -> None:
    transports = parties.connect(cluster)
    rows = torch.zeros(1, 4)
    assert not any(isinstance(r, BaseException) for r in parties.run(*(lambda t=t: spin(t) for t in transports)))
    transports[1].close()
    start = time.monotonic()
    work = [lambda t=t: [t.rotate(rows, step, "spin") for _ in range(3)] for t in (transports[0], transports[2])]
    for error in parties.run(*work):
        assert isinstance(error, PartyError)
        assert error.rank == 1
        assert error.address == cluster.parties[1].mesh_address
        assert error.address in str(error)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("step", [1, -1])
def test_stalled_party_is_named_by_both(cluster: ClusterConfig, parties: Parties, step: int) -> None:
    """One peer waits for the stalled party, the other only for the one that waits: both name the stalled one."""
    transports = parties.connect(cluster)
    start = time.monotonic()
    rows = torch.zeros(1, 4)
    work = [lambda t=t: [t.rotate(rows, step, "spin") for _ in range(3)] for t in (transports[0], transports[2])]
    for error in parties.run(*work):
        assert isinstance(error, PartyError)
        assert error.rank == 1
        assert cluster.parties[1].mesh_address in str(error)
    assert 0.9 * cluster.timeout < time.monotonic() - start < cluster.timeout + 1


def test_party_that_does_not_read_is_named(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    big = torch.zeros(2**23, dtype=torch.int64)
    start = time.monotonic()
    (error,) = parties.run(lambda: transports[0].exchange([send(0, 2, big, 0)], "big"))
    assert isinstance(error, PartyTimeout)
    assert error.rank == 2
    assert "'big'" in str(error)
    assert 0.9 * cluster.timeout < time.monotonic() - start < cluster.timeout + 1.5


def test_slow_but_moving_peer_is_waited_for(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster.model_copy(update={"timeout": 0.6}))

    def slow(transport: TlsTransport) -> torch.Tensor:
        for _ in range(4):
            time.sleep(0.4)
            spin(transport)
        return spin(transport)

    found = parties.run(
        lambda: [spin(transports[0]) for _ in range(5)],
        lambda: slow(transports[1]),
        lambda: [spin(transports[2]) for _ in range(5)],
    )
    assert not any(isinstance(result, BaseException) for result in found), found


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (lambda t: spin(t, "multiply"), "another operation"),
        (lambda t: spin(t, size=5), "another operation, shape"),
        (lambda t: t.rotate(torch.zeros(1, 8, dtype=torch.int32), 1, "spin"), "another operation, shape or dtype"),
        (lambda t: t.rotate(torch.zeros(1, 4, dtype=torch.int64), -1, "spin"), None),
    ],
)
def test_drifted_party_stops_its_peers(
    cluster: ClusterConfig, parties: Parties, other: Callable[[TlsTransport], Any], field: str | None
) -> None:
    transports = parties.connect(cluster)
    start = time.monotonic()
    found = parties.run(lambda: spin(transports[0]), lambda: other(transports[1]), lambda: spin(transports[2]))
    for error in found:
        if not isinstance(error, torch.Tensor):
            assert isinstance(error, (ProtocolError, PartyError))
    # Party 2 reads from party 1, which is elsewhere.
    if field is not None:
        assert isinstance(found[2], ProtocolError)
        assert field in str(found[2])
        assert "party 1" in str(found[2])
        assert "'spin +1'" in str(found[2])
    assert any(isinstance(error, (ProtocolError, PartyError)) for error in found)
    assert time.monotonic() - start < cluster.timeout + 1


def test_left_out_round_is_a_wrong_sequence_or_operation(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    transports[1]._links[2].writer._sequence += 1
    found = parties.run(*(lambda t=t: spin(t) for t in transports))
    assert isinstance(found[2], ProtocolError)
    assert "sequence number 1, expected 0" in str(found[2])
    assert "party 1" in str(found[2])


def test_frame_of_another_session_is_refused(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    transports[1]._links[2].writer._session = bytes(16)
    found = parties.run(*(lambda t=t: spin(t) for t in transports))
    assert isinstance(found[2], ProtocolError)
    assert "session 00000000" in str(found[2])


def test_garbled_record_is_refused(cluster: ClusterConfig, parties: Parties) -> None:
    """A bit flipped on the wire, below TLS: refused by TLS, and named."""
    transports = parties.connect(cluster)
    raw = socket.socket(fileno=os.dup(transports[1]._links[2]._out.fileno()))
    raw.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    raw.close()
    found = parties.run(lambda: spin(transports[0]), lambda: spin(transports[2]))
    assert isinstance(found[1], ProtocolError)
    assert "party 1" in str(found[1])


def test_bool_that_is_no_bool_is_refused(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    wrong = torch.tensor([2], dtype=torch.uint8).view(torch.bool)
    found = parties.run(
        lambda: transports[0].exchange([send(0, 1, wrong, 0)], "bits"),
        lambda: transports[1].exchange([send(0, 1, wrong, 1)], "bits"),
    )
    assert isinstance(found[1], ProtocolError)
    assert "neither 0 nor 1" in str(found[1])


def test_local_misuse_is_refused_and_ends_the_session(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    with pytest.raises(ProtocolError, match="itself"):
        transports[0].exchange([send(0, 0, torch.zeros(1), 0)], "odd")
    with pytest.raises(PartyError, match="connect again"):
        spin(transports[0])
    with pytest.raises(ProtocolError, match="no payload"):
        transports[1].exchange([Message(1, 0, None, (1,), torch.int64)], "odd")
    with pytest.raises(ProtocolError, match="step"):
        transports[2].rotate(torch.zeros(1, 1), 2, "odd")


def test_check_notices_a_closed_peer_between_rounds(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    parties.run(*(lambda t=t: spin(t) for t in transports))
    transports[0].check()
    transports[2].close()
    time.sleep(0.1)
    for transport in transports[:2]:
        with pytest.raises(PartyError) as caught:
            transport.check()
        assert caught.value.rank == 2
        transport.close()
    again = parties.connect(cluster)
    assert not any(isinstance(r, BaseException) for r in parties.run(*(lambda t=t: spin(t) for t in again)))


def test_close_from_another_thread_ends_a_waiting_round(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    threading.Timer(0.3, transports[0].close).start()
    start = time.monotonic()
    (error,) = parties.run(lambda: spin(transports[0]))
    assert isinstance(error, PartyError)
    assert "closed this session" in str(error)
    assert time.monotonic() - start < 1.5
    assert transports[0]._links[1]._in.fileno() == -1
    transports[0].close()


def test_two_threads_in_one_transport_are_refused(cluster: ClusterConfig, parties: Parties) -> None:
    transports = parties.connect(cluster)
    found = parties.run(lambda: spin(transports[0]), lambda: (time.sleep(0.3), spin(transports[0])))
    assert isinstance(found[1], ProtocolError)
    assert "two threads" in str(found[1])
    assert isinstance(found[0], PartyTimeout)
