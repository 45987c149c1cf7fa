"""The machine, and which encml it runs."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encml.bench.records import Machine
from encml.experiment.metrics import encml_version, environment

_REPOSITORY = Path(__file__).parents[2]
_GIT_SECONDS = 10.0


def this_machine(threads: int) -> Machine:
    """What a reader must know to place the figures. ``threads``: those each process computes with."""
    return Machine(
        **environment(encml_version()).model_dump(),
        commit=_commit(),
        cpu=_field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        memory_bytes=_memory(),
        threads=threads,
    )


@contextmanager
def work_of_others() -> Iterator[list[float | None]]:
    """The yielded list receives how many cores other programs kept busy, on average, while the block ran.

    From what all cores did, time taken by other virtual machines included, less what this process and those that it
    started and waited for did. None where the system does not tell.
    """
    result: list[float | None] = []
    all_before, own_before, start = _busy(), _own(), time.monotonic()
    yield result
    all_after, own_after, seconds = _busy(), _own(), time.monotonic() - start
    if all_before is None or all_after is None:
        result.append(None)
    else:
        result.append(max(0.0, (all_after - all_before - (own_after - own_before)) / seconds))


def _busy() -> float | None:
    """Seconds that all cores together have worked since the system started."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, words[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    return sum(os.times()[:4])


def _commit() -> str | None:
    """The commit that is checked out, with "-dirty" behind it where files differ from it; None if installed."""
    if not (_REPOSITORY / ".git").exists():
        return None
    command = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _memory() -> int | None:
    found = _field(Path("/proc/meminfo"), "MemTotal")
    return None if found is None else 1024 * int(found.split()[0])


def _field(path: Path, name: str) -> str | None:
    """The first ``name: value`` line of a file under /proc."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), None)
