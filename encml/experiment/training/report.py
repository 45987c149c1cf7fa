"""The report of a training on encrypted data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from encml.config.training import RevealConfig, TrainingConfig
from encml.experiment.charts import accuracy_curves, loss_curves
from encml.experiment.page import batch_rows, figure, operation_table, page
from encml.experiment.text import bytes_text, seconds_text
from encml.experiment.training.metrics import Predictions, TrainingMetrics
from encml.privacy.text import delta_text, epsilon_text


def render(metrics: TrainingMetrics, config: TrainingConfig, path: Path) -> str:
    """The report's HTML, from the figures and what else lies in the run's folder. Raises ConfigError."""
    return page(
        "training.html.j2",
        metrics,
        path,
        headline=_headline(metrics),
        revealed=_revealed(metrics, config),
        charts=_charts(metrics),
        accuracies=_accuracies(metrics),
        predictions=_predictions(metrics.predictions),
        operations=_operations(metrics),
    )


def accuracy_text(metrics: TrainingMetrics) -> str:
    """The last accuracy, and what plaintext training gives."""
    if not metrics.accuracy:
        return "not revealed"
    text = f"{100 * metrics.accuracy[-1].share:.2f} %"
    if metrics.plain is None:
        return text
    return f"{text} ({100 * metrics.plain.accuracy[-1].share:.2f} % in plaintext)"


def step_text(metrics: TrainingMetrics) -> str:
    """What a step costs."""
    return (
        f"{seconds_text(metrics.step_seconds)}, {metrics.rounds_a_step:.3g} rounds, "
        f"{bytes_text(metrics.bytes_a_step)} sent by a party"
    )


def _headline(metrics: TrainingMetrics) -> list[dict[str, str]]:
    figures = []
    if metrics.accuracy:
        last = metrics.accuracy[-1]
        figures.append(figure("Accuracy", f"{100 * last.share:.2f} %", f"{last.right:,} of {last.tests:,} test images"))
    if metrics.plain is not None:
        plain = metrics.plain.accuracy[-1]
        figures.append(figure("In plaintext", f"{100 * plain.share:.2f} %", "same first weights, same batches"))
    epochs = metrics.steps / metrics.steps_an_epoch
    figures.append(figure("Steps", f"{metrics.steps:,}", f"of {metrics.batch_size} images: {epochs:.3g} epochs"))
    where = {"tls": "three processes, TLS", "in_process": "all parties in one process"}[metrics.transport]
    figures.append(figure("A step", seconds_text(metrics.step_seconds), where))
    figures.append(figure("Rounds a step", f"{metrics.rounds_a_step:.3g}", "messages all at once"))
    figures.append(figure("Sent a step", bytes_text(metrics.bytes_a_step), "by a party, on average"))
    if metrics.privacy.epsilon is not None:
        spent = f"for one image, δ = {delta_text(metrics.privacy.delta or 0.0)}"
        figures.append(figure("Epsilon", epsilon_text(metrics.privacy.epsilon), spent))
    figures.append(figure("Time", seconds_text(sum(metrics.seconds.values())), f"{metrics.environment.cores} cores"))
    return figures


def _revealed(metrics: TrainingMetrics, config: TrainingConfig) -> str:
    where = {
        "tls": "Three party processes, connected by mutual TLS, computed on shares.",
        "in_process": "All three parties lived in one process: the protocol without its privacy.",
    }[metrics.transport]
    owned = {
        "one": "Party {0.party} owned images and labels.",
        "features_and_labels": "Party {0.features} owned the images, party {0.labels} the labels.",
        "rows": "Every party owned a third of the images, with their labels.",
        "columns": "Every party owned a third of the pixels of every image, party {0.labels} the labels.",
    }[config.data.owners.kind].format(config.data.owners)
    public = "" if config.data.public == "nothing" else f" The {config.data.public} were public."
    return f"{where} {owned}{public} Revealed was {revealed_text(config.reveal)}; all else stayed secret."


def revealed_text(reveal: RevealConfig) -> str:
    """What a training reveals, as a part of a sentence."""
    found = []
    if reveal.loss_every is not None:
        found.append("the loss of every step" if reveal.loss_every == 1 else f"every {reveal.loss_every}th step's loss")
    if reveal.accuracy != "never":
        known = {"end": "at the end", "epoch": "after each epoch"}
        when = known.get(str(reveal.accuracy), f"after every {reveal.accuracy} steps")
        found.append(f"how many test images were right {when}")
    if reveal.model:
        found.append("the trained model")
    return ", ".join(found) or "nothing"


def _charts(metrics: TrainingMetrics) -> list[dict[str, str]]:
    plain = metrics.plain
    charts = []
    if metrics.accuracy:
        beside = [] if plain is None else [(record.step, record.share) for record in plain.accuracy]
        secret = [(record.step, record.share) for record in metrics.accuracy]
        if len(secret) > 1 or beside:
            charts.append(("Accuracy on the test images", accuracy_curves(secret, beside)))
    if metrics.losses:
        charts.append(("Loss of the step's batch", loss_curves(metrics.losses, () if plain is None else plain.losses)))
    return [{"title": title, "svg": Markup(svg)} for title, svg in charts]


def _accuracies(metrics: TrainingMetrics) -> list[dict[str, str]]:
    plain = {} if metrics.plain is None else {record.step: record.share for record in metrics.plain.accuracy}
    rows = []
    for record in metrics.accuracy:
        beside = plain.get(record.step)
        rows.append(
            {
                "step": f"{record.step:,}",
                "epochs": f"{record.step / metrics.steps_an_epoch:.3g}",
                "secret": f"{100 * record.share:.2f} %",
                "plain": "" if beside is None else f"{100 * beside:.2f} %",
                "difference": "" if beside is None else f"{100 * (record.share - beside):+.2f} points",
            }
        )
    return rows


def _predictions(predictions: Predictions | None) -> dict[str, Any] | None:
    if predictions is None:
        return None
    return {"sentence": predictions_text(predictions), "batches": batch_rows(predictions.batches)}


def predictions_text(predictions: Predictions) -> str:
    """How the private predictions came out."""
    return (
        f"Three party processes served the model from its shares, which nobody opened in between: "
        f"{predictions.right:,} of {predictions.images:,} images were classified as labelled."
    )


def _operations(metrics: TrainingMetrics) -> list[dict[str, Any]]:
    testing = f"The model on {metrics.test_images:,} test images, of which only the number that is right was opened."
    groups: Sequence[tuple[str, str, Any]] = (
        ("Training, by operation", f"All {metrics.steps:,} steps, checkpoints included.", metrics.training),
        ("Testing, by operation", testing, metrics.testing),
        ("Sharing, by operation", "Data and first weights, once.", metrics.sharing),
    )
    return [operation_table(title, note, costs) for title, note, costs in groups if costs]
