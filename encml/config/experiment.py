"""A federated experiment: data, model, federation, privacy, inference and where the results go.

Every section is frozen and refuses unknown keys; combinations that cannot work or would promise more than they keep
are refused when the file is read, before anything runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from encml.config.loading import Config

Count = Annotated[int, Field(ge=1)]
"""A whole number from 1."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Delta = Annotated[float, Field(gt=0, lt=1)]


class IidPartition(Config):
    """Every client gets a random part of the training images, all of the same size."""

    kind: Literal["iid"] = "iid"


class DirichletPartition(Config):
    """Clients of the same size whose label mixes are drawn from Dirichlet(alpha); small alpha, strong skew."""

    kind: Literal["dirichlet"]
    alpha: Positive


class DataConfig(Config):
    """MNIST and its split over the simulated clients."""

    root: Path | None = None
    """Folder that holds MNIST/raw, relative to the working directory; None or empty: the subset in the package."""
    download: bool = False
    """Whether what is missing may be fetched into ``root``."""
    clients: Count
    partition: Annotated[IidPartition | DirichletPartition, Field(discriminator="kind")] = IidPartition()
    train_images: Count | None = None
    """Use only the first so many training images; None: all."""
    test_images: Count | None = None
    """Measure accuracy on the first so many test images; None: all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.download and self.root is None:
            raise ValueError("download: true needs a root, the folder to put MNIST in")
        if self.train_images is not None and self.train_images < self.clients:
            raise ValueError(
                f"train_images: {self.train_images} cannot be split over clients: {self.clients}; "
                "each needs at least one"
            )
        return self


class ModelConfig(Config):
    """The network. ``seed_cnn``: three times conv 3x3, average pool, ReLU (16, 32, 64 channels), then linear 10."""

    kind: Literal["seed_cnn"] = "seed_cnn"


class ServerConfig(Config):
    """The step that the server takes along the mean update."""

    optimizer: Literal["sgd"] = "sgd"
    learning_rate: Positive = 1.0
    momentum: Momentum = 0.0


class _Federation(Config):
    """What both strategies have. All clients take part in a round unless one of the two choices below is made."""

    rounds: Count
    clients_per_round: Count | None = None
    """So many clients, chosen anew each round, without replacement."""
    sample_rate: Rate | None = None
    """Each client takes part with this probability, independently (Poisson sampling)."""
    weighting: Literal["uniform", "examples"] = "uniform"
    """Whether an update counts the same for every client, or by its number of examples (which is then public)."""
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.clients_per_round is not None and self.sample_rate is not None:
            raise ValueError(
                f"clients_per_round: {self.clients_per_round} and sample_rate: {self.sample_rate} both choose the "
                "clients of a round; keep one"
            )
        return self


class FedAvg(_Federation):
    """Clients train for some epochs and send the difference of the weights (McMahan et al. 2016)."""

    strategy: Literal["fedavg"]
    local_epochs: Count = 1
    batch_size: Count = 64
    """Under example-level privacy this is the expected size of a Poisson-sampled batch."""
    learning_rate: Positive
    momentum: Momentum = 0.0


class FedSgd(_Federation):
    """Clients send one gradient over all their data; the server's learning rate makes the step of it."""

    strategy: Literal["fedsgd"]


class AggregationConfig(Config):
    """Secure averaging by the three parties."""

    fraction_bits: Annotated[int, Field(ge=4, le=24)] = 16
    """Bits after the binary point in the ring."""
    max_norm: Positive | None = None
    """An update with a larger L2 norm is scaled down to it inside the protocol; None: no bound of its own.

    Under client-level privacy ``privacy.clip`` is this bound.
    """


class NoPrivacy(Config):
    """The opened mean carries no noise: it says about each client what a mean says."""

    unit: Literal["none"]

    @model_validator(mode="before")
    @classmethod
    def _nothing_else(cls, values: Any) -> Any:
        others = sorted(set(values) - {"unit"}) if isinstance(values, dict) else []
        if others:
            raise ValueError(
                f"unit: none adds no noise and takes no {', '.join(others)}; remove them (with --set, write "
                "'privacy={unit: none}'), or choose unit: client or unit: example"
            )
        return values


class PrivacyBudget(Config):
    """What all kinds of differential privacy have: a budget, given as noise or as the epsilon to stay under."""

    noise_multiplier: Positive | None = None
    """Standard deviation of the noise in units of the clipping norm."""
    target_epsilon: Positive | None = None
    """The epsilon at ``delta`` after all rounds, from which the noise multiplier is found."""
    delta: Delta
    accountant: Literal["rdp", "prv"] = "prv"

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = {"noise_multiplier": self.noise_multiplier, "target_epsilon": self.target_epsilon}
        named = [f"{name}: {value}" for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise ValueError(
                f"exactly one of noise_multiplier and target_epsilon sets the budget, "
                f"found {' and '.join(named) or 'none'}"
            )
        return self


class ClientPrivacy(PrivacyBudget):
    """Protects whether a client took part at all, with all its data: clipping and noise inside the protocol."""

    unit: Literal["client"]
    clip: Positive
    """L2 norm to which each client's update is clipped."""


class ExamplePrivacy(PrivacyBudget):
    """Protects each single training image of each client: DP-SGD on the client, before anything is sent."""

    unit: Literal["example"]
    max_grad_norm: Positive
    """L2 norm to which each image's gradient is clipped."""


class InferenceConfig(Config):
    """Private inference on test images after the training."""

    images: Count = 1000
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 64)
    """Batch sizes at which the time per image is measured."""
    transport: Literal["tls", "in_process"] = "tls"
    """``tls``: three party processes with mutual TLS; ``in_process``: the same protocol without any privacy."""
    timeout: Positive = 30.0
    """Seconds without an answer after which a party counts as gone."""


class OutputConfig(Config):
    """Where the run folder is made, relative to the working directory."""

    folder: Path = Path("runs")


ExperimentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ExperimentConfig(Config):
    """One federated experiment, as its YAML file describes it."""

    kind: Literal["federated"] = "federated"
    experiment: ExperimentName
    """Its name, which starts the name of the run folder."""
    seed: Seed = 0
    """Of what may repeat: the split, the initial weights, the order of batches. Never of noise or masks."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    federated: Annotated[FedAvg | FedSgd, Field(discriminator="strategy")]
    aggregation: AggregationConfig = AggregationConfig()
    privacy: Annotated[NoPrivacy | ClientPrivacy | ExamplePrivacy, Field(discriminator="unit")]
    inference: InferenceConfig | None = InferenceConfig()
    """None: no private inference after the training."""
    output: OutputConfig = OutputConfig()

    @property
    def update_bound(self) -> float | None:
        """The L2 norm that no client's update can exceed in the secure mean; None where none is configured."""
        return self.privacy.clip if isinstance(self.privacy, ClientPrivacy) else self.aggregation.max_norm

    @model_validator(mode="after")
    def _check(self) -> Self:
        chosen, clients = self.federated.clients_per_round, self.data.clients
        if chosen is not None and chosen > clients:
            raise ValueError(f"federated.clients_per_round: {chosen} is more than data.clients: {clients}")
        if isinstance(self.privacy, ClientPrivacy):
            self._check_client_level(self.privacy)
        if isinstance(self.privacy, ExamplePrivacy) and isinstance(self.federated, FedSgd):
            raise ValueError(
                "privacy.unit: example is DP-SGD in the clients' own training, which federated.strategy: fedsgd "
                "does not have; choose fedavg, or unit: client"
            )
        tests = self.data.test_images
        if self.inference is not None and tests is not None and self.inference.images > tests:
            raise ValueError(f"inference.images: {self.inference.images} is more than data.test_images: {tests}")
        return self

    def _check_client_level(self, privacy: ClientPrivacy) -> None:
        """Client-level accounting holds for Poisson sampling, equal weights and one clipping norm only."""
        if self.federated.sample_rate is None:
            raise ValueError(
                "privacy.unit: client is accounted for Poisson sampling of clients: give federated.sample_rate "
                "(1.0 for all clients in every round) instead of clients_per_round"
            )
        if self.federated.weighting != "uniform":
            raise ValueError(
                f"privacy.unit: client bounds every client's weight alike: federated.weighting: "
                f"{self.federated.weighting} must be uniform"
            )
        if self.aggregation.max_norm is not None:
            raise ValueError(
                f"privacy.clip: {privacy.clip} already bounds every update under privacy.unit: client: remove "
                f"aggregation.max_norm: {self.aggregation.max_norm}"
            )
        if privacy.delta >= 1 / self.data.clients:
            raise ValueError(
                f"privacy.delta: {privacy.delta} is no protection for {self.data.clients} clients: "
                f"it allows one client's data to be published outright; choose it below "
                f"1 / data.clients = {1 / self.data.clients:.3g}"
            )
