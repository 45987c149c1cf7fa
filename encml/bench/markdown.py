"""docs/benchmarks.md, made from a benchmark."""

from __future__ import annotations

import shlex
import textwrap

from encml.bench.records import Benchmark
from encml.bench.text import Grid, grids, machine_text, others_text, peer_problems_text

_WIDTH = 120

_HEAD = """\
# Benchmarks

This page is written by `encml bench`; to make it anew, with the other libraries each in an environment of its own:

```sh
{command}
```

Without `--peer` encml is measured alone. The environments of the others are made like this (CrypTen asks for a package
that no longer exists, hence `--no-deps`, and imports what a PyTorch as new as 2.15 no longer has):

```sh
python3.11 -m venv spu-env
spu-env/bin/pip install spu==0.9.5
python3.11 -m venv crypten-env
crypten-env/bin/pip install torch==2.4.1 torchvision==0.19.1 "numpy<2" "scipy<1.14" "onnx<1.18" \\
  omegaconf pandas pyyaml tensorboard future scikit-learn
crypten-env/bin/pip install --no-deps crypten==0.4.1
```
"""

_READ = """\
## How to read it

- A case goes from shares to shares: inputs and weights are shared before, the result stays shared and is complete.
- **Rounds** and bytes **sent a party** (payload, averaged over the three) are counted; the same at every run and on
  every machine. **Of declared** compares them with what `encml/mpc/costs.py` declares for the primitive.
- **Time** is the median of {repeats} repeats, with the shortest and the longest: one process that plays all three
  parties one after the other; and three processes on this machine that talk TLS 1.3 over loopback, from a moment at
  which all are ready until the last is done. They share its {cores}.
- **Memory** is the peak of the process's resident set above what it held before the case ran, as the kernel counts it:
  without libraries, inputs and weights. With three parties, that of the largest.
- **Worst error** is the largest |found − true| / max(|true|, 1/8), against float64: at most 2^-12 = 2.4e-4 is a result
  within two units of the last of 16 fraction bits, or within 2^-12 of itself.
- **32 bits declared**: in a session with `comparison_bits=32`, whose user knows that nothing that is compared reaches
  2^15. Without, comparisons hold over the whole range of fixed point.
- A **ratio** below 1 means that encml takes less time. The other library runs right after encml's three processes, on
  the same cases; how it is set up is said above its table.
"""


def markdown(benchmark: Benchmark) -> str:
    """The page, with the command that makes it."""
    cores = "1 core" if benchmark.machine.cores == 1 else f"{benchmark.machine.cores} cores"
    made = f"Made on {benchmark.date:%Y-%m-%d}: {machine_text(benchmark.machine)}. {others_text(benchmark)}"
    if benchmark.quick:
        made += " Sizes are small, for a quick look."
    parts = [_HEAD.format(command=_command(benchmark)), paragraph(made)]
    parts += [_READ.format(repeats=benchmark.repeats, cores=cores)]
    parts += [_section(grid) for grid in grids(benchmark)]
    left_out = [line for peer in benchmark.peers for line in peer_problems_text(peer)]
    if left_out:
        parts.append("## Where another library failed\n\n" + "\n".join(f"- {line}" for line in left_out) + "\n")
    return "\n".join(parts)


def _command(benchmark: Benchmark) -> str:
    """As a reader types it, with the environments where this page says to make them."""
    words = ["encml", "bench", *(f"--only {shlex.quote(pattern)}" for pattern in benchmark.only)]
    words += ["--quick"] * benchmark.quick
    alone, apart = (any(getattr(case, place) for case in benchmark.cases) for place in ("in_process", "parties"))
    words += ["--in-process"] * (alone and not apart) + ["--parties"] * (apart and not alone)
    words += [f"--repeats {benchmark.repeats}", f"--threads {benchmark.machine.threads}"]
    words += [f"--peer {peer.name}={peer.name}-env/bin/python" for peer in benchmark.peers]
    words += ["--markdown docs/benchmarks.md"]
    # An option and its value stay on one line.
    text = textwrap.fill(" ".join(word.replace(" ", "\0") for word in words), _WIDTH - 2, break_on_hyphens=False)
    return text.replace("\n", " \\\n  ").replace("\0", " ")


def _section(grid: Grid) -> str:
    return f"## {grid.title}\n\n{grid_text(grid)}"


def grid_text(grid: Grid) -> str:
    """What is said about a table, and the table."""
    about = paragraph(grid.about) + "\n" if grid.about else ""
    line = "|---" * grid.texts + "|---:" * (len(grid.columns) - grid.texts)
    head = f"| {' | '.join(grid.columns)} |\n{line}|\n"
    return about + head + "".join(f"| {' | '.join(row)} |\n" for row in grid.rows)


def paragraph(text: str) -> str:
    """Lines that are no longer than those around them."""
    return textwrap.fill(text.strip(), _WIDTH) + "\n"
