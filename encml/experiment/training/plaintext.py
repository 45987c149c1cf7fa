"""The same training in plaintext: the same first weights, batches and steps, in float32, for the report."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encml.config.training import TrainingConfig
from encml.data import MnistData, to_float
from encml.experiment.training.events import Accuracy
from encml.experiment.training.job import batches, initial_model, steps_of
from encml.experiment.training.metrics import Plain

_TESTED = 1000


def train_plainly(config: TrainingConfig, data: MnistData, told: Callable[[int, int], None]) -> Plain:
    """Train without secrets; ``told`` hears of steps done and in all.

    The loss is that of the same steps' batches as in the parties' training, and the accuracy is measured after the same
    steps, whatever that reveals of them.
    """
    images, labels = to_float(data.train_images), data.train_labels
    tests, classes = to_float(data.test_images), data.test_labels
    epoch, steps = steps_of(config, len(labels))
    model = initial_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.training.learning_rate, momentum=config.training.momentum)
    losses: list[tuple[int, float]] = []
    accuracy = [_test(model, tests, classes, 0)]
    every, begun = config.reveal.loss_every, time.perf_counter()
    for step, chosen in enumerate(batches(config, len(labels)), 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if every is not None and step % every == 0:
            losses.append((step, float(loss.detach())))
        if step == steps or step % epoch == 0 or config.reveal.accuracy_after(step, steps, epoch):
            accuracy.append(_test(model, tests, classes, step))
        told(step, steps)
    return Plain(losses=tuple(losses), accuracy=tuple(accuracy), seconds=time.perf_counter() - begun)


def _test(model: nn.Module, images: Tensor, classes: Tensor, step: int) -> Accuracy:
    with torch.no_grad():
        right = [
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(torch.split(images, _TESTED), torch.split(classes, _TESTED), strict=True)
        ]
    return Accuracy(step=step, right=sum(right), tests=len(classes))
