"""Write the figures of a finished run into the README, between its "measured" marks.

Run from the repository's root:  python tools/readme_figures.py runs/mnist_federated-20270101-120000
Further folders add a row each, for example a run with privacy off.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from encml.experiment.metrics import Metrics, read_metrics
from encml.experiment.text import bytes_text, epsilon_text, milliseconds_text, seconds_text, small_text

README = Path("README.md")
MARKS = re.compile(r"(<!-- measured: begin -->\n).*?(<!-- measured: end -->)", re.DOTALL)


def budget(metrics: Metrics) -> str:
    privacy = metrics.privacy
    if privacy.epsilon is None:
        return "none"
    return f"ε = {epsilon_text(privacy.epsilon)}, δ = {small_text(privacy.delta or 0.0)}, per {privacy.unit}"


def figures(folders: list[Path]) -> str:
    runs = [read_metrics(folder) for folder in folders]
    first = runs[0]
    lines = [
        f"Measured with this configuration on {first.environment.cores} cores ({first.environment.system}, PyTorch "
        f"{first.environment.packages['torch']}); figures from the runs' `metrics.json`:",
        "",
        "| privacy | clients, rounds | accuracy | private class = plaintext class | whole run |",
        "|---|---|---|---|---|",
    ]
    for metrics in runs:
        inference = metrics.inference
        same = "" if inference is None else f"{inference.agreeing:,} of {inference.images:,}"
        lines.append(
            f"| {budget(metrics)} | {metrics.data.clients}, {len(metrics.rounds)} | {100 * metrics.accuracy:.2f} % | "
            f"{same} | {seconds_text(sum(metrics.seconds.values()))} |"
        )
    if first.inference is not None:
        lines += [
            "",
            "| private inference, three processes, TLS | time an image | rounds a request | sent an image and party |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {batch.batch_size} images a request | {milliseconds_text(batch.ms_per_image)} | {batch.rounds} | "
            f"{bytes_text(batch.bytes_per_party / batch.batch_size)} |"
            for batch in first.inference.batches
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    text = README.read_text(encoding="utf-8")
    README.write_text(MARKS.sub(lambda marks: marks[1] + figures(folders) + marks[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
