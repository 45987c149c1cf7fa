"""The three parties of a cluster as processes on this machine, for a laptop and for tests.

Nothing is left behind: a party ends when its standard input does, which the operating system closes when this
process ends, however it ends.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

import yaml

from encml.config.cluster import ClusterConfig, PartyConfig
from encml.errors import ConfigError, EncmlError, PartyError, PartyTimeout
from encml.net.transport import PARTIES

STOP_SECONDS = 10.0
"""How long a party may take to stop before it is killed."""
TAIL_LINES = 15
_POLL_SECONDS = 0.05
_PORTS = range(15_000, 32_000)
"""Below the ports that the operating system gives to outgoing connections, so that none of those takes one."""


def local_config(
    folder: Path,
    *,
    threads: int = 1,
    timeout: float = 10.0,
    connect_timeout: float = 30.0,
    fraction_bits: int = 16,
    comparison_bits: int | None = None,
) -> ClusterConfig:
    """A cluster on free ports of this machine, with its keys and store in ``folder``."""
    ports = free_ports(2 * PARTIES)
    zero, one, two = (
        PartyConfig(host="127.0.0.1", mesh_port=ports[rank], api_port=ports[PARTIES + rank]) for rank in range(PARTIES)
    )
    return ClusterConfig(
        parties=(zero, one, two),
        keys=folder / "keys",
        store=folder / "store",
        timeout=timeout,
        connect_timeout=connect_timeout,
        threads=threads,
        fraction_bits=fraction_bits,
        comparison_bits=comparison_bits,
    )


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            sock = socket.socket()
            try:
                sock.bind(("127.0.0.1", secrets.choice(_PORTS)))
            except OSError:
                sock.close()
                continue
            sockets.append(sock)
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def write_config(config: ClusterConfig, path: Path) -> None:
    """Write a cluster file, with absolute paths."""
    absolute = config.model_copy(update={"keys": config.keys.absolute(), "store": config.store.absolute()})
    path.write_text(yaml.safe_dump(absolute.model_dump(mode="json", exclude_none=True), sort_keys=False))


class LocalParties:
    """Runs and stops the parties of ``config``; ``stop`` ends all of them, and so does the end of this process.

    ``program`` is what every party runs, a module's name or a script's path, with ``--config``, ``--rank``,
    ``--stop-with-stdin`` and ``arguments``.
    """

    def __init__(
        self, config: ClusterConfig, program: str | Path = "encml.serving", arguments: Sequence[str] = ()
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="encml-parties-")
        self._config = Path(self._folder.name) / "cluster.yaml"
        write_config(config, self._config)
        run = [str(program)] if isinstance(program, Path) else ["-m", program]
        self._command = [sys.executable, *run, "--config", str(self._config), "--stop-with-stdin", *arguments]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        atexit.register(self.stop)

    def start(self, rank: int) -> None:
        """Start party ``rank``, which must not be running."""
        if self.running(rank):
            raise ConfigError(f"party {rank} is running already")
        if rank in self._processes:
            _close(self._processes[rank].stdin)
        with self._log(rank).open("ab") as log:
            self._processes[rank] = subprocess.Popen(
                [*self._command, "--rank", str(rank)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C is for this process, which then stops the parties in order.
                start_new_session=True,
            )

    def running(self, rank: int) -> bool:
        """Whether party ``rank`` has been started and has not ended."""
        process = self._processes.get(rank)
        return process is not None and process.poll() is None

    def pid(self, rank: int) -> int:
        """The process id of party ``rank``."""
        return self._processes[rank].pid

    def check(self) -> None:
        """Raise PartyError, with the end of its log, for a party that ended by itself."""
        for rank, process in self._processes.items():
            code = process.poll()
            if code is not None:
                how = f"signal {-code}" if code < 0 else f"exit status {code}"
                raise PartyError(f"party {rank} has ended ({how}); its log ends with:\n{self.tail(rank)}", rank=rank)

    def tail(self, rank: int, lines: int = TAIL_LINES) -> str:
        """The last lines of a party's log; parties never log a secret."""
        with suppress(OSError):
            return "\n".join(self._log(rank).read_text(errors="replace").splitlines()[-lines:])
        return ""

    def lines(self, path: Path) -> Iterator[str]:
        """The whole lines of a file that a party makes and is still writing, without end; a last part is waited for.

        Raises PartyError, as ``check`` does, for a party that ended.
        """
        while not path.exists():
            self.check()
            time.sleep(_POLL_SECONDS)
        with path.open(encoding="utf-8") as file:
            line = ""
            while True:
                line += file.readline()
                if line.endswith("\n"):
                    yield line
                    line = ""
                else:
                    self.check()
                    time.sleep(_POLL_SECONDS)

    def kill(self, rank: int) -> None:
        """End party ``rank`` at once, as a crash would."""
        process = self._processes[rank]
        process.kill()
        process.wait()
        _close(process.stdin)

    def wait(self, rank: int, seconds: float) -> int:
        """The exit status of party ``rank`` once it has ended. Raises PartyTimeout if it has not in time."""
        process = self._processes[rank]
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise PartyTimeout(f"party {rank} has not ended within {seconds:g} s", rank=rank) from None
        _close(process.stdin)
        return code

    def stop(self) -> None:
        """Stop all parties and remove their logs; idempotent."""
        atexit.unregister(self.stop)
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                # A party that was suspended cannot stop by itself.
                process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + STOP_SECONDS
        try:
            for process in self._processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()
                _close(process.stdin)
            self._processes.clear()
            self._folder.cleanup()

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"party-{rank}.log"


def run_as_party(work: Callable[[], None], *, stop_with_stdin: bool) -> NoReturn:
    """Do the work of a program that ``LocalParties`` runs, wait until standard input ends, and end this process.

    The exit status is 1 after an EncmlError, which the log then ends with.
    """
    waiting = end_with_stdin() if stop_with_stdin else None
    code = 0
    try:
        work()
    except EncmlError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = 1
    if waiting is not None and code == 0:
        waiting.join()
    sys.stderr.flush()
    # Tearing PyTorch down takes a second.
    os._exit(code)


def end_with_stdin() -> threading.Thread:
    """Have this process end when its standard input does: in a program that ``LocalParties`` runs.

    A party that is done joins the thread that is returned; it would be taken for a failed one if it ended by itself.
    """
    thread = threading.Thread(target=_wait_for_end, daemon=True)
    thread.start()
    return thread


def _wait_for_end() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with suppress(BrokenPipeError):
            pipe.close()
