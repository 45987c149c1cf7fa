"""Write the figures of a finished run into the README, between its "measured" marks.

Run from the repository's root:  python tools/readme_figures.py runs/mnist_federated-20270101-120000
Further folders add a row each, for example a run with privacy off.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from encml.experiment.metrics import Metrics, read_metrics
from encml.experiment.text import bytes_text, milliseconds_text, seconds_text
from encml.privacy.text import delta_text, epsilon_text

README = Path("README.md")
MARKS = re.compile(r"(<!-- measured: begin -->\n).*?(<!-- measured: end -->)", re.DOTALL)


def budget(metrics: Metrics) -> str:
    privacy = metrics.privacy
    if privacy.epsilon is None:
        return "none"
    return f"ε = {epsilon_text(privacy.epsilon)}, δ = {delta_text(privacy.delta or 0.0)}, per {privacy.unit}"


def figures(folders: list[Path]) -> str:
    runs = [read_metrics(folder, Metrics) for folder in folders]
    first = runs[0]
    first_took = seconds_text(sum(first.seconds.values()))
    where = f"{first.environment.system}, PyTorch {first.environment.packages['torch']}"
    introduction = (
        f"Measured on {first.environment.cores} cores of a shared machine ({where}), figures from the runs' "
        f"`metrics.json`. The first run took {first_took} in all. Noise is never seeded, so accuracy under it differs "
        "from run to run."
    )
    lines = [
        *textwrap.wrap(introduction, 120),
        "",
        f"| `configs/` | privacy | clients, rounds | accuracy of {first.data.test_images:,} | private = plain class |",
        "|---|---|---|---|---|",
    ]
    for metrics in runs:
        inference = metrics.inference
        same = "" if inference is None else f"{inference.agreeing:,} of {inference.images:,}"
        lines.append(
            f"| {metrics.experiment}.yaml | {budget(metrics)} | {metrics.data.clients:,}, {len(metrics.rounds)} | "
            f"{100 * metrics.accuracy:.2f} % | {same} |"
        )
    if first.inference is not None:
        lines += [
            "",
            "| private inference (first run), images a request | time an image | rounds | sent an image and party |",
            "|---|---|---|---|",
        ]
        for batch in first.inference.batches:
            sent = bytes_text(batch.bytes_per_party / batch.batch_size)
            time = milliseconds_text(batch.ms_per_image)
            lines.append(f"| {batch.batch_size} | {time} | {batch.rounds} | {sent} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    text = README.read_text(encoding="utf-8")
    README.write_text(MARKS.sub(lambda marks: marks[1] + figures(folders) + marks[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
