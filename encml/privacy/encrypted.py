"""DP-SGD on encrypted data: model and data are secret, an ordinary loop trains, and the model may be revealed.

    model = encml.share(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    private = PrivateTraining(model, optimizer, examples=len(x), batch_size=64, max_grad_norm=1.0, delta=1e-5,
                              noise_multiplier=1.1)
    for chosen in private.batches(steps):                         # public indices: Poisson samples
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()                                          # p.grad: clipped per example, summed, noisy, averaged
    print(private.statement())

What the parties do in ``step()``: encml.privacy.per_example for clipping, encml.privacy.distributed for the noise,
which no party knows. Nothing is revealed. Like encml.privacy.accounting this is imported by its own name, for it loads
Opacus.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from encml.errors import PrivacyError
from encml.mpc.session import Session
from encml.mpc.truncation import MAX_SHIFT, truncate_rows
from encml.privacy.accounting import Accountant, noise_multiplier_for
from encml.privacy.capture import Capture, Pass
from encml.privacy.checks import Mechanism, check_noise_multiplier
from encml.privacy.discrete import RandomSource, discrete_gaussian
from encml.privacy.distributed import party_variance
from encml.privacy.grid import Grid
from encml.privacy.layers import layers_of
from encml.privacy.per_example import Captured, clipped_sums
from encml.privacy.text import delta_text, epsilon_text
from encml.ring.prg import KEY_BYTES
from encml.tensor.handlers.arithmetic import scale
from encml.tensor.handlers.common import as_secret
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor

LossReduction = Literal["mean", "sum"]

_NAME = "private step"


class PrivateTraining:
    """Makes ``optimizer.step()`` private: see the module's text.

    model: with secret parameters. Those that are trained must be of nn.Linear and nn.Conv2d; others are frozen.
    optimizer: stock SGD (momentum, weight decay) or encml.optim's; it gets noisy gradients and nothing else.
    examples, batch_size: how many there are, and how many a batch has on average; their ratio is the sampling rate. The
        noisy sum is divided by ``batch_size``, whatever the size of a batch, which is public.
    max_grad_norm: C, the L2 norm to which each example's gradient, over all layers, is clipped.
    noise_multiplier: standard deviation of the noise on the sum, in units of C, as one corrupt party faces it (everyone
        else faces sqrt(1.5) times that); or instead target_epsilon and steps, which it is calculated from.
    delta, mechanism: see ``Accountant``.
    loss_reduction: whether the loss is the mean over the batch's examples or their sum. Either way, an example's
        gradient is that of its own loss.
    noise_keys: 16 bytes for each party in this process, secret to it, from which its noise of every step is derived, so
        that a step repeated after a resumption has the same noise. Without them noise comes from the operating system.

    A step adds some 26 rounds to ordinary training's, 28 in ``step()`` (30 where the last errors are not settled yet).
    Bytes: see ``clipped_sums``, and 10.75 B a parameter and party before the optimizer's own update.
    ``noise_keys`` are for one run: used again with other data, they would take the protection away. Raises PrivacyError
    for layers, parameters and sizes that it cannot make private.

    What the loop must do: one forward pass of the whole model a step, the batch in the first dimension and each example
    in it once; a loss in which no example's term depends on another's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        examples: int,
        batch_size: int,
        max_grad_norm: float,
        delta: float,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        steps: int | None = None,
        mechanism: Mechanism = "rdp",
        loss_reduction: LossReduction = "mean",
        noise_keys: Sequence[bytes] | None = None,
    ) -> None:
        if not 0 < batch_size <= examples:
            raise PrivacyError(f"batches of {batch_size} of {examples} examples: 1 to {examples} are possible")
        if not 0 < max_grad_norm < math.inf:
            raise PrivacyError(f"max_grad_norm {max_grad_norm!r}: a positive, finite number is needed")
        if loss_reduction not in get_args(LossReduction):
            raise PrivacyError(f"loss_reduction {loss_reduction!r}: 'mean' or 'sum' is needed")
        self.sample_rate = batch_size / examples
        self.noise_multiplier = _noise(noise_multiplier, target_epsilon, steps, delta, self.sample_rate, mechanism)
        self.max_grad_norm, self.batch_size, self.examples = float(max_grad_norm), batch_size, examples
        self.accountant = Accountant(mechanism, delta)
        layers = layers_of(model)
        self._layers = [layer for _, layer in layers]
        self._parameters = [p for layer in self._layers for p in layer.parameters]
        self._session = _session(self._parameters)
        self._check_optimizer(optimizer)
        if noise_keys is not None and [len(key) for key in noise_keys] != [KEY_BYTES] * self._session.parties.here:
            raise PrivacyError(
                f"noise_keys: {KEY_BYTES} bytes for each of the {self._session.parties.here} parties in this process"
            )
        self._noise_keys = None if noise_keys is None else tuple(noise_keys)
        # A Poisson sample that is larger has a probability below 2^-40.
        self._largest = min(examples, 4 * batch_size + 64)
        self._grid = Grid.of(self._session.fraction_bits, self.max_grad_norm, self.noise_multiplier, self._largest)
        self._size = sum(p.numel() for p in self._parameters)
        if self.noise_multiplier:
            self._variance = party_variance(
                self.noise_multiplier, self._grid.sensitivity, self._size, self.accountant.mechanism
            )
        self._given: dict[Tensor, Tensor] = {}
        self._empty = False
        self._optimizer = optimizer
        self._capture = Capture(model, layers, scaled=loss_reduction == "mean")
        self._step_hook = optimizer.register_step_pre_hook(self._before_step)

    def __repr__(self) -> str:
        return (
            f"PrivateTraining(max_grad_norm={self.max_grad_norm:g}, noise_multiplier={self.noise_multiplier:g}, "
            f"sample_rate={self.sample_rate:g}, steps={self.steps})"
        )

    # What was spent ----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """How many steps have been taken."""
        return self.accountant.steps

    def epsilon(self) -> float:
        """ε at the given δ if every step's result were released, towards those who do not know who was sampled."""
        return self.accountant.epsilon()

    def epsilon_of_known_samples(self, taken_part: int | None = None) -> float:
        """ε towards those who know in which steps an example was sampled, if those are ``taken_part``.

        By default the expected number of steps. The computing parties know, though they see the final result alone.
        """
        count = math.ceil(self.sample_rate * self.steps) if taken_part is None else taken_part
        known = Accountant(self.accountant.mechanism, self.accountant.delta)
        known.step(self.noise_multiplier, 1.0, count)
        return known.epsilon()

    def statement(self) -> str:
        """What may be said of the model when it is revealed, in sentences."""
        if not self.noise_multiplier:
            return (
                "No differential privacy: gradients were clipped, but no noise was added; the model may tell anything "
                "about single examples once it is revealed."
            )
        budget = f"(ε = {epsilon_text(self.epsilon())}, δ = {delta_text(self.accountant.delta)})"
        sentences = [
            "Adding or removing one training example changes the distribution of the model, also if it is revealed "
            f"after every step, by at most {budget}.",
            "The noise counted is that of two of the three parties, so that it holds towards each single one of them: "
            f"{self.steps} steps of noise multiplier {self.noise_multiplier:g} and norm {self.max_grad_norm:g}.",
        ]
        if self.sample_rate < 1:
            count = math.ceil(self.sample_rate * self.steps)
            sentences.append(
                "It counts on every batch being a Poisson sample, and on those who see the model not knowing who was "
                "sampled. The computing parties do know: for them, and for whoever they tell, it is "
                f"ε = {epsilon_text(self.epsilon_of_known_samples(count))} for an example in {count} batches, which is "
                "the expected number."
            )
        sentences.append(
            "What else is revealed of training (losses, accuracies on the training data) is not covered, nor what "
            "examples have in common."
        )
        return " ".join(sentences)

    # The loop ----------------------------------------------------------------------------------------------------

    def sample(self) -> Tensor:
        """The indices of a Poisson sample: every example with probability ``sample_rate``, ascending; int64, public.

        The same at all parties, who alone can foresee it. No communication, but for 1 round the first time.
        """
        stream = self._session.coins.choice(secrets.randbits(62), "Poisson sample")
        words = stream.words((self.examples,)).numpy().view(np.uint64)
        last = self.batch_size * 2**64 // self.examples - 1
        return torch.from_numpy(np.flatnonzero(words <= np.uint64(last)))

    def batches(self, steps: int) -> Iterator[Tensor]:
        """``steps`` Poisson samples, one for each step of the loop. An empty one is not handed out: its step, which is
        noise alone, is taken here."""
        for _ in range(steps):
            chosen = self.sample()
            if len(chosen):
                yield chosen
            else:
                self._optimizer.zero_grad()
                self._empty = True
                self._optimizer.step()

    def remove(self) -> None:
        """Take all hooks off: the model trains as before, without privacy."""
        self._capture.remove()
        self._step_hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """What was spent so far; plain numbers, fit for JSON, nothing secret."""
        return {"settings": self._settings(), "accountant": self.accountant.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved ``state_dict``. Raises PrivacyError if it was saved under other settings."""
        if set(state) != {"settings", "accountant"} or state["settings"] != self._settings():
            raise PrivacyError(
                f"private training with {state.get('settings')} cannot be resumed with {self._settings()}: keep the "
                "settings, or start a new run"
            )
        self.accountant.load_state_dict(state["accountant"])
        self._capture.forget()

    def _settings(self) -> dict[str, Any]:
        return {
            "max_grad_norm": self.max_grad_norm,
            "noise_multiplier": self.noise_multiplier,
            "batch_size": self.batch_size,
            "examples": self.examples,
        }

    # One step ----------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):
            raise PrivacyError("a step with a closure would use single examples more often than is accounted for")
        # What came to the optimizer after this was made, or was frozen then, has gradients that nobody clips.
        self._check_optimizer(optimizer)
        stray = [p for p in self._parameters if p.grad is not None and p.grad is not self._given.get(p)]
        if stray:
            self._capture.forget()
            raise PrivacyError(
                f"a gradient reached {len(stray)} parameters (the first of shape {tuple(stray[0].shape)}) other than "
                "through its layer, where nobody clips it; use weight decay in the optimizer rather than in the loss, "
                "parameters only in their layers, and zero_grad() before training is made private"
            )
        caught = None if self._empty else self._capture.take()
        self._empty = False
        session = self._session
        with torch.no_grad(), session.whole(), session.ledger.operation(_NAME):
            rows = self._rows(caught)
            self.accountant.step(self.noise_multiplier, self.sample_rate)
            self._hand_out(rows)

    def _rows(self, caught: Pass | None) -> Tensor:
        """The noisy sum of clipped gradients as rows (P, d), unmasked, at ``grid.sum_bits``."""
        parties = self._session.parties
        if caught is None:
            rows = torch.zeros((parties.here, self._size), dtype=torch.int64)
        else:
            if caught.examples > self._largest:
                raise PrivacyError(
                    f"a batch of {caught.examples} examples, {self._largest} at most are possible where "
                    f"{self.batch_size} are expected: take batches from batches() or sample()"
                )
            key = self._session.coins.choice(secrets.randbits(62), _NAME).words((KEY_BYTES,), torch.uint8)
            sums = clipped_sums(parties, self._payloads(caught), self._grid, key.numpy().tobytes())
            rows = torch.cat([part.reshape(parties.here, -1) for part in sums], 1)
        if self.noise_multiplier:
            noise = [discrete_gaussian(self._variance, self._size, source) for source in self._sources()]
            rows += torch.from_numpy(np.stack(noise))
        return rows

    def _payloads(self, caught: Pass) -> list[Captured]:
        """What was caught as payloads at f fraction bits."""
        session, bits = self._session, self._session.fraction_bits
        pairs = [
            (as_secret(caught.activations[key], session), as_secret(caught.errors[key], session))
            for key in self._layers
        ]
        settle_all(*(value for pair in pairs for value in pair))
        return [
            Captured(key, a.at_bits(bits), e.at_bits(bits)) for key, (a, e) in zip(self._layers, pairs, strict=True)
        ]

    def _sources(self) -> list[RandomSource]:
        """Where each party here takes this step's noise from."""
        if self._noise_keys is None:
            return [RandomSource() for _ in range(self._session.parties.here)]
        label = f"encml noise of step {self.steps}".encode()
        return [RandomSource(hashlib.sha256(key + label).digest()[:KEY_BYTES]) for key in self._noise_keys]

    def _hand_out(self, rows: Tensor) -> None:
        """The mean as the gradient of every parameter. 3 rounds, 10.75 B a parameter and party."""
        session, bits = self._session, self._session.fraction_bits
        excess = self._grid.sum_bits - bits
        # Dividing by a power of two is moving the point.
        places = min(self.batch_size.bit_length() - 1, MAX_SHIFT - excess)
        payload = truncate_rows(session.parties, rows, excess + places, _NAME)
        left = 2**places / self.batch_size
        for p, part in zip(
            self._parameters, torch.split(payload, [p.numel() for p in self._parameters], 1), strict=True
        ):
            mean = Secret(session, bits, payload=part.reshape(len(part), *p.shape))
            p.grad = SharedTensor(mean if left == 1 else scale(mean, left), p.dtype)
            self._given[p] = p.grad

    def _check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        known = set(self._parameters)
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.requires_grad and p not in known:
                    raise PrivacyError(
                        f"the optimizer trains a parameter of shape {tuple(p.shape)} that is not the model's, or was "
                        "not trained when training was made private: its gradient would be neither clipped nor noisy"
                    )


def _noise(
    noise_multiplier: float | None,
    target_epsilon: float | None,
    steps: int | None,
    delta: float,
    sample_rate: float,
    mechanism: Mechanism,
) -> float:
    if (noise_multiplier is None) == (target_epsilon is None) or (target_epsilon is None) != (steps is None):
        raise PrivacyError("either noise_multiplier is needed, or target_epsilon and steps")
    if noise_multiplier is None:
        assert target_epsilon is not None
        assert steps is not None
        return noise_multiplier_for(target_epsilon, delta, sample_rate, steps, mechanism)
    check_noise_multiplier(noise_multiplier)
    return float(noise_multiplier)


def _session(parameters: Sequence[Tensor]) -> Session:
    sessions = []
    for p in parameters:
        if not isinstance(p, SharedTensor):
            raise PrivacyError(
                f"a parameter of shape {tuple(p.shape)} is not secret: share the model first; to train on data that "
                "one party sees, use Opacus"
            )
        if p.session not in sessions:
            sessions.append(p.session)
    if len(sessions) != 1:
        raise PrivacyError(f"the model's parameters belong to {len(sessions)} sessions: share it in one")
    session: Session = sessions[0]
    return session
