"""Reading an experiment's file, of whichever kind it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from encml.config.experiment import ExperimentConfig
from encml.config.loading import load_yaml_as
from encml.config.overrides import with_overrides
from encml.config.training import TrainingConfig

AnyExperiment = ExperimentConfig | TrainingConfig

KINDS: dict[str, type[ExperimentConfig] | type[TrainingConfig]] = {
    "federated": ExperimentConfig,
    "encrypted_training": TrainingConfig,
}
"""By what stands under the key ``kind``; a file without it is federated."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> AnyExperiment:
    """Read an experiment's YAML file, then apply ``overrides`` (``with_overrides``).

    Raises ConfigError, naming file, line and key, or the override.
    """
    return with_overrides(load_yaml_as(path, "kind", KINDS, "federated"), overrides)
