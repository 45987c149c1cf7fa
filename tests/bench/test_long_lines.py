"""A long line between the parties: what the router does with packets, and what TCP and encml find on it."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encml.bench.cases import choose
from encml.bench.line import entry, laying, namespaces
from encml.bench.line.laying import lay, netem_works
from encml.bench.line.router import BUFFER_SECONDS, Uplink, wire_bytes
from encml.bench.measuring import measure
from encml.bench.processes import run_parties
from encml.bench.records import DistantCase, Run
from encml.errors import ConfigError
from encml.mpc.session import Session
from encml.net.local import LocalTransport

MARK = "ENCML_TEST_MARK"
ROUND_TRIP, BANDWIDTH = 0.02, 80e6


def packet(size: int, segment: int = 0, header: int = 52) -> bytes:
    """A packet as a device hands it over: its header, then ``size`` bytes."""
    return struct.pack("<BBHHHH", 0, int(segment > 0), header, segment, 0, 0) + bytes(size)


# The router, in time that the test makes ----------------------------------------------------------------------------


def test_a_packet_takes_its_time_on_the_wire_and_half_the_round_trip() -> None:
    uplink = Uplink(delay=0.5, rate=1000.0)
    uplink.send(packet(100), now=10.0)
    assert uplink.next_arrival == pytest.approx(10.6)
    assert uplink.arrived(10.59) is None
    assert uplink.arrived(10.61) == packet(100)
    assert uplink.next_arrival == float("inf")


@given(
    sizes=st.lists(st.integers(40, 1500), min_size=1, max_size=30),
    gaps=st.lists(st.floats(0, 0.02), min_size=30, max_size=30),
)
def test_packets_arrive_in_order_and_no_faster_than_the_rate(sizes: list[int], gaps: list[float]) -> None:
    delay, rate, now = 0.02, 1e6, 0.0
    uplink = Uplink(delay, rate)
    sent = []
    for size, gap in zip(sizes, gaps, strict=False):
        now += gap
        uplink.send(packet(size), now)
        sent.append((now, size))
    assert uplink.dropped == 0
    arrivals = []
    while (at := uplink.next_arrival) < float("inf"):
        assert uplink.arrived(at) is not None
        arrivals.append(at)
    assert len(arrivals) == len(sent)
    assert arrivals == sorted(arrivals)
    for (start, size), at in zip(sent, arrivals, strict=True):
        assert at >= start + delay + size / rate - 1e-9
    # From any packet on, the line carries no more than its rate.
    for first in range(len(sent)):
        carried = sum(size for _, size in sent[first + 1 :])
        assert arrivals[-1] - arrivals[first] >= carried / rate - 1e-9


def test_a_full_buffer_drops_and_empties_again() -> None:
    uplink = Uplink(delay=0.0, rate=1e6)
    fits = int(BUFFER_SECONDS * 1e6 / 900) + 1
    for _ in range(fits + 5):
        uplink.send(packet(900), now=0.0)
    assert uplink.dropped == 5
    uplink.send(packet(900), now=BUFFER_SECONDS)
    assert uplink.dropped == 5


def test_without_a_limit_nothing_waits_or_is_dropped() -> None:
    uplink = Uplink(delay=0.1, rate=None)
    for _ in range(1000):
        uplink.send(packet(60_000), now=1.0)
    assert uplink.dropped == 0
    assert all(uplink.arrived(1.1 + 1e-9) for _ in range(1000))


@pytest.mark.parametrize(
    ("size", "segment", "expected"),
    [(1500, 0, 1500), (52, 1448, 52), (52 + 1448, 1448, 1500), (52 + 1449, 1448, 1501 + 52), (52 + 14480, 1448, 15000)],
)
def test_every_segment_of_a_large_packet_has_headers(size: int, segment: int, expected: int) -> None:
    assert wire_bytes(packet(size, segment)) == expected


# What is asked of the system ----------------------------------------------------------------------------------------


def test_netem_is_used_where_tc_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not namespaces.netem(0.02, 44e6, 0.1)  # no tc at all
    tc = tmp_path / "tc"
    tc.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\n')
    tc.chmod(0o755)
    assert namespaces.netem(0.02, 44e6, 0.1)
    words = (tmp_path / "words").read_text()
    assert words == "qdisc replace dev line0 root netem limit 3520 delay 20000us rate 352000000bit\n"
    assert namespaces.netem(0.0005, None, 0.1)
    assert (tmp_path / "words").read_text().endswith("delay 500us\n")
    tc.write_text("#!/bin/sh\nexit 2\n")
    assert not namespaces.netem(0.02, 44e6, 0.1)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "_unshare", lambda what: errno.EPERM)
    with pytest.raises(ConfigError, match=r"may not make any \(Operation not permitted\): run as root"):
        namespaces.enter()

    def no_such_device(*_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "open", no_such_device)
    with pytest.raises(ConfigError, match="/dev/net/tun: No such file or directory; load the module tun"):
        namespaces.open_device(0)


def test_a_machine_that_allows_no_line_is_told_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[-2:] == [entry.__name__, "--check"]
        return subprocess.CompletedProcess(command, 1, "", "a line needs TUN devices\n")

    monkeypatch.setattr(laying.subprocess, "run", refused)
    with pytest.raises(ConfigError, match="--round-trip: a line needs TUN devices"):
        netem_works()


# On this machine ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def netem() -> bool:
    try:
        return netem_works()
    except ConfigError as error:
        pytest.skip(f"no long lines here: {error}")


def test_a_line_is_as_long_and_as_narrow_as_was_asked(netem: bool) -> None:
    cases = choose(["relu"])
    found = []
    with lay(ROUND_TRIP, BANDWIDTH, netem) as line:
        for case, outcome in run_parties(cases, quick=True, repeats=2, threads=1, line=line):
            assert isinstance(outcome, Run)
            found.append(DistantCase(name=case.name, run=outcome))
        report = line.report(found)
    assert report.made_by == ("netem" if netem else "router")
    # Never shorter than asked. A busy machine makes it longer and narrower; a reader that wakes late, at half of the
    # bytes, finds it wider than it is.
    assert ROUND_TRIP <= report.measured_round_trip < 2 * ROUND_TRIP
    assert BANDWIDTH / 2 < report.measured_bandwidth < 1.25 * BANDWIDTH
    for case, distant in zip(cases, report.cases, strict=True):
        with Session(LocalTransport()) as session:
            alone = measure(case, session, quick=True, repeats=1)
        assert isinstance(alone, Run)
        assert distant.name == case.name
        assert distant.run.rounds == alone.rounds
        assert distant.run.bytes_per_party == pytest.approx(alone.bytes_per_party)
        # No round is over before its messages are there.
        assert min(distant.run.seconds) >= alone.rounds * ROUND_TRIP / 2


SCRIPT = """
import sys, time
from encml.bench.cases import choose
from encml.bench.line.laying import lay
from encml.bench.processes import run_parties
with lay(0.001, None, sys.argv[1] == "True") as line:
    for case, _ in run_parties(choose(["round", "product"]), True, 1, 1, line):
        print(case.name, flush=True)
        time.sleep(100)
"""


@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_no_process_outlives_the_benchmark(netem: bool, end: signal.Signals, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    # A long name, and nothing is left in the system's own folder by what is killed.
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(netem)],
        env=os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "round\n"
        assert len(marked(mark)) == 5, "the benchmark, the router, three parties"
        process.send_signal(end)
        process.wait(60)
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 20
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []


def marked(mark: str) -> list[int]:
    """Processes that carry the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
