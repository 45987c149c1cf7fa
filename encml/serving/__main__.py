"""One party in this process: ``python -m encml.serving --config cluster.yaml --rank 0``; see ``encml party``."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from encml.config.cluster import load_cluster
from encml.errors import EncmlError
from encml.serving.server import run_party


def main() -> int:
    """Run the party; 0 when it was stopped, 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m encml.serving", description=__doc__)
    parser.add_argument("--config", required=True, help="the cluster file")
    parser.add_argument("--rank", required=True, type=int, choices=(0, 1, 2))
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        run_party(load_cluster(arguments.config), arguments.rank, stop_with_stdin=arguments.stop_with_stdin)
    except EncmlError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # Everything is closed; tearing PyTorch down takes a second, and a thread may still wait for the other parties.
    os._exit(code)
