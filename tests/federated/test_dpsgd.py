"""DP-SGD: every contribution is bounded, noise and batches are as accounted for, and nobody can predict them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer
from scipy.stats import binom, chi2
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from encml.errors import ConfigError, PrivacyError
from encml.federated.dpsgd import GRID_BITS, ExactOptimizer, ExamplePrivacy, PoissonBatches, _Engine, train_privately
from encml.federated.fusion import fused
from encml.privacy.accounting import Accountant


def network(**convolution: object) -> nn.Sequential:
    first = nn.Conv2d(2, 4, 3, **convolution)  # type: ignore[arg-type]
    return nn.Sequential(first, nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def data(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 9, 8, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def private(
    model: nn.Module, count: int, noise: float = 1.0, norm: float = 1.0, batch: int = 4
) -> tuple[nn.Module, ExactOptimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(*data(count)), batch_size=batch)
    wrapped, wrapping, _ = _Engine("rdp").make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=noise, max_grad_norm=norm
    )
    return wrapped, wrapping


def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(model(x.requires_grad_()), y).backward()


# Gradients of single examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("padding", "groups"), [(0, 1), (1, 1), ((2, 0), 1), (1, 2)])
def test_gradients_of_single_examples_are_those_of_pytorch(
    padding: int | tuple[int, int], groups: int, bias: bool
) -> None:
    x, y = data(6)
    plain = network(padding=padding, groups=groups, bias=bias)
    plain(x)
    wrapped, _ = private(fused(plain), 6)
    backward(wrapped, x.clone(), y)
    for i in range(len(x)):
        expected = torch.autograd.grad(F.cross_entropy(plain(x[i : i + 1]), y[i : i + 1]), list(plain.parameters()))
        for p, gradient in zip(wrapped.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad_sample[i], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e4])
@pytest.mark.parametrize("norm", [0.1, 1.0, 7.3])
def test_no_example_contributes_more_than_the_clipping_norm(scale: float, norm: float) -> None:
    """As exact integers, whatever the size of its gradient; and the sum is exactly that of the contributions."""
    x, y = data(5)
    model = network()
    model(x)
    wrapped, optimizer = private(fused(model), 5, norm=norm)

    def contribution(rows: slice) -> list[int]:
        optimizer.zero_grad()
        backward(wrapped, (x[rows] * scale).clone(), y[rows])
        optimizer.clip_and_accumulate()
        return [int(v) for p in wrapped.parameters() for v in p.summed_grad.tolist()]

    singles = [contribution(slice(i, i + 1)) for i in range(len(x))]
    squares = [sum(v * v for v in single) for single in singles]
    assert max(squares) <= 2 ** (2 * GRID_BITS)
    if scale > 1e3:  # those that are not classified perfectly are clipped, and not much shorter than they may be
        assert max(squares) > 0.999 * 2 ** (2 * GRID_BITS)
    sums = [sum(column) for column in zip(*singles, strict=True)]
    together = contribution(slice(0, 5))
    # Kernels for one and for five examples round differently, in float32.
    assert max(abs(a - b) for a, b in zip(sums, together, strict=True)) < 1e-5 * 2**GRID_BITS


def test_clipping_is_that_of_opacus() -> None:
    x, y = data(8)
    model = network()
    model(x)
    wrapped, optimizer = private(fused(model), 8, norm=0.7)
    backward(wrapped, x, y)
    DPOptimizer.clip_and_accumulate(optimizer)
    expected = [p.summed_grad.flatten().double() for p in wrapped.parameters()]
    for p in wrapped.parameters():
        p.summed_grad = None
        p.grad_sample = p.grad_sample.clone()  # Opacus marks what it has used
    optimizer.clip_and_accumulate()
    for p, reference in zip(wrapped.parameters(), expected, strict=True):
        torch.testing.assert_close(p.summed_grad * 0.7 / 2**GRID_BITS, reference, rtol=1e-3, atol=1e-5)


def test_nan_in_one_example_does_not_pass_for_a_number() -> None:
    x, y = data(4)
    model = network()
    model(x)
    wrapped, optimizer = private(fused(model), 4)
    x[2, 0, 0, 0] = math.nan
    backward(wrapped, x, y)
    optimizer.step()
    assert any(p.isnan().any() for p in wrapped.parameters())


def test_batches_too_large_for_exact_sums_are_refused() -> None:
    model = nn.Linear(1, 1)
    optimizer = ExactOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), "rdp", noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1
    )
    for p in model.parameters():
        p.grad_sample = torch.zeros((2**16 + 1, *p.shape))
    with pytest.raises(ConfigError, match="at most 65536"):
        optimizer.clip_and_accumulate()


def test_models_too_large_to_clip_in_float32_are_refused() -> None:
    """With 3 * 2^24 parameters the margin would be -2: gradients of twice the norm, and of the other sign."""
    weight = nn.Parameter(torch.zeros(1).expand(3 * 2**24))
    optimizer = ExactOptimizer(
        torch.optim.SGD([weight], 0.1), "rdp", noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1
    )
    weight.grad_sample = torch.zeros(1).expand(1, 3 * 2**24)
    with pytest.raises(ConfigError, match="up to 8,388,608"):
        optimizer.clip_and_accumulate()


# Noise and batches -------------------------------------------------------------------------------------------------


def test_noise_has_the_variance_that_is_accounted_for_and_is_not_torchs() -> None:
    """With gradients of zero a step is noise of standard deviation sigma C over the expected batch."""
    noise, norm, batch = 1.3, 0.4, 10
    model = nn.Linear(300, 100)
    steps = []
    for _ in range(2):
        torch.manual_seed(0)
        optimizer = ExactOptimizer(
            torch.optim.SGD(model.parameters(), 0.1),
            "rdp",
            noise_multiplier=noise,
            max_grad_norm=norm,
            expected_batch_size=batch,
        )
        for p in model.parameters():
            p.grad_sample = torch.zeros((3, *p.shape))
        optimizer.step()
        steps.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double())
    assert not torch.equal(steps[0], steps[1])
    for step in steps:
        statistic = float((step * batch / (noise * norm)).square().sum())
        low, high = chi2.ppf([1e-9, 1 - 1e-9], step.numel())
        assert low < statistic < high


def test_noise_that_could_not_be_accounted_for_is_refused() -> None:
    model = nn.Linear(300, 100)
    with pytest.raises(PrivacyError, match="more fraction bits"):
        train_privately(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            torch.zeros(4, 300),
            torch.zeros(4, dtype=torch.long),
            F.cross_entropy,
            epochs=1,
            batch_size=2,
            privacy=ExamplePrivacy(1e-9, 1.0, 1e-5),
        )


def test_batches_are_poisson_samples_and_not_torchs() -> None:
    dataset = TensorDataset(torch.arange(200))
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        batches = PoissonBatches(dataset, 20)
        assert len(batches) == 20
        seen.append([batch.tolist() for _ in range(60) for (batch,) in batches])
    assert seen[0] != seen[1]
    sizes = torch.tensor([len(batch) for batch in seen[0]])
    expected = torch.tensor(binom.pmf(range(25), 200, 1 / 20)) * len(sizes)
    expected[-1] += binom.sf(24, 200, 1 / 20) * len(sizes)
    found = torch.bincount(sizes.clamp(max=24), minlength=25)
    keep = expected > 3
    assert chi2.sf(float(((found - expected)[keep] ** 2 / expected[keep]).sum()), int(keep.sum())) > 1e-9
    counts = torch.bincount(torch.tensor([i for batch in seen[0] for i in batch]), minlength=200)
    assert chi2.sf(float(((counts - 60) ** 2 / 57.0).sum()), 200) > 1e-9


def test_an_empty_sample_is_a_step_of_noise() -> None:
    x, y = data(3)
    model = network()
    model(x)
    wrapped, optimizer = private(fused(model), 3)
    backward(wrapped, x[:0].clone(), y[:0])
    optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in wrapped.parameters())


# Training ----------------------------------------------------------------------------------------------------------


def trained(epochs: int, privacy: ExamplePrivacy, count: int = 90) -> tuple[float, list[tuple[float, float, int]]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 5, generator=generator)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(5, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    spent = train_privately(model, optimizer, x, y, F.cross_entropy, epochs=epochs, batch_size=30, privacy=privacy)
    return float((model(x).argmax(1) == y).double().mean()), spent


def test_it_learns_and_says_what_it_spent() -> None:
    right, spent = trained(10, ExamplePrivacy(0.05, 1.0, 1e-5, "rdp"))
    assert right > 0.9
    assert spent == [(0.05, 1 / 3, 30)]


def test_what_it_spent_is_what_opacus_says() -> None:
    accountant, opacus = Accountant("rdp", 1e-5), RDPAccountant()
    _, spent = trained(3, ExamplePrivacy(2.0, 1.0, 1e-5, "rdp"))
    for noise, rate, steps in spent:
        accountant.step(noise, rate, steps)
    opacus.history = [(2.0, 1 / 3, 9)]
    assert accountant.epsilon() == pytest.approx(opacus.get_epsilon(1e-5))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_integer_inputs_train_as_well() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    before = [p.detach().clone() for p in model.parameters()]
    x, y = torch.randint(0, 7, (20, 3)), torch.randint(0, 2, (20,))
    train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        x,
        y,
        F.cross_entropy,
        epochs=1,
        batch_size=5,
        privacy=ExamplePrivacy(1.0, 1.0, 1e-5, "rdp"),
    )
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ((0.0, 1.0, 1e-5), ConfigError),
        ((-1.0, 1.0, 1e-5), PrivacyError),
        ((1.0, 0.0, 1e-5), ConfigError),
        ((1.0, math.nan, 1e-5), ConfigError),
        ((1.0, 1.0, 0.0), PrivacyError),
        ((1.0, 1.0, 1e-5, "gdp"), PrivacyError),
    ],
)
def test_impossible_settings_are_refused(settings: tuple[float, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        ExamplePrivacy(*settings)  # type: ignore[arg-type]
