"""The experiment's schema: what is accepted, what is refused and how it is said, and overrides."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from encml.config import ExperimentConfig, load_experiment, with_overrides
from encml.config.experiment import (
    ClientPrivacy,
    DirichletPartition,
    ExamplePrivacy,
    FedAvg,
    FedSgd,
    IidPartition,
    NoPrivacy,
)
from encml.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"

EXAMPLE = """\
experiment: small
seed: 3
data:
  clients: 10
  partition: {kind: dirichlet, alpha: 0.5}
  test_images: 2000
federated:
  strategy: fedavg
  rounds: 4
  clients_per_round: 5
  learning_rate: 5e-1
  server: {learning_rate: 1, momentum: 0.5}
aggregation:
  max_norm: 8
privacy:
  unit: example
  target_epsilon: 3
  delta: 1e-5
  max_grad_norm: 1.0
"""

CLIENT = """\
experiment: clients
data: {clients: 1000}
federated: {strategy: fedavg, rounds: 4, sample_rate: 0.1, learning_rate: 0.1}
privacy: {unit: client, noise_multiplier: 1.0, delta: 1e-4, clip: 0.5, accountant: rdp}
"""

NONE = """\
experiment: nothing
data: {clients: 3}
federated: {strategy: fedsgd, rounds: 1}
privacy: {unit: none}
inference: null
"""


def load(tmp_path: Path, text: str, *overrides: str) -> ExperimentConfig:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return load_experiment(path, overrides)


def test_every_key_arrives(tmp_path: Path) -> None:
    config = load(tmp_path, EXAMPLE)
    assert config.experiment == "small"
    assert config.seed == 3
    assert config.data.root is None
    assert config.data.partition == DirichletPartition(kind="dirichlet", alpha=0.5)
    assert isinstance(config.federated, FedAvg)
    assert config.federated.learning_rate == 0.5
    assert config.federated.server.momentum == 0.5
    assert config.privacy == ExamplePrivacy(unit="example", target_epsilon=3, delta=1e-5, max_grad_norm=1)
    assert config.update_bound == 8
    assert config.inference is not None
    assert config.inference.batch_sizes == (1, 64)
    assert config.output.folder == Path("runs")


def test_units_and_strategies(tmp_path: Path) -> None:
    client = load(tmp_path, CLIENT)
    assert isinstance(client.privacy, ClientPrivacy)
    assert client.update_bound == client.privacy.clip == 0.5
    assert client.data.partition == IidPartition()
    nothing = load(tmp_path, NONE)
    assert isinstance(nothing.privacy, NoPrivacy)
    assert isinstance(nothing.federated, FedSgd)
    assert nothing.update_bound is None
    assert nothing.inference is None


def test_models_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load(tmp_path, NONE).seed = 2


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (EXAMPLE, "rounds: 4", "roundz: 4", r":9: federated\.roundz: unknown key \(did you mean 'rounds'\?\)"),
        (EXAMPLE, "rounds: 4", "rounds: 0", r"federated\.rounds: found 0"),
        (EXAMPLE, "rounds: 4", "rounds: 2.5", r"federated\.rounds: found 2\.5"),
        (EXAMPLE, "rounds: 4", "rounds: true", r"federated\.rounds: found True"),
        (EXAMPLE, "5e-1", "fast", r":11: federated\.learning_rate: found 'fast'"),
        (EXAMPLE, "5e-1", ".inf", r"federated\.learning_rate"),
        (EXAMPLE, "alpha: 0.5", "alpha: 0", r"data\.partition\.alpha"),
        (EXAMPLE, "dirichlet, alpha: 0.5", "iid, alpha: 0.5", r"data\.partition\.alpha: unknown key.*kind"),
        (EXAMPLE, "dirichlet", "random", r"data\.partition.*'iid', 'dirichlet'"),
        (EXAMPLE, "strategy: fedavg", "strategy: fedprox", r"federated.*'fedavg', 'fedsgd'"),
        (EXAMPLE, "experiment: small", "experiment: ../escape", r"experiment: found '\.\./escape'"),
        (
            EXAMPLE,
            "clients_per_round: 5",
            "clients_per_round: 11",
            "clients_per_round: 11 is more than data.clients: 10",
        ),
        (EXAMPLE, "clients_per_round: 5", "clients_per_round: 5\n  sample_rate: 0.5", "both choose.*keep one"),
        (EXAMPLE, "clients: 10", "clients: 10\n  download: true", "needs a root"),
        (EXAMPLE, "clients: 10", "clients: 10\n  train_images: 9", "train_images: 9 cannot be split"),
        (EXAMPLE, "2000", "999", "inference.images: 1000 is more than data.test_images: 999"),
        (EXAMPLE, "  delta: 1e-5\n", "", r"privacy.*delta: this key is missing"),
        (EXAMPLE, "delta: 1e-5", "delta: 1", r"privacy\.delta: found 1"),
        (EXAMPLE, "target_epsilon: 3", "target_epsilon: 3\n  noise_multiplier: 1", "exactly one.*and"),
        (EXAMPLE, "  target_epsilon: 3\n", "", "exactly one.*found none"),
        (EXAMPLE, "max_grad_norm: 1.0", "clip: 1.0", r"privacy\.clip: unknown key.*max_grad_norm"),
        (CLIENT, "sample_rate: 0.1", "clients_per_round: 100", "give federated.sample_rate"),
        (CLIENT, "sample_rate: 0.1, ", "", "give federated.sample_rate"),
        (CLIENT, "sample_rate: 0.1", "sample_rate: 1.1", r"federated\.sample_rate"),
        (CLIENT, "sample_rate: 0.1", "sample_rate: 0.1, weighting: examples", "must be uniform"),
        (CLIENT, "delta: 1e-4", "delta: 1e-3", "choose it below 1 / data.clients = 0.001"),
        (CLIENT, "privacy:", "aggregation: {max_norm: 1.0}\nprivacy:", r"remove aggregation\.max_norm"),
        (NONE, "unit: none", "unit: none, noise_multiplier: 1.0", "unit: none adds no noise"),
        (NONE, "unit: none", "unit: both", r"privacy.*'none', 'client', 'example'"),
        (NONE, "fedsgd, ", "fedsgd, local_epochs: 2, ", r"federated\.local_epochs: unknown key"),
        (
            NONE,
            "unit: none",
            "unit: example, noise_multiplier: 1.0, delta: 1e-5, max_grad_norm: 1.0",
            "strategy: fedsgd does not have",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, old: str, new: str, message: str) -> None:
    assert text.count(old) == 1
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text.replace(old, new))
    assert "experiment.yaml:" in str(caught.value)


def test_overrides(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        EXAMPLE,
        "federated.rounds=7",
        "federated.learning_rate=1e-2",
        "data.root=somewhere/else",
        "output.folder=elsewhere",
        "inference.batch_sizes=[2, 8]",
        "privacy={unit: none}",
    )
    assert isinstance(config.federated, FedAvg)
    assert config.federated.rounds == 7
    assert config.federated.learning_rate == 0.01
    assert config.federated.server.momentum == 0.5
    assert config.data.root == Path("somewhere/else")
    assert config.output.folder == Path("elsewhere")
    assert config.inference is not None
    assert config.inference.batch_sizes == (2, 8)
    assert config.privacy == NoPrivacy(unit="none")


def test_overrides_are_checked_together(tmp_path: Path) -> None:
    config = load(tmp_path, EXAMPLE)
    assert with_overrides(config, []) is config
    with pytest.raises(ConfigError, match="is more than"):
        with_overrides(config, ["data.clients=4"])
    assert with_overrides(config, ["data.clients=4", "federated.clients_per_round=2"]).data.clients == 4
    assert config.data.clients == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("federated.rounds", "expected key=value"),
        ("=3", "expected key=value"),
        ("federated..rounds=3", "expected key=value"),
        ("federated.rounds=[3", "not valid YAML"),
        ("federated.rounds=many", r"federated\.rounds: found 'many'"),
        ("federated.roundz=3", r"federated\.roundz: unknown key \(did you mean 'rounds'\?\)"),
        ("federated.rounds.x=3", r"federated\.rounds is a single value \(4\), not a section"),
        ("privacy.unit=none", "unit: none adds no noise"),
        ("privacy.unit=client", r"unknown key|missing"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, EXAMPLE, override)
    assert f"--set {override}" in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("mnist_*.yaml")), ids=lambda p: p.name)
def test_shipped_experiments_load(path: Path) -> None:
    config = load_experiment(path)
    assert config.experiment == path.stem


def test_resolved_config_reads_back(tmp_path: Path) -> None:
    config = load(tmp_path, EXAMPLE)
    assert ExperimentConfig.model_validate_json(config.model_dump_json(), strict=True) == config
