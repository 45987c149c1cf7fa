"""Other libraries on the same cases, each with an interpreter of its own.

``peers/<name>_cases.py`` is a script of that library's, not a part of encml: it is run by a Python in whose environment
the library is installed. It gets the cases as one argument of JSON and writes lines of JSON to standard output: first
``{"version": ..., "setting": ...}``, then one for every case, ``{"name": ..., "seconds": [...], ...}`` or
``{"name": ..., "problem": ...}``, where nothing is said of a case that the script does not have.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from encml.bench.case import ERROR_FLOOR, Case
from encml.bench.records import Peer, PeerCase, PeerFailure
from encml.errors import ConfigError
from encml.experiment.metrics import Record
from encml.serving.processes import TAIL_LINES

SCRIPTS = Path(__file__).parent / "peers"
PEERS = tuple(sorted(path.name.removesuffix("_cases.py") for path in SCRIPTS.glob("*_cases.py")))

_CASE_SECONDS = 1800.0
"""A script that writes nothing for so long is ended: parties of another library may wait for each other for ever."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A peer's name, and a Python that has it."""

    name: str
    python: Path


class _Greeting(Record):
    version: str
    setting: str


def parse_peer(text: str) -> Interpreter:
    """``spu=/path/to/python``. Raises ConfigError for an unknown peer, or where there is no such program."""
    name, equals, python = text.partition("=")
    if not equals or name not in PEERS:
        raise ConfigError(f"--peer {text}: expected NAME=PYTHON, where NAME is one of {', '.join(PEERS)}")
    path = Path(python).expanduser()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ConfigError(f"--peer {text}: {path} is no program; give the Python of an environment that has {name}")
    return Interpreter(name, path)


def run_peer(
    peer: Interpreter, cases: Sequence[Case], quick: bool, repeats: int, threads: int, told: Callable[[str], None]
) -> Peer:
    """Run the peer's script to its end; ``told`` hears of each case that is done.

    What fails, in one case or as a whole, stands in the result. All of the script's processes end with the call.
    """
    found: list[PeerCase] = []
    failures: list[PeerFailure] = []
    greeting, problem = _Greeting(version="unknown", setting="unknown"), None
    with tempfile.TemporaryFile() as log, _script(peer, _order(cases, quick, repeats, threads), log.fileno()) as lines:
        try:
            for place, line in enumerate(lines):
                if place == 0:
                    greeting = _Greeting.model_validate_json(line)
                    continue
                record = _record(line)
                told(record.name)
                if isinstance(record, PeerCase):
                    found.append(record)
                else:
                    failures.append(record)
        except ValidationError:
            problem = "its script wrote something else than figures"
        if len(found) + len(failures) < len(cases):
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
            problem = f"{problem or 'its script ended early'}; its log ends with:\n" + "\n".join(tail)
    return Peer(
        name=peer.name,
        version=greeting.version,
        setting=greeting.setting,
        cases=tuple(found),
        failures=tuple(failures),
        problem=problem,
    )


def _order(cases: Sequence[Case], quick: bool, repeats: int, threads: int) -> str:
    listed = [{"name": case.name, "size": case.at(quick), "domain": case.domain} for case in cases]
    return json.dumps({"repeats": repeats, "threads": threads, "error_floor": ERROR_FLOOR, "cases": listed})


def _record(line: str) -> PeerCase | PeerFailure:
    return (PeerFailure if '"problem"' in line else PeerCase).model_validate_json(line)


@contextmanager
def _script(peer: Interpreter, order: str, log: int) -> Iterator[Iterator[str]]:
    """The lines that a peer's script writes; it and all processes that it started are gone afterwards."""
    threads = str(json.loads(order)["threads"])
    # Of the environment it gets what any program needs, and nothing that is meant for this Python.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    process = subprocess.Popen(
        [str(peer.python), str(SCRIPTS / f"{peer.name}_cases.py"), order],
        env=kept | dict.fromkeys(_THREADS, threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield _lines(process)
    finally:
        _kill(process)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """What the script writes, until it ends or is silent for too long; it is killed then."""
    assert process.stdout is not None
    while True:
        limit = threading.Timer(_CASE_SECONDS, _kill, (process,))
        limit.start()
        try:
            line = process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            return
        yield line


def _kill(process: subprocess.Popen[str]) -> None:
    """End the script, which leads a group of its own, and all of its processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
