"""Configuration: frozen, typed models, read from YAML files."""

from encml.config.cluster import ClusterConfig, PartyConfig, load_cluster
from encml.config.experiment import ExperimentConfig
from encml.config.kinds import AnyExperiment, load_experiment
from encml.config.loading import Config, dump_yaml, load_yaml
from encml.config.overrides import with_overrides
from encml.config.training import TrainingConfig

__all__ = [
    "AnyExperiment",
    "ClusterConfig",
    "Config",
    "ExperimentConfig",
    "PartyConfig",
    "TrainingConfig",
    "dump_yaml",
    "load_cluster",
    "load_experiment",
    "load_yaml",
    "with_overrides",
]
