"""report.html: one file with everything in it, made from what lies in a run's folder."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from matplotlib.image import imsave
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from encml.errors import ConfigError
from encml.experiment.charts import accuracy_chart, clients_chart, epsilon_chart, seconds_chart
from encml.experiment.folder import CLASSIFIED
from encml.experiment.metrics import Metrics, Round
from encml.experiment.page import batch_rows, figure, operation_table, page
from encml.experiment.text import (
    bytes_text,
    inference_sentence,
    milliseconds_text,
    seconds_text,
)
from encml.privacy.text import delta_text, epsilon_text

FIRST_IMAGES = 40
"""So many of the first test images are shown, and at most so many of those that came out wrong."""


def select_images(images: Tensor, labels: Tensor, predicted: Tensor) -> bytes:
    """classified.safetensors: the images that the report shows, uint8 (K, 28, 28), with labels and predictions."""
    wrong = (predicted != labels).nonzero().flatten()[:FIRST_IMAGES]
    first = torch.arange(min(FIRST_IMAGES, len(labels)))
    shown = torch.cat([first, wrong[wrong >= len(first)]])
    content: bytes = save_tensors(
        {
            "images": images[shown].contiguous(),
            "index": shown,
            "labels": labels[shown].contiguous(),
            "predicted": predicted[shown].contiguous(),
        }
    )
    return content


def render(metrics: Metrics, path: Path) -> str:
    """The report's HTML, from the figures and what else lies in the run's folder. Raises ConfigError."""
    return page(
        "report.html.j2",
        metrics,
        path,
        headline=_headline(metrics),
        operations=_operations(metrics),
        charts=_charts(metrics.rounds),
        failures=_failures(metrics.rounds),
        inference_sentence=inference_sentence(metrics.inference) if metrics.inference else "",
        batches=batch_rows(metrics.inference.batches) if metrics.inference else [],
        images=_images(path / CLASSIFIED) if metrics.inference else [],
    )


def _headline(metrics: Metrics) -> list[dict[str, str]]:
    privacy, inference = metrics.privacy, metrics.inference
    figures = [figure("Accuracy", f"{100 * metrics.accuracy:.2f} %", f"{metrics.data.test_images:,} test images")]
    if privacy.epsilon is None:
        figures.append(figure("Epsilon", "∞", "no noise: nothing is bounded"))
    else:
        figures.append(
            figure(
                "Epsilon",
                epsilon_text(privacy.epsilon),
                f"for one {privacy.unit}, δ = {delta_text(privacy.delta or 0.0)}",
            )
        )
    figures.append(figure("Rounds", f"{len(metrics.rounds)}", f"{metrics.data.clients:,} clients"))
    if inference is not None:
        same = f"{inference.agreeing:,} of {inference.images:,} images"
        figures.append(figure("Private = plain", f"{100 * inference.agreement:.4g} %", same))
        figures += [
            figure(
                f"Batch of {batch.batch_size}",
                milliseconds_text(batch.ms_per_image),
                f"an image; {batch.rounds} rounds, {bytes_text(batch.bytes_per_party)} a party",
            )
            for batch in inference.batches
        ]
    figures.append(figure("Time", seconds_text(sum(metrics.seconds.values())), f"{metrics.environment.cores} cores"))
    return figures


def _charts(rounds: Sequence[Round]) -> list[dict[str, str]]:
    if not rounds:
        return []
    numbers = [r.round for r in rounds]
    spent = [r.epsilon for r in rounds if r.epsilon is not None]
    charts = [("Accuracy on the test images", accuracy_chart(numbers, [r.accuracy for r in rounds]))]
    if len(spent) == len(rounds):
        charts.append(("Epsilon spent", epsilon_chart(numbers, spent)))
    charts.append(
        ("Clients in the mean", clients_chart(numbers, [r.accepted for r in rounds], [len(r.failed) for r in rounds]))
    )
    charts.append(("Time", seconds_chart(numbers, [r.seconds for r in rounds])))
    return [{"title": title, "svg": Markup(svg)} for title, svg in charts]


def _failures(rounds: Iterable[Round]) -> list[dict[str, object]]:
    found: dict[str, list[int]] = defaultdict(list)
    for record in rounds:
        for failure in record.failed:
            found[failure.reason].append(record.round)
    return [
        {"reason": reason, "times": len(numbers), "rounds": ", ".join(map(str, sorted(set(numbers))))}
        for reason, numbers in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _operations(metrics: Metrics) -> list[dict[str, Any]]:
    groups = [("Secure averaging, by operation", _averaging_note(metrics.rounds), metrics.aggregation)]
    if metrics.inference is not None:
        most = max(batch.batch_size for batch in metrics.inference.batches)
        note = (
            f"One request of {most} images, sharing them and revealing the result included, counted with all parties "
            "in one process: rounds and bytes are the same between processes, times are not."
        )
        groups.append(("Private inference, by operation", note, metrics.inference.costs))
    return [operation_table(title, note, costs) for title, note, costs in groups if costs]


def _averaging_note(rounds: Sequence[Round]) -> str:
    uploaded, released = sum(r.uploaded for r in rounds), sum(r.released for r in rounds)
    return (
        f"Over the whole training, between the parties. Beside that, clients uploaded {bytes_text(uploaded)} of sealed "
        f"shares and the parties handed {bytes_text(released)} of masked rows to the server."
    )


def _images(path: Path) -> list[dict[str, Any]]:
    try:
        stored = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: missing or damaged ({error}): the report cannot be made anew") from None
    shown = [
        {"index": int(index), "uri": _data_uri(image), "label": int(label), "predicted": int(guess), "wrong": wrong}
        for index, image, label, guess, wrong in zip(
            stored["index"],
            stored["images"],
            stored["labels"],
            stored["predicted"],
            (stored["labels"] != stored["predicted"]).tolist(),
            strict=True,
        )
    ]
    first = [image for image in shown if image["index"] < FIRST_IMAGES]
    wrong = [image for image in shown if image["wrong"]]
    groups = [{"title": f"The first {len(first)} images: the predicted class, and the true one", "images": first}]
    if wrong:
        cut = f" (the first {len(wrong)} of them)" if len(wrong) >= FIRST_IMAGES else ""
        groups.append({"title": f"Images that came out wrong{cut}", "images": wrong})
    return groups


def _data_uri(image: Tensor) -> str:
    buffer = io.BytesIO()
    imsave(buffer, image[..., None].expand(-1, -1, 3).numpy(), format="png", metadata={"Software": "encml"})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
