"""Laying a line between three parties, and taking it away."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from encml.bench.line import entry
from encml.bench.line.namespaces import address
from encml.bench.records import Distance, DistantCase
from encml.config.cluster import ClusterConfig, PartyConfig
from encml.errors import ConfigError, PartyError
from encml.experiment.metrics import Record
from encml.net.transport import PARTIES

_STOP_SECONDS = 10.0
_MESH_PORT, _API_PORT = 9100, 9200
"""Every party has all ports of its namespace for itself."""


class _Measured(Record):
    round_trip: float
    rate: float
    congestion_control: str


class _Dropped(Record):
    dropped: int


def netem_works() -> bool:
    """Whether the kernel's netem can delay packets here. Raises ConfigError where no line can be laid at all."""
    command = [sys.executable, "-m", entry.__name__, "--check"]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if found.returncode:
        raise ConfigError(f"--round-trip: {found.stderr.strip()}")
    return bool(json.loads(found.stdout)["netem"])


class LaidLine:
    """A line of ``round_trip`` seconds and ``bandwidth`` bits a second, whose router is running; see ``lay``."""

    entry = entry.__name__
    """What a party's process runs to get to its end of the line."""

    def __init__(self, round_trip: float, bandwidth: float | None, netem: bool, folder: Path) -> None:
        self._round_trip = round_trip
        self._bandwidth = bandwidth
        self._netem = netem
        self._folder = folder
        delay, rate = round_trip / 2, None if bandwidth is None else bandwidth / 8
        limits = ["--delay", str(delay), *([] if rate is None else ["--rate", str(rate)])]
        self.arguments = ("--line", str(folder), *limits, *(["--netem"] if netem else []))
        words = ["--folder", str(folder), *(["--delay", "0"] if netem else limits)]
        self._router = subprocess.Popen(
            [sys.executable, "-m", "encml.bench.line.router", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for this process, which then stops the router.
            start_new_session=True,
        )

    def between(self, config: ClusterConfig) -> ClusterConfig:
        """The cluster with its parties at the ends of the line."""
        zero, one, two = (
            PartyConfig(host=address(rank), mesh_port=_MESH_PORT, api_port=_API_PORT) for rank in range(PARTIES)
        )
        return config.model_copy(update={"parties": (zero, one, two)})

    def report(self, cases: Sequence[DistantCase]) -> Distance:
        """What the line was like, and the cases over it; takes the line away."""
        log = ""
        try:
            measured = _Measured.model_validate_json((self._folder / entry.MEASURED).read_text())
            said, log = self._router.communicate(timeout=_STOP_SECONDS)
            dropped = _Dropped.model_validate_json(said).dropped
        except (OSError, ValidationError, subprocess.TimeoutExpired):
            raise PartyError(
                f"the line between the parties was not measured; the router's log: {log[-1000:]}"
            ) from None
        return Distance(
            round_trip=self._round_trip,
            bandwidth=self._bandwidth,
            made_by="netem" if self._netem else "router",
            congestion_control=measured.congestion_control,
            measured_round_trip=measured.round_trip,
            measured_bandwidth=8 * measured.rate,
            dropped=None if self._netem else dropped,
            cases=tuple(cases),
        )

    def stop(self) -> None:
        """Take the line away; idempotent."""
        if self._router.poll() is None:
            self._router.kill()
        self._router.wait()
        for pipe in (self._router.stdin, self._router.stdout, self._router.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def lay(round_trip: float, bandwidth: float | None, netem: bool) -> Iterator[LaidLine]:
    """A line between three parties that are still to start; it is gone after the block, whatever ends that.

    ``netem``: see ``netem_works``.
    """
    with tempfile.TemporaryDirectory(prefix="encml-line-") as name:
        line = LaidLine(round_trip, bandwidth, netem, Path(name))
        try:
            yield line
        finally:
            line.stop()
