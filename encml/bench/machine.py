"""The machine, and which encml it runs."""

from __future__ import annotations

import os
import platform
import subprocess
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
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


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
