"""One party of the benchmark in this process: ``python -m encml.bench.party --config cluster.yaml --rank 0 ...``.

Started by ``encml.bench.processes``; writes one line of JSON for every case, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from encml.bench.cases import BY_NAME
from encml.bench.measuring import measure, wait_for_all
from encml.bench.records import PartyLine
from encml.config.cluster import load_cluster
from encml.mpc.session import Session
from encml.serving.processes import run_as_party


def main() -> None:
    """Run the cases, then wait until standard input ends; 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m encml.bench.party", description=__doc__)
    parser.add_argument("--config", required=True, help="the cluster file")
    parser.add_argument("--rank", required=True, type=int, choices=(0, 1, 2))
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--results", required=True, type=Path, help="folder for party-RANK.jsonl")
    parser.add_argument("--cases", required=True, help="names, separated by commas")
    parser.add_argument("--repeats", required=True, type=int)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    config = load_cluster(arguments.config)
    torch.set_num_threads(config.threads)

    def work() -> None:
        with (arguments.results / f"party-{arguments.rank}.jsonl").open("w", encoding="utf-8") as file:
            for name in arguments.cases.split(","):
                case = BY_NAME[name]
                declared = config.model_copy(update={"comparison_bits": case.comparison_bits})
                # A session for each case: what one of them leaves behind is no other's.
                with Session.from_cluster(declared, arguments.rank) as session:
                    # A party that was done at once would otherwise dial again while others are still meeting.
                    wait_for_all(session)
                    outcome = measure(case, session, arguments.quick, arguments.repeats)
                file.write(PartyLine(name=name, outcome=outcome).model_dump_json() + "\n")
                file.flush()

    run_as_party(work, stop_with_stdin=arguments.stop_with_stdin)


if __name__ == "__main__":
    main()
