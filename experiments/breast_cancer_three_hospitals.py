"""Three hospitals train one model on all their patients, and none sees a patient of another. Start here.

    python experiments/breast_cancer_three_hospitals.py                 each hospital has patients of its own
    python experiments/breast_cancer_three_hospitals.py --vertical      all have the same, and other columns of them

Logistic regression on scikit-learn's breast-cancer data: do 30 measurements say that a tumour is benign? The script
writes the hospitals' files, makes keys, and starts three processes that read their own files alone and talk over mutual
TLS. Then it shows what they reach beside the same training on all data in the clear, and each hospital's own.

Secret are patients, diagnoses, the model and all that is computed from them. Revealed are how many rows and columns
each hospital has, the mean and deviation of every column over all training rows (not with --vertical), the loss every
few epochs, how many of the held-out answers are right, and with --reveal-model the model.

Here all three run on one machine, whose owner could put their shares together. On three machines, each runs this script
with --rank, --config (a cluster file, its keys made by `encml keys`) and the --folder that holds its own files; what is
revealed is written there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from hospitals import ALL, Tell, follow_processes, progress, read_options, report, write_files, write_revealed
from private_inference import run
from torch import Tensor, nn

import encml
from encml.config import load_cluster
from encml.data import Table, read_table

Tables = dict[int, Table]
"""By the hospital's rank: in its own process, its own table and no other."""


# Plain PyTorch: it does not ask whether model and data are secret -----------------------------------------------------


def untrained(columns: int) -> nn.Module:
    model = nn.Linear(columns, 1)  # logistic regression
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, watch: Callable[[int, Tensor], None]) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
        loss.backward()
        optimizer.step()
        watch(epoch, loss.detach())
    return model


@torch.no_grad()
def right_answers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x).squeeze(1) > 0) == (y > 0.5)).sum()


# What the hospitals run: the same program, each with its own tables ---------------------------------------------------


def train_together(training: Tables, held_out: Tables, options: argparse.Namespace, tell: Tell) -> None:
    """Train a model on shares and try it on shares. What is revealed goes to ``tell``, and nothing else does."""
    start = time.perf_counter()
    statistics = {rank: mean_and_deviation(table.features) for rank, table in training.items()}
    if not options.vertical:
        # Each hospital has a part of every column: only sums over all three are opened.
        of_all = encml.reveal_statistics({rank: table.features for rank, table in training.items()})
        statistics = dict.fromkeys(training, of_all)

    def join(tables: Tables) -> tuple[Tensor, Tensor]:
        x = {rank: (t.features - statistics[rank][0]) / statistics[rank][1] for rank, t in tables.items()}
        y = encml.join_rows({rank: t.labels.float() for rank, t in tables.items() if t.labels is not None})
        if not options.vertical:
            return encml.join_rows(x), y
        # The same patients, in the same order? The ids are compared as shares, so nobody's list becomes known.
        return encml.join_columns(x, ids={rank: t.ids for rank, t in tables.items()}), y

    def watch(epoch: int, loss: Tensor) -> None:
        tell(epoch=epoch, loss=loss.reveal().item() if epoch % options.reveal_every == 0 else None)

    x, y = join(training)
    model = train(encml.share(untrained(x.shape[1])), x, y, options.epochs, watch)
    x, y = join(held_out)
    right = right_answers(model, x, y).reveal().item()
    weights = model.weight.detach().reveal().flatten().tolist() if options.reveal_model else None
    cost = x.session.ledger.total
    tell(right=right, weights=weights, rounds=cost.rounds, bytes=max(cost.sent), seconds=time.perf_counter() - start)


def mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.std(0, correction=0)


def read(options: argparse.Namespace, name: str, ranks: range | tuple[int]) -> Tables:
    """The tables of some hospitals. With --vertical hospital 0 alone has the diagnoses."""
    return {
        rank: read_table(
            options.folder / f"hospital-{rank}-{name}.csv",
            labels="benign" if rank == 0 or not options.vertical else None,
            ids="patient",
        )
        for rank in ranks
    }


def be_hospital(options: argparse.Namespace) -> None:
    """One of the three parties, in a process of its own."""
    cluster, own = load_cluster(options.config), (options.rank,)
    torch.set_num_threads(cluster.threads)
    training, held_out = read(options, "training", own), read(options, "held-out", own)
    with write_revealed(options) as tell, encml.Session.from_cluster(cluster, options.rank):
        train_together(training, held_out, options, tell)


# What this script does around them ------------------------------------------------------------------------------------


def train_in_the_clear(training: Tables, held_out: Tables, options: argparse.Namespace) -> tuple[int, nn.Module]:
    """The same training by somebody who sees the tables given; how many held-out answers are right, and the model."""
    x, y, x_held_out, y_held_out = (
        torch.cat([part for part in parts if part is not None], dim)
        for tables in (training.values(), held_out.values())
        for parts, dim in (([t.features for t in tables], int(options.vertical)), ([t.labels for t in tables], 0))
    )
    mean, deviation = mean_and_deviation(x)
    model = train(untrained(x.shape[1]), (x - mean) / deviation, y.float(), options.epochs, lambda epoch, loss: None)
    return int(right_answers(model, (x_held_out - mean) / deviation, y_held_out)), model


def main() -> bool:
    """Be a hospital, or all that is said above; whether shares led as far as plain training, within a point."""
    options = read_options(__doc__)
    if options.rank is not None:
        be_hospital(options)
        return True
    columns = write_files(options.folder, options.vertical)
    training, held_out = read(options, "training", ALL), read(options, "held-out", ALL)
    with progress(options.epochs) as (tell, told):
        if not options.in_process:
            follow_processes(Path(__file__), options.folder, tell)
        else:
            with encml.Session():
                train_together(training, held_out, options, tell)
    right, model = train_in_the_clear(training, held_out, options)
    alone = {}
    for rank in ALL:
        if training[rank].labels is not None:
            known = {rank: held_out[rank]} if options.vertical else held_out
            alone[rank], _ = train_in_the_clear({rank: training[rank]}, known, options)
    total = sum(len(table) for table in held_out.values() if table.labels is not None)
    report(told, right, alone, total, dict(zip(columns, model.weight.flatten().tolist(), strict=True)))
    return abs(told["right"] - right) <= max(1, 0.01 * total)


if __name__ == "__main__":
    run(main)
