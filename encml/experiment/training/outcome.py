"""What the parties of this machine left: their shares of the trained model, and the model where it was revealed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from encml.experiment.folder import MODEL, RunFolder
from encml.experiment.training.job import PLAIN
from encml.experiment.training.launch import IN_PROCESS
from encml.net.transport import PARTIES


def gather(folder: RunFolder) -> None:
    """Put what each party saved for serving side by side, and the revealed model, if there is one, beside them."""

    def fill(model: Path) -> None:
        for own in _processes(folder):
            for path in sorted((own / MODEL).glob("party-*.safetensors")):
                shutil.copy2(path, model / path.name)

    folder.write_model(fill)
    for own in _processes(folder):
        if (own / PLAIN).exists():
            shutil.copy2(own / PLAIN, folder.path / PLAIN)


def clear(folder: RunFolder) -> None:
    """Remove what the parties needed to go on: checkpoints, and the roots of their masks."""
    for own in _processes(folder):
        shutil.rmtree(own, ignore_errors=True)


def _processes(folder: RunFolder) -> Iterator[Path]:
    for name in (IN_PROCESS, *(f"party-{rank}" for rank in range(PARTIES))):
        if (folder.path / name).is_dir():
            yield folder.path / name
