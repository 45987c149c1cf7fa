"""What breast_cancer_three_hospitals.py needs around its training: files, processes, a progress bar, a table."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from private_inference import at_least, console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from encml.net.certificates import make_cluster_keys
from encml.serving.processes import LocalParties, end_with_stdin, local_config

ALL = range(3)
ENDS = (0, 380, 510, 569)
"""Which patients are whose, where rows are split."""
COLUMNS = 10
"""Of each hospital, where columns are split: means, standard errors, and worst values of ten measurements."""
TIMEOUT = 60.0
Tell = Callable[..., None]
"""Given what is revealed, by name."""


def read_options(description: str | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vertical", action="store_true", help="split the columns over the hospitals, not the rows")
    parser.add_argument("--in-process", action="store_true", help="all parties in one process: for debugging")
    parser.add_argument("--epochs", type=at_least(1), default=40, help="steps over all rows (default: %(default)s)")
    parser.add_argument(
        "--reveal-every", type=at_least(1), default=5, metavar="EPOCHS", help="open the loss (default: %(default)s)"
    )
    parser.add_argument("--reveal-model", action="store_true", help="open the trained weights, to all hospitals")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/breast_cancer"), help="for files and keys (default: %(default)s)"
    )
    parser.add_argument("--rank", type=int, choices=ALL, help="be this hospital, and nothing else")
    parser.add_argument("--config", type=Path, help="with --rank: the cluster file")
    parser.add_argument("--stop-with-stdin", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.rank is None) != (options.config is None):
        parser.error("--rank and --config go together: a hospital of its own needs both")
    return options


def write_files(folder: Path, vertical: bool) -> list[str]:
    """The files that each hospital would have already, every fifth patient held out; returns the columns' names."""
    try:
        # Here and not above: the hospitals' processes do without.
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        sys.exit("The data come with scikit-learn, which is not installed here: pip install scikit-learn")
    data = load_breast_cancer()
    names = [str(name) for name in data.feature_names]
    folder.mkdir(parents=True, exist_ok=True)
    for rank in ALL:
        people = range(ENDS[-1]) if vertical else range(*ENDS[rank : rank + 2])
        columns = range(COLUMNS * rank, COLUMNS * (rank + 1)) if vertical else range(len(names))
        label = ["benign"] if rank == 0 or not vertical else []
        for name, held_out in (("training", False), ("held-out", True)):
            with (folder / f"hospital-{rank}-{name}.csv").open("w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["patient", *(names[column] for column in columns), *label])
                for i in people:
                    if (i % 5 == 0) == held_out:
                        diagnosis = [int(data.target[i])] if label else []
                        rows.writerow([f"patient {i}", *(float(data.data[i, c]) for c in columns), *diagnosis])
    return names


def follow_processes(script: Path, folder: Path, tell: Tell) -> None:
    """Start three processes of ``script`` with new keys, pass on what hospital 0 writes, and stop them in any case."""
    cluster = local_config(folder.absolute(), timeout=TIMEOUT, connect_timeout=TIMEOUT)
    make_cluster_keys(cluster.keys, [party.host for party in cluster.parties], clients=(), days=1, overwrite=True)
    for rank in ALL:
        _revealed(folder, rank).unlink(missing_ok=True)
    parties = LocalParties(cluster, script.absolute(), sys.argv[1:])
    try:
        for rank in ALL:
            parties.start(rank)
        for line in parties.lines(_revealed(folder, 0)):
            told = json.loads(line)
            tell(**told)
            if "right" in told:
                return
    finally:
        parties.stop()


@contextmanager
def write_revealed(options: argparse.Namespace) -> Iterator[Tell]:
    """In a hospital's process: what is revealed goes into a file of JSON lines, which others may follow."""
    started_by = end_with_stdin() if options.stop_with_stdin else None
    with _revealed(options.folder, options.rank).open("w", encoding="utf-8") as file:
        yield lambda **told: print(json.dumps(told), file=file, flush=True)
    if started_by is not None:
        started_by.join()


def _revealed(folder: Path, rank: int) -> Path:
    return folder / f"revealed-{rank}.jsonl"


@contextmanager
def progress(epochs: int) -> Iterator[tuple[Tell, dict[str, Any]]]:
    """A bar that moves on with what is told, and what was told last, by name."""
    told: dict[str, Any] = {}
    columns = (BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(TextColumn("Training on shares"), *columns, console=console) as bar:
        task = bar.add_task("", total=epochs, loss="")

        def tell(**news: Any) -> None:
            told.update({name: value for name, value in news.items() if value is not None})
            loss = f"loss {told['loss']:.3f}" if "loss" in told else ""
            bar.update(task, completed=told.get("epoch", 0), loss=loss)

        yield tell, told


def report(told: dict[str, Any], plain: int, alone: dict[int, int], total: int, weights: dict[str, float]) -> None:
    """The table at the end. weights: by column, of training in the clear."""
    table = Table("trained on", "right answers", "accuracy", caption=f"{total} patients were held out", box=None)
    for what, right in (
        ("shares of all hospitals' data", told["right"]),
        ("all data in the clear", plain),
        *((f"hospital {rank}'s data alone", right) for rank, right in alone.items()),
    ):
        table.add_row(what, str(right), f"{right / total:.1%}")
    console.print(table)
    console.print(
        f"On shares: {told['rounds']:,} rounds, {told['bytes'] / 1e6:.1f} MB sent by each hospital, "
        f"{told['seconds']:.1f} seconds"
    )
    if "weights" in told:
        pairs = list(zip(weights, told["weights"], weights.values(), strict=True))
        strongest = sorted(pairs, key=lambda pair: -abs(pair[1]))[:5]
        listed = ", ".join(f"{name} {shared:+.3f}" for name, shared, _ in strongest)
        worst = max(abs(shared - clear) for _, shared, clear in pairs)
        console.print(f"The model, revealed: {listed}, ...; no weight is off by more than {worst:.1e}")
