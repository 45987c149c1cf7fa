"""Private steps against float64: the mean of clipped gradients, noise of the declared size from all parties, ε."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from opacus.accountants import RDPAccountant
from party_threads import run_apart
from reference import ULP, grid
from scipy import stats
from torch import Tensor, nn

import encml
from encml import Session
from encml.errors import PrivacyError
from encml.models import network_a
from encml.mpc.parties import Parties
from encml.privacy.accounting import Accountant, noise_multiplier_for
from encml.privacy.discrete import discrete_gaussian
from encml.privacy.encrypted import PrivateTraining
from encml.tensor.shared import SharedTensor, secret

KEYS = [bytes([i]) * 16 for i in (1, 2, 3)]
N = 12

Network = tuple[Callable[[], nn.Module], tuple[int, ...]]
NETWORKS: dict[str, Network] = {
    "linear alone": (lambda: nn.Linear(8, 5), (8,)),
    "perceptron": (lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5, bias=False)), (8,)),
    "sequences": (
        lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Flatten(), nn.Linear(12, 5)),
        (3, 8),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.AvgPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 8, 3, groups=2),
            nn.ReLU(),
            nn.Conv2d(8, 12, 2, padding=1, stride=2),
            nn.Flatten(),
            nn.Linear(48, 5),
        ),
        (2, 8, 8),
    ),
}


def network(name: str, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network on the grid of fixed point, inputs, and classes."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().double()
    for p in module.parameters():
        p.data = (p.data / ULP).round() * ULP
    return module, grid(N, *shape, seed=seed), torch.arange(N) % 5


def private(model: nn.Module, rate: float = 0.5, **options: Any) -> tuple[PrivateTraining, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, **options.pop("sgd", {}))
    settings = {"examples": 100, "batch_size": 8, "max_grad_norm": 1.0, "delta": 1e-5, "noise_multiplier": 0.0}
    if "target_epsilon" in options:
        del settings["noise_multiplier"]
    return PrivateTraining(model, optimizer, **{**settings, **options}), optimizer


def empty_steps(training: PrivateTraining, count: int = 1) -> None:
    """Steps of empty samples: noise alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "sample", lambda: torch.zeros(0, dtype=torch.int64))
        assert list(training.batches(count)) == []


def clipped_mean(model: nn.Module, x: Tensor, y: Tensor, clip: float, batch: int) -> tuple[list[Tensor], Tensor]:
    """In float64, example by example; also all norms."""
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, one[None]), target[None])

    plain = {name: p.detach() for name, p in parameters.items()}
    singles = [torch.func.grad(loss)(plain, one, target) for one, target in zip(x, y, strict=True)]
    norms = torch.stack([torch.cat([g.flatten() for g in single.values()]).norm() for single in singles])
    factors = (clip / norms).clamp(max=1)
    return [
        torch.stack([c * single[name] for c, single in zip(factors, singles, strict=True)]).sum(0) / batch
        for name in parameters
    ], norms


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 5).double()


# Gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("clip", [0.5, 1.25, 50.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_mean_of_clipped_ones(name: str, clip: float, reduction: str) -> None:
    """Within a unit (the last rounding), what errors are off by (2 units an entry) and 1 % that clipping may take."""
    model, x, y = network(name)
    shared = encml.share(model)
    training, optimizer = private(shared, max_grad_norm=clip, loss_reduction=reduction)
    expected, norms = clipped_mean(model, x, y, clip, 8)
    before = [p.reveal() for p in shared.parameters()]
    F.cross_entropy(shared(encml.share(x)), encml.share(one_hot(y)), reduction=reduction).backward()
    assert all(p.grad is None for p in shared.parameters())
    optimizer.step()
    length = torch.cat([g.flatten() for g in expected]).norm()
    found = [p.grad.reveal() for p in shared.parameters()]
    difference = torch.cat([(f - e).flatten() for f, e in zip(found, expected, strict=True)])
    assert difference.norm() <= 0.01 * length + ULP * math.sqrt(difference.numel())
    assert difference.abs().max() <= 0.01 * length + 4 * ULP
    for old, new, gradient in zip(before, shared.parameters(), found, strict=True):
        assert (old - 0.5 * gradient - new.reveal()).abs().max() <= 1.01 * ULP
    assert training.steps == 1
    if clip < 50:
        assert norms.max() > clip, "nothing to clip: the test shows nothing"


@pytest.mark.usefixtures("session")
def test_public_inputs_frozen_layers_and_batches_that_are_no_power_of_two() -> None:
    model, x, y = network("perceptron")
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    shared = encml.share(model)
    _, optimizer = private(shared, batch_size=7)
    F.cross_entropy(shared(x), y).backward()
    optimizer.step()
    expected, _ = clipped_mean(model, x, y, 1.0, 7)
    assert shared[0].weight.grad is None
    # The frozen layer's part of the norm is not the others' to be clipped for.
    last = nn.Sequential(model[2])
    expected, _ = clipped_mean(last, model[1](model[0](x)).detach(), y, 1.0, 7)
    assert (shared[2].weight.grad.reveal() - expected[0]).abs().max() <= 4 * ULP


@pytest.mark.usefixtures("session")
def test_several_steps_with_momentum_and_weight_decay() -> None:
    model, x, y = network("perceptron")
    shared = encml.share(model)
    options = {"momentum": 0.5, "weight_decay": 0.125}
    training, optimizer = private(shared, sgd=options)
    plain = torch.optim.SGD(model.parameters(), lr=0.5, **options)
    inputs, targets = encml.share(x), encml.share(one_hot(y))
    for step in range(4):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        F.cross_entropy(shared(inputs), targets).backward()
        optimizer.step()
        for p, gradient in zip(model.parameters(), clipped_mean(model, x, y, 1.0, 8)[0], strict=True):
            p.grad = gradient
        plain.step()
    assert training.steps == 4
    for p, q in zip(model.parameters(), shared.parameters(), strict=True):
        assert (p - q.reveal()).abs().max() <= 2.0**-9


@pytest.mark.usefixtures("session")
def test_evaluation_between_steps_and_after_is_not_caught() -> None:
    model, x, y = network("perceptron")
    shared = encml.share(model)
    training, optimizer = private(shared)
    with torch.no_grad():
        shared(encml.share(x))
    F.cross_entropy(shared(x), y)  # forwards alone counts for nothing
    F.cross_entropy(shared(x), y).backward()
    optimizer.step()
    training.remove()
    optimizer.zero_grad()
    F.cross_entropy(shared(x), y).backward()
    assert all(isinstance(p.grad, SharedTensor) for p in shared.parameters())


# Noise -------------------------------------------------------------------------------------------------------------


def noise_of_a_step(keys: list[bytes] | None, noise: float = 2.0, size: int = 4000, seed: int = 1) -> Tensor:
    """The noisy sum of no gradient at all, in units of C: (size,)."""
    with Session(seed=seed):
        shared = encml.share(nn.Linear(size, 1, bias=False))
        training, _ = private(shared, noise_multiplier=noise, batch_size=1, noise_keys=keys)
        empty_steps(training)
        assert training.steps == 1
        found: Tensor = shared.weight.grad.reveal().double().flatten()
        return found


def own_noise(key: bytes, size: int = 4000, noise: float = 2.0) -> Tensor:
    """What a party with this key has added, in units of C."""
    with Session(seed=1):
        shared = encml.share(nn.Linear(size, 1, bias=False))
        training, _ = private(shared, noise_multiplier=noise, batch_size=1, noise_keys=[key] * 3)
        (source, *_) = training._sources()
        drawn = discrete_gaussian(training._variance, size, source)
    return torch.from_numpy(drawn).double() / 2.0**training._grid.sum_bits


def is_gaussian(sample: Tensor, deviation: float) -> bool:
    """Kolmogorov and Smirnov: a wrong size by 5 % has a p-value of 1e-3 at 4,000, another one far less."""
    return stats.kstest(sample.numpy() / deviation, "norm").pvalue > 1e-3


def test_noise_has_the_declared_size_and_two_parties_make_up_the_budget() -> None:
    """Everyone faces sqrt(1.5) sigma C; who knows one party's part still faces sigma C."""
    total = noise_of_a_step(KEYS)
    assert is_gaussian(total, math.sqrt(1.5) * 2.0)
    assert not is_gaussian(total, 2.0)
    for key in KEYS:
        rest = total - own_noise(key)
        assert is_gaussian(rest, 2.0)
        assert abs(float(torch.corrcoef(torch.stack([rest, own_noise(key)]))[0, 1])) < 0.06


def test_noise_that_parties_share_would_be_noticed() -> None:
    total = noise_of_a_step([KEYS[0], KEYS[0], KEYS[1]])
    assert not is_gaussian(total, math.sqrt(1.5) * 2.0)
    assert not is_gaussian(total - 2 * own_noise(KEYS[0]), 2.0)


def test_noise_repeats_with_keys_and_only_with_them() -> None:
    repeated = [noise_of_a_step(KEYS, size=50, seed=seed) for seed in (1, 2)]
    assert (repeated[0] - repeated[1]).abs().max() <= 1.01 * ULP
    fresh = [noise_of_a_step(None, size=50) for _ in range(2)]
    assert (fresh[0] - fresh[1]).abs().min() > 4 * ULP


def test_every_step_has_noise_of_its_own() -> None:
    with Session(seed=1):
        shared = encml.share(nn.Linear(50, 1, bias=False))
        training, _ = private(shared, noise_multiplier=1.0, batch_size=1, noise_keys=KEYS)
        found = []
        for _ in range(2):
            empty_steps(training)
            found.append(shared.weight.grad.reveal())
    assert (found[0] - found[1]).abs().min() > 4 * ULP


# Parties apart -----------------------------------------------------------------------------------------------------


def test_three_parties_apart_take_the_same_steps_as_one_process() -> None:
    """Bit for bit, noise from each party's own key included; batches are drawn alike."""

    def train(keys: list[bytes]) -> tuple[list[Tensor], list[int], dict[str, Any]]:
        model, x, y = network("convolutions")
        shared = encml.share(model)
        training, optimizer = private(shared, noise_multiplier=1.0, batch_size=6, examples=N, noise_keys=keys)
        sampled = []
        for chosen in training.batches(2):
            sampled += chosen.tolist()
            optimizer.zero_grad()
            F.cross_entropy(shared(encml.share(x[chosen])), encml.share(one_hot(y[chosen]))).backward()
            optimizer.step()
        return [secret(p).settle().terms.clone() for p in shared.parameters()], sampled, training.state_dict()

    def apart(parties: Parties) -> tuple[list[Tensor], list[int], dict[str, Any]]:
        with Session(parties.net, seed=77):
            return train([KEYS[parties.local[0]]])

    with Session(seed=77):
        terms, sampled, state = train(KEYS)
    results, _ = run_apart(apart, 77)
    for rank, (found, chosen, other) in enumerate(results):
        assert (chosen, other) == (sampled, state)
        for mine, whole in zip(found, terms, strict=True):
            assert torch.equal(mine, whole[[rank, (rank + 1) % 3]])


# Costs -------------------------------------------------------------------------------------------------------------


def test_what_privacy_adds_to_a_step_of_network_a(session: Session) -> None:
    """28 rounds, after 2 that settle the last errors; bytes as declared, 2.3 MB a party at batch 128."""
    shared = encml.share(network_a())
    n, size = 128, sum(p.numel() for p in shared.parameters())
    _, optimizer = private(shared, examples=60_000, batch_size=n, noise_multiplier=1.0)
    x, y = encml.share(torch.rand(n, 784)), torch.arange(n) % 10
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(shared(x), y).backward()
        with session.ledger.measure() as spent:
            optimizer.step()
    check, limits, scaled = 4_430 + 150, 31 * 48, 8 * (128 + 128 + 10)
    assert spent[0].rounds == 30
    assert spent[0].bytes / 3 == pytest.approx(n * (check + limits + scaled) + 10.75 * size, rel=0.01)


# Accounting --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("session")
def test_epsilon_is_the_accountants() -> None:
    model, x, y = network("perceptron")
    shared = encml.share(model)
    training, optimizer = private(shared, noise_multiplier=1.5)
    assert training.epsilon() == 0
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(shared(x), y).backward()
        optimizer.step()
    opacus = RDPAccountant()
    opacus.history = [(1.5, 0.08, 3)]
    assert training.epsilon() == pytest.approx(opacus.get_epsilon(1e-5))
    known = Accountant("rdp", 1e-5)
    known.step(1.5, 1.0, 2)
    assert training.epsilon_of_known_samples(2) == known.epsilon()
    assert training.epsilon_of_known_samples() < training.epsilon_of_known_samples(2)
    text = training.statement()
    for part in ("one training example", "ε = ", "δ = 1e-5", "3 steps of noise multiplier 1.5", "Poisson sample"):
        assert part in text


@pytest.mark.usefixtures("session")
def test_a_target_epsilon_gives_the_noise() -> None:
    shared = encml.share(nn.Linear(3, 2))
    training, _ = private(shared, target_epsilon=2.0, steps=100)
    assert training.noise_multiplier == noise_multiplier_for(2.0, 1e-5, 0.08, 100)


@pytest.mark.usefixtures("session")
def test_training_without_noise_does_not_claim_privacy() -> None:
    training, _ = private(encml.share(nn.Linear(3, 2)))
    assert training.statement().startswith("No differential privacy")
    assert math.isinf(training.epsilon_of_known_samples(1))


@pytest.mark.usefixtures("session")
def test_resuming_goes_on_counting_and_keeps_the_settings() -> None:
    shared = encml.share(nn.Linear(3, 2))
    training, _ = private(shared, noise_multiplier=1.0)
    empty_steps(training, 2)
    state = json.loads(json.dumps(training.state_dict()))
    training.remove()
    again, _ = private(shared, noise_multiplier=1.0)
    again.load_state_dict(state)
    assert (again.steps, again.epsilon()) == (2, training.epsilon())
    again.remove()
    other, _ = private(shared, noise_multiplier=2.0)
    with pytest.raises(PrivacyError, match="cannot be resumed"):
        other.load_state_dict(state)


@pytest.mark.usefixtures("session")
def test_samples_are_poisson() -> None:
    training, _ = private(encml.share(nn.Linear(3, 2)), examples=1000, batch_size=300)
    drawn = torch.zeros(60, 1000)
    for row in drawn:
        row[training.sample()] = 1
    # Sizes vary as binomial ones do, and so do each example's appearances.
    for counts, size in ((drawn.sum(1), 1000), (drawn.sum(0), 60)):
        statistic = float(((counts - 0.3 * size) ** 2 / (0.21 * size)).sum())
        assert 1e-4 < stats.chi2.sf(statistic, len(counts)) < 1 - 1e-4
    everyone, _ = private(encml.share(nn.Linear(3, 2)), examples=9, batch_size=9)
    assert everyone.sample().tolist() == list(range(9))


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), r"1 \(LayerNorm\) has trained parameters \(weight, bias\)"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "1: BatchNorm1d mixes the examples"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")), "0: a convolution with padding"),
        (nn.Sequential(nn.Conv1d(1, 2, 3)), r"0 \(Conv1d\) has trained parameters"),
        (nn.Sequential(nn.ReLU()), "nothing to make private"),
    ],
)
def test_models_that_cannot_be_made_private_are_refused_by_name(model: nn.Module, found: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    with pytest.raises(PrivacyError, match=found):
        PrivateTraining(
            encml.share(model), optimizer, examples=9, batch_size=3, max_grad_norm=1, delta=0.1, noise_multiplier=1
        )


@pytest.mark.usefixtures("session")
def test_shared_weights_half_frozen_layers_and_strangers_are_refused() -> None:
    tied = encml.share(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    tied[1].weight = tied[0].weight
    with pytest.raises(PrivacyError, match="share weight"):
        private(tied)
    half = encml.share(nn.Linear(3, 3))
    half.weight.requires_grad_(False)
    with pytest.raises(PrivacyError, match="its weight is not"):
        private(half)
    with pytest.raises(PrivacyError, match="is not secret"):
        private(nn.Linear(3, 3))
    model = encml.share(nn.Linear(3, 3))
    other = torch.optim.SGD([*model.parameters(), nn.Parameter(encml.share(torch.zeros(2)))], lr=1)
    with pytest.raises(PrivacyError, match="not the model's"):
        PrivateTraining(model, other, examples=9, batch_size=3, max_grad_norm=1, delta=0.1, noise_multiplier=1)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("how", ["added", "thawed"])
def test_what_is_trained_only_later_is_refused(how: str) -> None:
    model = encml.share(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    if how == "thawed":
        model[1].requires_grad_(False)
    training, optimizer = private(model)
    if how == "added":
        model.append(encml.share(nn.Linear(2, 2)))
        optimizer.add_param_group({"params": model[2].parameters()})
    model.requires_grad_(True)
    before = [p.detach().reveal() for p in model.parameters()]
    model(encml.share(torch.ones(4, 3))).sum().backward()
    with pytest.raises(PrivacyError, match="neither clipped nor noisy"):
        optimizer.step()
    assert training.steps == 0
    assert all(torch.equal(p.detach().reveal(), old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"batch_size": 101},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": math.inf},
        {"loss_reduction": "none"},
        {"noise_multiplier": -1.0},
        {"delta": 2.0},
        {"noise_keys": [bytes(16)]},
        {"noise_keys": [bytes(8)] * 3},
        {"target_epsilon": 1.0},
        {"steps": 3},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        private(encml.share(nn.Linear(3, 2)), **settings)


@pytest.mark.usefixtures("session")
def test_loops_that_would_break_the_bound_are_refused() -> None:
    model, x, y = network("perceptron")
    shared = encml.share(model)
    _, optimizer = private(shared)

    def loss(inputs: Tensor = x) -> Any:
        return F.cross_entropy(shared(inputs), y)

    with pytest.raises(PrivacyError, match="0 passes of the model"):
        optimizer.step()
    loss().backward()
    loss().backward()
    with pytest.raises(PrivacyError, match="2 passes of the model"):
        optimizer.step()
    once = loss()
    once.backward(retain_graph=True)
    with pytest.raises(PrivacyError, match="second backward"):
        once.backward()
    optimizer.step()
    optimizer.zero_grad()
    (loss() + shared[0].weight.square().sum()).backward()
    with pytest.raises(PrivacyError, match="a gradient reached 1 parameters"):
        optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(PrivacyError, match="0 was called outside"):
        shared[0](encml.share(x))
    with pytest.raises(PrivacyError, match="closure"):
        optimizer.step(lambda: 0.0)
    with pytest.raises(PrivacyError, match="expected a batch"):
        shared(encml.share(x[0]))
    loss().backward()
    optimizer.step()


class Twice(nn.Module):
    """Uses a layer twice, or not at all."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.layer, self.last, self.uses = nn.Linear(8, 8), nn.Linear(8, 5), uses

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.uses):
            x = self.layer(x)
        result: Tensor = self.last(x)
        return result


@pytest.mark.usefixtures("session")
def test_layers_used_twice_or_never_are_refused() -> None:
    _, x, y = network("perceptron")
    twice, never = encml.share(Twice(2)), encml.share(Twice(0))
    private(twice)
    with pytest.raises(PrivacyError, match="layer was used twice"):
        twice(x)
    assert twice.layer.weight.requires_grad
    _, optimizer = private(never)
    F.cross_entropy(never(x), y).backward()
    with pytest.raises(PrivacyError, match="no gradient came back to layer"):
        optimizer.step()


@pytest.mark.usefixtures("session")
def test_batches_far_larger_than_expected_are_refused() -> None:
    shared = encml.share(nn.Linear(3, 2))
    _, optimizer = private(shared, batch_size=1, examples=1000)
    F.cross_entropy(shared(torch.zeros(69, 3)), torch.zeros(69).long()).backward()
    with pytest.raises(PrivacyError, match="69 examples, 68 at most"):
        optimizer.step()


# Learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("session")
def test_a_private_model_learns() -> None:
    """Two classes of 400 points on shares, ε = 3: most of the points on the right side, as without noise."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(400) % 2
    x = torch.randn(400, 10, generator=generator) * 0.5
    x[:, :4] += (2 * y - 1)[:, None] * 0.5
    shared = encml.share(nn.Linear(10, 2))
    training, optimizer = private(
        shared, rate=1.0, examples=400, batch_size=64, target_epsilon=3.0, steps=25, noise_keys=KEYS
    )
    inputs, targets = encml.share(x), encml.share(F.one_hot(y, 2).float())
    for chosen in training.batches(25):
        optimizer.zero_grad()
        F.cross_entropy(shared(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    assert 2.9 < training.epsilon() <= 3.01
    found = (x @ shared.weight.reveal().T + shared.bias.reveal()).argmax(1)
    assert (found == y).float().mean() > 0.9
