"""The command of a client: ``query``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from encml.data import load_mnist, to_float
from encml.errors import ConfigError, DataError, EncmlError
from encml.experiment.text import bytes_text, seconds_text
from encml.serving import Client


def query(
    config_file: Path,
    model: str,
    client: str,
    images: str | None,
    data: Path | None,
    tensor_file: Path | None,
    scores_file: Path | None,
) -> None:
    """Classify images privately and print the classes. Raises EncmlError."""
    if (images is None) == (tensor_file is None):
        raise ConfigError("give either --images, numbers of MNIST test images, or --input, a file with a tensor")
    labels: list[int] | None = None
    if images is not None:
        numbers = _numbers(images)
        inputs, labels, source = _test_images(numbers, data)
        typer.echo(f"Test images of {source}.", err=True)
    else:
        assert tensor_file is not None  # checked above
        inputs = read_tensor(tensor_file)
        numbers = list(range(len(inputs)))
    with Client(config_file, client) as asking:
        scores = asking.query_model(inputs, model)
        cost = asking.last_cost
    _print_classes(numbers, scores, labels)
    assert cost is not None  # there has been a query
    left = "" if cost.remaining is None else f"; {cost.remaining} requests left"
    typer.echo(
        f"{cost.rounds} rounds, {bytes_text(sum(cost.sent_bytes) / 3)} sent by each party, "
        f"{seconds_text(cost.seconds)} of computing{left}",
        err=True,
    )
    if scores_file is not None:
        try:
            np.save(scores_file, scores.numpy(), allow_pickle=False)
        except OSError as error:
            raise EncmlError(f"{scores_file}: cannot be written: {error.strerror}") from None


def read_tensor(path: Path) -> Tensor:
    """The one float tensor (batch, ...) of a .npy or .safetensors file; nothing pickled. Raises DataError."""
    try:
        if path.suffix == ".npy":
            tensor = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors":
            found = load_file(path)
            if len(found) != 1:
                raise DataError(
                    f"{path}: expected one tensor, found {len(found)}: {', '.join(sorted(found)) or 'none'}"
                )
            (tensor,) = found.values()
        else:
            raise DataError(f"{path}: expected a file .npy or .safetensors")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not tensor.is_floating_point() or tensor.ndim < 1 or not len(tensor):
        raise DataError(f"{path}: expected floats (batch, ...), found {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _test_images(numbers: Sequence[int], root: Path | None) -> tuple[Tensor, list[int], str]:
    data = load_mnist(root)
    highest = len(data.test_labels) - 1
    if max(numbers) > highest:
        raise ConfigError(f"--images: {max(numbers)} is beyond the last test image, {highest} ({data.source})")
    return to_float(data.test_images[numbers]), data.test_labels[numbers].tolist(), data.source


def _print_classes(numbers: Sequence[int], scores: Tensor, labels: Sequence[int] | None) -> None:
    table = Table("image", *(["actual"] if labels is not None else []), "predicted")
    predicted = scores.flatten(1).argmax(1).tolist()
    for place, (number, guess) in enumerate(zip(numbers, predicted, strict=True)):
        actual = [] if labels is None else [str(labels[place])]
        table.add_row(str(number), *actual, str(guess))
    Console().print(table)


def _numbers(text: str) -> list[int]:
    items = [item.strip() for item in text.split(",")]
    if not items or not all(item.isascii() and item.isdigit() for item in items):
        raise ConfigError(f"--images {text!r}: expected numbers from 0 with commas between them, such as 0,1,2")
    return [int(item) for item in items]
