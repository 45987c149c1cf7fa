"""Small experiments for the tests: a part of the embedded data, few clients, two rounds, seconds."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import Tensor

from encml.config import ExperimentConfig, TrainingConfig
from encml.config.loading import check
from encml.experiment.display import Display
from encml.experiment.folder import RunFolder
from encml.experiment.metrics import Metrics
from encml.experiment.runner import run_federated
from encml.serving import load_model_shares

VALUES = {
    "experiment": "small",
    "seed": 5,
    "data": {"clients": 3, "train_images": 300, "test_images": 200},
    "federated": {"strategy": "fedavg", "rounds": 3, "learning_rate": 0.1, "batch_size": 32, "momentum": 0.9},
    "privacy": {"unit": "none"},
    "inference": {"images": 12, "batch_sizes": [1, 8], "transport": "in_process"},
}


def small_config(base: Path, **sections: object) -> ExperimentConfig:
    return check({**VALUES, "output": {"folder": str(base)}, **sections}, ExperimentConfig, "test")


def small_file(base: Path, **sections: object) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    path = base / "small.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "output": {"folder": str(base / "runs")}, **sections}))
    return path


def opened_model(folder: Path) -> dict[str, Tensor]:
    """The ring integers of the saved model: what only all three parties together know."""
    parts = load_model_shares(folder / "model")
    return {name: torch.stack([part.tensors[name][0] for part in parts]).sum(0) for name in parts[0].tensors}


def run_small(folder: RunFolder, display: Display, version: str) -> Metrics:
    """Run the federated experiment in ``folder``."""
    assert isinstance(folder.config, ExperimentConfig)
    return run_federated(folder, folder.config, display, version)


TRAINING = {
    "kind": "encrypted_training",
    "experiment": "small_training",
    "seed": 3,
    "data": {"train_images": 60, "test_images": 30},
    "model": {"kind": "network_d"},
    "training": {"epochs": 2, "batch_size": 10, "learning_rate": 0.125},
    "reveal": {"loss_every": 3, "accuracy": "epoch"},
    "checkpoint_every": 2,
}


def small_training(base: Path, **sections: object) -> TrainingConfig:
    """A training on encrypted data of 12 steps of ten images."""
    return check({**TRAINING, "output": {"folder": str(base)}, **sections}, TrainingConfig, "test")
