"""A party at the end of a line: ``python -m encml.bench.line.entry --rank 0 --line FOLDER --delay SECONDS ...``.

Enters a network namespace of its own, hands its device to the router, helps to measure the line (parties 0 and 1), and
becomes ``encml.bench.party`` with all other arguments. ``--check`` only says whether that is possible here.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from encml.bench.line import probe
from encml.bench.line.namespaces import congestion_control, enter, netem, open_device
from encml.bench.line.router import BUFFER_SECONDS, meeting_place
from encml.errors import ConfigError

MEASURED = "line.json"
"""In the line's folder: what party 1 measured."""
_MEETING_SECONDS = 60.0
_RETRY_SECONDS = 0.05


def main() -> int:
    """Become the party; 1 with a message where this machine does not allow it."""
    parser = argparse.ArgumentParser(prog="python -m encml.bench.line.entry", description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--line", type=Path, help="folder of the router's socket, and for what is measured")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--netem", action="store_true")
    arguments, rest = parser.parse_known_args()
    try:
        enter()
        device = open_device(arguments.rank)
        if arguments.check:
            sys.stdout.write(json.dumps({"netem": netem(0.001, None, 0)}) + "\n")
            return 0
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        if arguments.netem and not netem(arguments.delay, arguments.rate, BUFFER_SECONDS):
            raise ConfigError("netem worked a moment ago and does not now")
        _hand_over(device, arguments.rank, meeting_place(arguments.line))
        if arguments.rank == 0:
            probe.answer()
        elif arguments.rank == 1:
            round_trip, rate = probe.ask(arguments.rate)
            found = {"round_trip": round_trip, "rate": rate, "congestion_control": congestion_control()}
            (arguments.line / MEASURED).write_text(json.dumps(found))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "encml.bench.party", "--rank", str(arguments.rank), *rest])


def _hand_over(device: int, rank: int, path: str) -> None:
    """Give the router the device, once the router is there."""
    deadline = time.monotonic() + _MEETING_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as router:
            router.settimeout(_MEETING_SECONDS)
            try:
                router.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
                continue
            socket.send_fds(router, [bytes([rank])], [device])
            router.recv(1)
            os.close(device)
            return


def _end_with_stdin() -> None:
    """Standard input ends with the process that started this one, however that ends."""
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
