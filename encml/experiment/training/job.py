"""The training itself: the program that every party runs, with what lives in its process.

The loop is PyTorch's own; what is around it shares, reveals what the configuration says, and writes checkpoints.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encml.config.training import TrainingConfig
from encml.errors import DataError, PrivacyError
from encml.experiment.files import write_file
from encml.experiment.folder import MODEL
from encml.experiment.metrics import Privacy, operation_costs
from encml.experiment.training.checkpoints import Checkpoints
from encml.experiment.training.events import Accuracy, Done, Listener, Phase, Step
from encml.experiment.training.owners import Part, Rows, check_part, count_right, public_digest, share_rows
from encml.models import NETWORKS
from encml.mpc.session import Session
from encml.net.ledger import Cost
from encml.privacy.accounting import PrivacyStatement
from encml.privacy.encrypted import PrivateTraining
from encml.serving import save_trained_shares
from encml.tensor import SharedTensor, share

_TESTED = 1000
"""So many test rows go through the model together."""
PLAIN = "model.pt"
"""The revealed weights, where they are revealed."""


def initial_model(config: TrainingConfig) -> nn.Sequential:
    """The network with the weights that the experiment's seed gives, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return NETWORKS[config.model.kind]()


def steps_of(config: TrainingConfig, rows: int) -> tuple[int, int]:
    """Steps in an epoch, and in all. Raises DataError for fewer rows than a batch has."""
    epoch = rows // config.training.batch_size
    if not epoch:
        raise DataError(f"training.batch_size: {config.training.batch_size} is more than the {rows} rows there are")
    whole = epoch * config.training.epochs
    return epoch, whole if config.training.steps is None else min(whole, config.training.steps)


def batches(config: TrainingConfig, rows: int) -> Iterator[Tensor]:
    """The rows of every step, int64 (batch,): public, by the experiment's seed, each row once an epoch at most."""
    epoch, steps = steps_of(config, rows)
    generator = torch.Generator().manual_seed(config.seed)
    for step in range(steps):
        if step % epoch == 0:
            order = torch.randperm(rows, generator=generator)
        start = step % epoch * config.training.batch_size
        yield order[start : start + config.training.batch_size]


@dataclass(slots=True)
class _History:
    """What has been revealed so far, and what it cost, earlier processes of the same run included."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    accuracy: list[Accuracy] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)

    def dumps(self) -> str:
        return json.dumps(
            {
                "losses": self.losses,
                "accuracy": [record.model_dump() for record in self.accuracy],
                "resumed": self.resumed,
                "costs": {
                    kind: {name: asdict(cost) for name, cost in costs.items()} for kind, costs in self.costs.items()
                },
            }
        )

    @classmethod
    def loads(cls, text: str) -> _History:
        state = json.loads(text)
        costs = {
            kind: {name: Cost(**{**values, "sent": tuple(values["sent"])}) for name, values in found.items()}
            for kind, found in state["costs"].items()
        }
        losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        return cls(losses, [Accuracy(**record) for record in state["accuracy"]], list(state["resumed"]), costs)

    def book(self, kind: str, before: Mapping[str, Cost], now: Mapping[str, Cost]) -> None:
        """Add what the ledger counted since ``before``."""
        costs = self.costs.setdefault(kind, {})
        for name, cost in now.items():
            spent = cost - before.get(name, Cost())
            if spent.rounds or spent.calls:
                costs[name] = costs.get(name, Cost()) + spent


class TrainingJob:
    """One training, at the parties of ``session``; ``run`` it once.

    parts: what the owners who live in this process have, by rank. about, fresh: see ``Checkpoints``. folder: of this
    process alone; its shares lie there.
    """

    def __init__(
        self,
        config: TrainingConfig,
        session: Session,
        parts: Mapping[int, Part],
        folder: Path,
        tell: Listener,
        about: str,
        *,
        fresh: bool = False,
    ) -> None:
        self._config, self._session, self._parts = config, session, parts
        self._folder, self._tell, self._about, self._fresh = folder, tell, about, fresh
        self._history = _History()
        self._booked: dict[str, Cost] = {}

    def run(self) -> None:
        """Share, train, test and save, telling what happens. Raises EncmlError."""
        config, session = self._config, self._session
        self._tell(Phase(text="sharing the data"))
        for rank, part in self._parts.items():
            check_part(config.data, rank, part, tested=config.reveal.accuracy != "never")
        about = f"{self._about} {public_digest(config.data, self._parts)}"
        checkpoints = Checkpoints(self._folder, session, self._parts, about, fresh=self._fresh)
        checkpoints.begin("share")
        train = share_rows(config.data, "train", self._parts, session)
        test = None
        if config.reveal.accuracy != "never":
            test = share_rows(config.data, "test", self._parts, session)
        model = share(initial_model(config), session=session)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config.training.learning_rate, momentum=config.training.momentum
        )
        private = self._private(model, optimizer, len(train), checkpoints.noise_keys)
        self._book("sharing")
        first = checkpoints.latest()
        if first:
            checkpoints.begin(f"load {first}")
            state = checkpoints.load(first)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if private is not None:
                private.load_state_dict(json.loads(state["privacy"]))
            self._history = _History.loads(state["history"])
            self._history.resumed.append(first)
            self._booked = session.ledger.costs.copy()
        checkpoints.begin(f"train {first}")
        epoch, steps = steps_of(config, len(train))
        self._tell(Phase(text=f"training on secrets: {steps} steps of {config.training.batch_size}"))
        public, begun = list(batches(config, len(train))), time.perf_counter()
        for step in range(first + 1, steps + 1):
            loss: Tensor | None = None
            # The loop, as without secrets. A Poisson sample may be empty: its step, noise alone, is then taken already.
            for chosen in [public[step - 1]] if private is None else private.batches(1):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(train.images[chosen]), train.labels[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            revealed = self._loss(step, loss)
            self._tell(Step(step=step, steps=steps, seconds=time.perf_counter() - begun, since=first, loss=revealed))
            self._book("training")
            ends = step == steps or step % epoch == 0
            if test is not None and config.reveal.accuracy_after(step, steps, epoch):
                self._test(model, test, step)
            if ends or step % config.checkpoint_every == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                if private is not None:
                    state["privacy"] = json.dumps(private.state_dict())
                checkpoints.save(step, {**state, "history": self._history.dumps()})
                checkpoints.begin(f"train {step}")
        if private is not None:
            private.remove()
        self._finish(model, train, _privacy(private))

    def _private(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: int, noise_keys: list[bytes]
    ) -> PrivateTraining | None:
        """What makes the steps private, if the configuration asks for it."""
        privacy, training = self._config.privacy, self._config.training
        if privacy is None:
            return None
        if privacy.delta >= 1 / rows:
            raise PrivacyError(
                f"privacy.delta: {privacy.delta} is no protection for {rows} images: it allows one image to be "
                f"published outright; choose it below 1 / {rows} = {1 / rows:.3g}"
            )
        return PrivateTraining(
            model,
            optimizer,
            examples=rows,
            batch_size=training.batch_size,
            max_grad_norm=privacy.max_grad_norm,
            delta=privacy.delta,
            noise_multiplier=privacy.noise_multiplier,
            target_epsilon=privacy.target_epsilon,
            steps=None if privacy.target_epsilon is None else steps_of(self._config, rows)[1],
            mechanism=privacy.accountant,
            noise_keys=noise_keys,
        )

    def _finish(self, model: nn.Module, train: Rows, privacy: Privacy) -> None:
        """Save what serves the trained model, reveal it if that is configured, and tell what all of it cost."""
        self._tell(Phase(text="saving the trained model's shares"))
        with torch.no_grad():
            save_trained_shares(model, torch.zeros(1, *train.images.shape[1:]), self._folder / MODEL)
        if self._config.reveal.model:
            weights = {name: secret.reveal() for name, secret in model.state_dict().items()}
            buffer = io.BytesIO()
            torch.save(weights, buffer)
            write_file(self._folder / PLAIN, buffer.getvalue(), private=True)
        costs = self._history.costs
        self._tell(
            Done(
                losses=tuple(self._history.losses),
                accuracy=tuple(self._history.accuracy),
                resumed=tuple(self._history.resumed),
                sharing=operation_costs(costs.get("sharing", {})),
                training=operation_costs(costs.get("training", {})),
                testing=operation_costs(costs.get("testing", {})),
                privacy=privacy,
            )
        )

    def _loss(self, step: int, loss: Tensor | None) -> float | None:
        every = self._config.reveal.loss_every
        if every is None or step % every or loss is None:
            return None
        assert isinstance(loss, SharedTensor)
        opened = loss.detach()
        assert isinstance(opened, SharedTensor)
        value = float(opened.reveal())
        self._history.losses.append((step, value))
        return value

    def _test(self, model: nn.Module, test: Rows, step: int) -> None:
        """How many test rows the model gets right; only that number is opened."""
        right: Tensor | None = None
        with torch.no_grad():
            for images, classes in zip(
                torch.split(test.images, _TESTED), torch.split(test.classes, _TESTED), strict=True
            ):
                found = count_right(model(images), classes)
                right = found if right is None else right + found
        assert isinstance(right, SharedTensor)
        record = Accuracy(step=step, right=int(right.reveal()), tests=len(test))
        self._history.accuracy.append(record)
        self._book("testing")
        self._tell(record)

    def _book(self, kind: str) -> None:
        costs = self._session.ledger.costs
        self._history.book(kind, self._booked, costs)
        self._booked = costs.copy()


def _privacy(private: PrivateTraining | None) -> Privacy:
    """What bounds the information in the model, once it is revealed."""
    if private is None:
        sentence = str(PrivacyStatement("none"))
        return Privacy(unit="none", epsilon=None, delta=None, noise_multiplier=None, sentence=sentence)
    return Privacy(
        unit="example",
        epsilon=private.epsilon(),
        delta=private.accountant.delta,
        noise_multiplier=private.noise_multiplier,
        sentence=private.statement(),
    )
