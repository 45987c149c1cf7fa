"""Private predictions from the shares that a training left, which nobody has opened in between."""

from __future__ import annotations

from encml.config.experiment import InferenceConfig
from encml.data import MnistData, to_float
from encml.experiment.display import Display
from encml.experiment.folder import MODEL, RunFolder
from encml.experiment.inference import REQUESTS, Phase, measure, party_processes
from encml.experiment.metrics import Batch
from encml.experiment.training.metrics import Predictions


def predict(config: InferenceConfig, folder: RunFolder, data: MnistData, display: Display, phase: Phase) -> Predictions:
    """Serve the model in ``folder`` from its shares and classify the first test images; PartyError for a party."""
    images, labels = to_float(data.test_images[: config.images]), data.test_labels[: config.images]
    batches: list[Batch] = []
    right = 0
    with party_processes(config, folder.path / MODEL, display, phase) as query:
        display.phase(f"private predictions for {len(images)} test images")
        for size in sorted(set(config.batch_sizes)):
            chosen = images if size == max(config.batch_sizes) else images[: size * REQUESTS]
            with phase("Private predictions"):
                predicted, batch = measure(query, chosen, size, display)
            right = int((predicted == labels[: len(predicted)]).sum())
            batches.append(batch)
    return Predictions(images=len(images), right=right, batches=tuple(batches))
