"""Runs the scripts of models and writes what they print to docs/models.md: python tools/model_figures.py

Some ten minutes on two cores; VGG-16 takes 8 GB of memory.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
COMMANDS = (
    ("ResNet-18 of torchvision", "experiments/private_resnet18.py --depth 2"),
    ("MobileNetV2 of torchvision", "experiments/private_resnet18.py --model mobilenet_v2 --depth 2"),
    ("VGG-16 of torchvision", "experiments/private_resnet18.py --model vgg16 --size 32 --depth 2"),
    ("A Transformer encoder", "experiments/private_transformer.py"),
    ("An LSTM classifier", "experiments/private_transformer.py --model lstm"),
    ("A GPT-style decoder", "experiments/private_transformer.py --model gpt"),
)
HEAD = """\
# Models

Unmodified models of torchvision and `torch.nn`, their weights and inputs secret, beside the same models in the clear in
float64. All three parties in one process on 2 cores of a shared machine: rounds and bytes are those of real parties,
seconds are not. The weights of the pictures' models are random, since none ship with encml; their batch normalisations
have seen real images. Written by `python tools/model_figures.py` from what these commands print.
"""


def main() -> None:
    """Run all commands, then write the page."""
    parts = [HEAD]
    for title, command in COMMANDS:
        sys.stderr.write(f"{command}\n")
        script, *options = shlex.split(command)
        process = subprocess.run(
            [sys.executable, ROOT / script, *options],
            env=os.environ | {"COLUMNS": "100", "TERM": "dumb", "OMP_NUM_THREADS": "2"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lines = [line.rstrip() for line in process.stdout.splitlines()]
        text = "\n".join(line for line in lines if "━" not in line).strip("\n")
        parts.append(f"## {title}\n\n```sh\npython {command}\n```\n\n```text\n{text}\n```\n")
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
