"""Write docs/training.md, its table and its curves, from the figures of finished trainings on encrypted data.

Run from the repository's root:  python tools/training_figures.py runs/encrypted_training_a-20270101-120000 ...
The runs appear in the order in which they are named.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from pathlib import Path

from encml.config import TrainingConfig, load_yaml
from encml.experiment.charts import accuracy_curves, loss_curves
from encml.experiment.folder import CONFIG, read_config
from encml.experiment.metrics import read_metrics
from encml.experiment.text import bytes_text, seconds_text
from encml.experiment.training.metrics import TrainingMetrics
from encml.experiment.training.report import revealed_text
from encml.privacy.text import delta_text, epsilon_text

PAGE, CURVES = Path("docs/training.md"), Path("docs/curves")
COLOURS = {"ink": "#1b2430", "grid": "#d5dae0", "blue": "#0072b2", "orange": "#c45500", "green": "#00795a"}
PUBLISHED = {
    "network_a": ("96.7 %", "96.5 %"),
    "network_b": ("97.5 %", "98.6 %"),
    "network_c": ("98.5 %", "98.7 %"),
    "network_d": ("97.6 %", "97.1 %"),
}
"""After five epochs, by MP-SPDZ and TF-Encrypted, as TF-Encrypted's README gives them."""

INTRODUCTION = """\
Data, labels and weights are secret throughout; an ordinary PyTorch loop trains (`encml/experiment/training/job.py`).
Beside every run stands the same training in plaintext, in float32, from the same first weights with the same batches.
This page is written by `tools/training_figures.py` from the runs' `metrics.json`; the command above each curve made
the run. What was revealed while training is said with each; all else stayed secret."""

NOTES = """\
**A step** is the mean over the run, on a machine of {cores} cores ({system}, PyTorch {torch}), with checkpoints; the
benchmark's figures, on a quiet machine and beside other libraries, are in [performance.md](performance.md). **Sent** is
what a party sends, on average of the three. **Published** are the accuracies after five epochs that TF-Encrypted's
README gives for MP-SPDZ and for itself. Rounding is random, and so no two runs are alike to the last digit.

**How near is near?** Training is chaotic early on: half an epoch of network B in plaintext, from first weights changed
by 1e-5, ended at 95.75, 96.12, 96.16 and 96.22 %. A difference of a few tenths of a point at a single step says no more
than that the two runs are not the same; what counts is that it has no direction, as in the tables of a run's report."""


def command(config: TrainingConfig) -> str:
    """The command that makes this run, as far as it differs from the file in configs/."""
    file = Path("configs") / f"{config.experiment}.yaml"
    original = load_yaml(file, TrainingConfig)
    words = ["encml", "run", str(file)]
    for section in ("training", "parties", "reveal", "data"):
        ours, theirs = getattr(config, section), getattr(original, section)
        for key in type(ours).model_fields:
            if getattr(ours, key) != getattr(theirs, key):
                words += ["--set", f"{section}.{key}={getattr(ours, key)}"]
    return shlex.join(words)


def row(metrics: TrainingMetrics) -> str:
    """A run in the table."""
    last = metrics.accuracy[-1].share
    plain = metrics.plain.accuracy[-1].share if metrics.plain is not None else None
    beside = ["", ""] if plain is None else [f"{100 * plain:.2f} %", f"{100 * (last - plain):+.2f}"]
    published = PUBLISHED.get(metrics.network, ("", ""))
    budget = ""
    if metrics.privacy.epsilon is not None:
        budget = f", ε = {epsilon_text(metrics.privacy.epsilon)} at δ = {delta_text(metrics.privacy.delta or 0.0)}"
        published = ("", "")
    cells = [
        f"{metrics.network[-1].upper()}{budget}",
        f"{metrics.steps / metrics.steps_an_epoch:.3g}",
        f"{100 * last:.2f} %",
        *beside,
        *published,
        where(metrics),
        seconds_text(metrics.step_seconds),
        f"{metrics.rounds_a_step:.1f}",
        bytes_text(metrics.bytes_a_step),
    ]
    return f"| {' | '.join(cells)} |"


def where(metrics: TrainingMetrics) -> str:
    """Where the parties were."""
    return {"tls": "three, TLS", "in_process": "one process"}[metrics.transport]


def section(metrics: TrainingMetrics, config: TrainingConfig) -> str:
    """A run's command, what it revealed, and its curves."""
    plain = metrics.plain
    accuracy = [(record.step, record.share) for record in metrics.accuracy]
    curves = {"accuracy": accuracy_curves(accuracy, [(r.step, r.share) for r in plain.accuracy] if plain else [])}
    if metrics.losses:
        curves["loss"] = loss_curves(metrics.losses, plain.losses if plain else ())
    images = []
    for kind, svg in curves.items():
        path = CURVES / f"{config.experiment}_{kind}.svg"
        path.write_text(standalone(svg) + "\n", encoding="utf-8")
        images.append(f"![{kind} on secrets and in plaintext](curves/{path.name})")
    told = (
        f"Revealed: {revealed_text(config.reveal)}. {metrics.steps:,} steps of {metrics.batch_size}; "
        f"{seconds_text(sum(metrics.seconds.values()))} in all."
    )
    if metrics.privacy.epsilon is not None:
        told += f" {metrics.privacy.sentence}"
    title = f"Network {metrics.network[-1].upper()}" + (" under DP-SGD" if metrics.privacy.epsilon is not None else "")
    return "\n".join(
        [f"## {title}", "", "```sh", command(config), "```", "", *textwrap.wrap(told, 120), "", *images, ""]
    )


def standalone(svg: str) -> str:
    """A chart that takes its colours from a page, with colours of its own on white."""
    head, body = svg.split(">", 1)
    variables = "; ".join(f"--{name}: {colour}" for name, colour in COLOURS.items())
    style = f"<style>svg {{ {variables} }}</style>"
    return f'{head} xmlns="http://www.w3.org/2000/svg" style="background: #ffffff">{style}{body}'


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    CURVES.mkdir(parents=True, exist_ok=True)
    runs = []
    for folder in folders:
        config = read_config(folder)
        if not isinstance(config, TrainingConfig):
            sys.exit(f"{folder / CONFIG}: found kind: {config.kind}, expected encrypted_training")
        runs.append((read_metrics(folder, TrainingMetrics), config))
    first = runs[0][0].environment
    notes = NOTES.format(cores=first.cores, system=first.system, torch=first.packages["torch"])
    names = "network, epochs, on secrets, in plaintext, points, MP-SPDZ, TF-Encrypted, parties, a step, rounds, sent"
    head = f"| {' | '.join(names.split(', '))} |"
    lines = [
        "# Training on encrypted data",
        "",
        INTRODUCTION,
        "",
        head,
        "|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
        *(row(metrics) for metrics, _ in runs),
        "",
        notes,
        "",
        *(section(metrics, config) for metrics, config in runs),
    ]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
