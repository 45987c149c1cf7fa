"""Training on encrypted data: who owns what, the network, the steps, and what is revealed while it goes on.

Every section is frozen and refuses unknown keys, as in ``encml.config.experiment``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from encml.config.experiment import (
    Count,
    ExperimentName,
    InferenceConfig,
    Momentum,
    OutputConfig,
    Positive,
    PrivacyBudget,
    Seed,
)
from encml.config.loading import Config

Rank = Annotated[int, Field(ge=0, le=2)]
"""One of the three parties."""


class OneOwner(Config):
    """One party has all images and labels."""

    kind: Literal["one"] = "one"
    party: Rank = 0


class FeaturesAndLabels(Config):
    """One party has the images, another the labels, of the same people in the same order."""

    kind: Literal["features_and_labels"]
    features: Rank = 0
    labels: Rank = 1

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.features == self.labels:
            raise ValueError(f"party {self.features} has both: that is kind: one")
        return self


class JoinedRows(Config):
    """Every party has images of its own, with their labels: as many as the others."""

    kind: Literal["rows"]


class JoinedColumns(Config):
    """Every party has a third of the pixel rows of every image; one of them has the labels."""

    kind: Literal["columns"]
    labels: Rank = 0


class TrainingData(Config):
    """MNIST, and who owns which part of it.

    Each owner reads its own part only, and shares it once, before the first step.
    """

    root: Path | None = None
    """Folder that holds MNIST/raw, relative to the working directory; None or empty: the subset in the package."""
    owners: Annotated[OneOwner | FeaturesAndLabels | JoinedRows | JoinedColumns, Field(discriminator="kind")] = (
        OneOwner()
    )
    public: Literal["nothing", "images", "labels"] = "nothing"
    """What of it need not be secret; the parties then simply hold it."""
    train_images: Count | None = None
    """Use only the first so many training images; None: all."""
    test_images: Count | None = None
    """Measure accuracy on the first so many test images; None: all."""

    @model_validator(mode="after")
    def _owned(self) -> Self:
        if self.public != "nothing" and self.owners.kind != "one":
            raise ValueError(
                f"public: {self.public} needs owners: {{kind: one}}, found {self.owners.kind}: what is public has no "
                "owner"
            )
        return self


class NetworkConfig(Config):
    """The network: A to D of the literature on encrypted training, or the network of the demonstration."""

    kind: Literal["network_a", "network_b", "network_c", "network_d", "seed_cnn"]


class StepsConfig(Config):
    """The training itself: stochastic gradient descent with softmax cross-entropy."""

    epochs: Annotated[int, Field(ge=1)] = 5
    steps: Count | None = None
    """Stop after so many steps, within an epoch too; None: at the end of the last epoch."""
    batch_size: Count = 128
    """The last images of an epoch that make no full batch wait for the next. Under ``privacy`` the expected size."""
    learning_rate: Positive
    momentum: Momentum = 0.0


class PartiesConfig(Config):
    """Where the three computing parties are, and what they compute with."""

    transport: Literal["tls", "in_process"] = "in_process"
    """``tls``: three processes with mutual TLS; ``in_process``: the same protocol without any privacy."""
    timeout: Positive = 60.0
    """Seconds without progress after which a party counts as gone."""
    threads: Count = 1
    """Compute threads of a process."""
    fraction_bits: Annotated[int, Field(ge=8, le=20)] = 16
    comparison_bits: Annotated[int, Field(ge=12, le=64)] | None = None
    """A declared range of what is compared, see ``encml.Session``; None: the whole range of the numbers."""


class RevealConfig(Config):
    """What the parties open while they train, and at the end. All else stays secret."""

    loss_every: Count | None = None
    """After every so many steps the loss of that step's batch; None: never."""
    accuracy: Literal["never", "end", "epoch"] | Count = "end"
    """How many test images the model gets right: never, at the end, and after each epoch or so many steps, too."""
    model: bool = False
    """The trained weights, at the end."""

    def accuracy_after(self, step: int, steps: int, epoch: int) -> bool:
        """Whether accuracy is revealed after ``step`` of ``steps`` steps, of which an epoch has ``epoch``."""
        if step == steps:
            return self.accuracy != "never"
        if isinstance(self.accuracy, int):
            return step % self.accuracy == 0
        return self.accuracy == "epoch" and step % epoch == 0


class TrainingPrivacy(PrivacyBudget):
    """DP-SGD in the protocol: every image's gradient is clipped, and the parties add noise that none of them knows."""

    max_grad_norm: Positive
    """L2 norm to which each image's gradient is clipped."""


class TrainingConfig(Config):
    """One training on encrypted data, as its YAML file describes it."""

    kind: Literal["encrypted_training"]
    experiment: ExperimentName
    """Its name, which starts the name of the run folder."""
    seed: Seed = 0
    """Of what is public: the first weights and the order of batches. Never of shares, noise or masks."""
    data: TrainingData
    model: NetworkConfig
    training: StepsConfig
    parties: PartiesConfig = PartiesConfig()
    reveal: RevealConfig = RevealConfig()
    privacy: TrainingPrivacy | None = None
    """None: no noise; a model that is revealed then says about each image what a model says."""
    checkpoint_every: Count = 200
    """Each party writes its shares to its own checkpoint after so many steps, and after each epoch."""
    compare: bool = True
    """Also train in plaintext, from the same first weights with the same batches, for the report."""
    inference: InferenceConfig | None = None
    """Private predictions from the trained shares at the end; None: none."""
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        train, batch = self.data.train_images, self.training.batch_size
        if train is not None and batch > train:
            raise ValueError(f"training.batch_size: {batch} is more than data.train_images: {train}")
        if self.privacy is not None and train is not None and self.privacy.delta >= 1 / train:
            raise ValueError(
                f"privacy.delta: {self.privacy.delta} is no protection for {train} images: it allows one image to be "
                f"published outright; choose it below 1 / data.train_images = {1 / train:.3g}"
            )
        if self.privacy is not None and self.reveal.loss_every is not None:
            raise ValueError(
                f"reveal.loss_every: {self.reveal.loss_every} shows what the noise of privacy is to hide, the loss on "
                "training images; leave it out (null)"
            )
        if self.inference is not None and self.inference.transport != "tls":
            raise ValueError(
                f"inference.transport: {self.inference.transport} has no shares to serve from; predictions from a "
                "training's shares come from three processes: tls"
            )
        tests = self.data.test_images
        if self.inference is not None and tests is not None and self.inference.images > tests:
            raise ValueError(f"inference.images: {self.inference.images} is more than data.test_images: {tests}")
        return self
