"""One party of a training in this process: ``python -m encml.experiment.training.party --config cluster.yaml ...``.

Started by ``encml.experiment.training.launch``; writes one line of JSON for every event, and ends when its standard
input does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from encml.config import TrainingConfig, load_yaml
from encml.config.cluster import ClusterConfig, load_cluster
from encml.errors import ConfigError
from encml.experiment.folder import digest
from encml.experiment.training.events import Event, Listener
from encml.experiment.training.job import TrainingJob
from encml.experiment.training.owners import read_part
from encml.mpc.session import Session
from encml.serving.processes import run_as_party

EVENTS_FILE = "events.jsonl"


def run_party(
    config: TrainingConfig,
    cluster: ClusterConfig,
    rank: int,
    data: Path | None,
    folder: Path,
    tell: Listener,
    *,
    fresh: bool = False,
) -> None:
    """Train as party ``rank`` of ``cluster``, with what ``data`` holds of this party's own, into ``folder``.

    data: None for a party that owns nothing of it. fresh: see ``Checkpoints``. Raises EncmlError.
    """
    for key in ("fraction_bits", "comparison_bits"):
        wanted, found = getattr(config.parties, key), getattr(cluster, key)
        if wanted != found:
            raise ConfigError(
                f"parties.{key}: the experiment says {wanted}, the cluster file {found}: make them the same, the "
                f"experiment's with --set parties.{key}={'null' if found is None else found}"
            )
    torch.set_num_threads(cluster.threads)
    part = {} if data is None else read_part(data)
    with Session.from_cluster(cluster, rank) as session:
        TrainingJob(config, session, {rank: part}, folder, tell, digest(config), fresh=fresh).run()


def main() -> None:
    """Train, then wait until standard input ends; 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m encml.experiment.training.party", description=__doc__)
    parser.add_argument("--config", required=True, help="the cluster file")
    parser.add_argument("--rank", required=True, type=int, choices=(0, 1, 2))
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--experiment", required=True, type=Path, help="the experiment's file")
    parser.add_argument("--data", required=True, type=Path, help="folder with owner-RANK.safetensors")
    parser.add_argument("--results", required=True, type=Path, help="folder in which party-RANK is this party's own")
    arguments = parser.parse_args()
    own = arguments.results / f"party-{arguments.rank}"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)

    def work() -> None:
        with (own / EVENTS_FILE).open("w", encoding="utf-8") as file:

            def tell(event: Event) -> None:
                file.write(event.model_dump_json() + "\n")
                file.flush()

            run_party(
                load_yaml(arguments.experiment, TrainingConfig),
                load_cluster(arguments.config),
                arguments.rank,
                arguments.data / f"owner-{arguments.rank}.safetensors",
                own,
                tell,
            )

    run_as_party(work, stop_with_stdin=arguments.stop_with_stdin)


if __name__ == "__main__":
    main()
