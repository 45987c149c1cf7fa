"""Every kind of experiment: how it is run, and how its report is made."""

from __future__ import annotations

from pathlib import Path

from encml.config import TrainingConfig
from encml.experiment import report
from encml.experiment.display import Display
from encml.experiment.files import write_file
from encml.experiment.folder import REPORT, RunFolder, read_config
from encml.experiment.metrics import Metrics, read_metrics
from encml.experiment.runner import run_federated
from encml.experiment.training import report as training_report
from encml.experiment.training.metrics import TrainingMetrics
from encml.experiment.training.runner import run_training

AnyMetrics = Metrics | TrainingMetrics


def run_experiment(folder: RunFolder, display: Display, version: str) -> AnyMetrics:
    """Run, or go on with, the experiment in ``folder`` to its end, and return its figures. Raises EncmlError."""
    config = folder.config
    if isinstance(config, TrainingConfig):
        return run_training(folder, config, display, version)
    return run_federated(folder, config, display, version)


def make_report(path: Path) -> Path:
    """Write the report of the finished run in ``path`` (anew); returns its path. Raises ConfigError."""
    config = read_config(path)
    if isinstance(config, TrainingConfig):
        html = training_report.render(read_metrics(path, TrainingMetrics), config, path)
    else:
        html = report.render(read_metrics(path, Metrics), path)
    write_file(path / REPORT, html.encode())
    return path / REPORT
