"""Normalisations, variances and lengths against float64.

Tolerances: an inverse deviation is off by up to 2^-15 of itself, so a result y by 2^-15 |y| before it is rounded; a
difference from the mean by 2^-20, times what it is multiplied by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ULP, grid, matches
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import encml
from encml import Session, SharedTensor, UnsupportedOperation
from encml.errors import SecretError
from encml.tensor.shared import secret

aten = torch.ops.aten
Module = nn.Module


def on_grid(x: Tensor) -> Tensor:
    return (x.double() / ULP).round() * ULP


def normal(*shape: int, mean: float | Sequence[float] = 0.0, deviation: float = 1.0, seed: int = 0) -> Tensor:
    """Activations; ``mean`` by channel, dimension 1, if it is a list."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.tensor(mean, dtype=torch.float64)
    if shift.ndim:
        shift = shift.view(1, -1, *(1,) * (len(shape) - 2))
    return on_grid(torch.randn(shape, generator=generator, dtype=torch.float64) * deviation + shift)


def with_weights(module: Module, seed: int = 7) -> Module:
    """In float64, parameters and running statistics on the grid and away from what they start with."""
    module = module.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(on_grid(torch.rand(p.shape, generator=generator) * 2 - 0.5))
        for name, b in module.named_buffers():
            if b.is_floating_point():
                b.copy_(on_grid(torch.rand(b.shape, generator=generator) + ("var" in name) * 0.2))
    return module


def close(found: Tensor, expected: Tensor, relative: float = 2.0**-14, ulps: float = 2) -> None:
    """Within ``relative`` of the largest element, and ``ulps`` units."""
    assert isinstance(found, SharedTensor)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    worst = float((found.detach().reveal() - expected.detach()).abs().max())
    allowed = relative * float(expected.detach().abs().max()) + ulps * ULP
    assert worst < allowed, f"off by {worst / ULP:.2f} units, {allowed / ULP:.2f} are allowed"


def check(module: Module, x: Tensor, *, steps: int = 1, relative: float = 2.0**-14, grad: float = 2.0**-13) -> None:
    """Outputs, gradients and running statistics of a module and its shared copy."""
    shared = encml.share(module)
    held = encml.share(x)
    if x.ndim == 4 and not x.is_contiguous():
        held = held.contiguous(memory_format=torch.channels_last)
    plain_x, secret_x = x.clone().requires_grad_(), held.requires_grad_()
    for step in range(steps):
        expected, found = module(plain_x), shared(secret_x)
        close(found, expected, relative)
        if found.numel():
            assert found.stride() == expected.stride()
        upstream = grid(*x.shape, seed=20 + step)
        expected.backward(upstream)
        found.backward(encml.share(upstream))
    close(secret_x.grad, plain_x.grad, grad)
    for p, q in zip(module.parameters(), shared.parameters(), strict=True):
        close(q.grad, p.grad, grad, 4)
    for p, q in zip(module.buffers(), shared.buffers(), strict=True):
        if p.is_floating_point():
            close(q, p, 2.0**-14, 3 * steps)
        else:
            assert torch.equal(p, q)
            assert type(q) is Tensor


# Batch normalisation -------------------------------------------------------------------------------------------------

BATCH_NORMS: list[tuple[Callable[[], Module], tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(6), (10, 6)),
    (lambda: nn.BatchNorm1d(3), (4, 3, 5)),
    (lambda: nn.BatchNorm2d(4), (4, 4, 4, 4)),
    (lambda: nn.BatchNorm2d(3, momentum=0.3, eps=1e-3), (3, 3, 7, 7)),
    (lambda: nn.BatchNorm2d(3, affine=False), (2, 3, 3, 3)),
    (lambda: nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 3, 3)),
    (lambda: nn.BatchNorm2d(3, momentum=None), (2, 3, 3, 3)),
    (lambda: nn.BatchNorm3d(2), (2, 2, 3, 2, 3)),
    (lambda: nn.InstanceNorm1d(3), (2, 3, 8)),
    (lambda: nn.InstanceNorm2d(3, affine=True), (2, 3, 4, 5)),
    (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (2, 3, 4, 5)),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("make", "shape"), BATCH_NORMS)
def test_batch_norms(make: Callable[[], Module], shape: tuple[int, ...], training: bool) -> None:
    check(with_weights(make()).train(training), normal(*shape, mean=0.75, deviation=2.0), steps=2)


def test_realistic_activations() -> None:
    """Means far from 0, deviations from 0.01 (a variance of 1e-4) to 40: relative to the outputs as good as any."""
    for deviation, mean in (
        (0.01, [0.0, 0.1, 1.0, 10.0]),
        (1.0, [0.0, -3.0, 30.0, 100.0]),
        (40.0, [0.0, 50.0, 9.0, 200.0]),
    ):
        check(with_weights(nn.BatchNorm2d(4)), normal(8, 4, 5, 5, mean=mean, deviation=deviation))


def test_a_constant_channel_is_its_bias() -> None:
    module, x = with_weights(nn.BatchNorm2d(2)), torch.full((4, 2, 3, 3), 1.234, dtype=torch.float64)
    found = encml.share(module)(encml.share(x))
    assert (found.reveal() - module.bias.view(1, 2, 1, 1)).abs().max() < 40 * ULP  # 300 times 2^-20, and 2^-16


def test_more_elements_than_are_summed_at_once() -> None:
    check(with_weights(nn.BatchNorm2d(1)), normal(5, 1, 64, 64, mean=2.0, deviation=8.0))


def test_channels_last() -> None:
    x = normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for training in (True, False):
        check(with_weights(nn.BatchNorm2d(3)).train(training), x)
    check(with_weights(nn.GroupNorm(3, 3)), x)


def test_views_and_pending_products_as_inputs() -> None:
    weight, norm = normal(4, 4, seed=3), with_weights(nn.BatchNorm1d(4))
    shared = copy.deepcopy(norm)
    found = encml.share(shared)(encml.share(normal(9, 4)) @ encml.share(weight))
    close(found, norm(normal(9, 4) @ weight), 2.0**-13, 6)
    check(with_weights(nn.LayerNorm(4)), normal(4, 3, 5)[:, 1:].transpose(0, 2)[..., :4].contiguous())


def test_public_models_and_public_inputs() -> None:
    """Evaluation of a public norm on a secret input, and of a secret norm on a public input."""
    norm, x = with_weights(nn.BatchNorm2d(3)).eval(), normal(2, 3, 4, 4)
    close(norm(encml.share(x)), norm(x))
    close(encml.share(norm)(x), norm(x))
    norm.train()
    with pytest.raises(SecretError, match="running statistics"):
        norm(encml.share(x))
    layer = with_weights(nn.LayerNorm(4))
    close(layer(encml.share(x)), layer(x))
    close(encml.share(layer)(x), layer(x))
    half = copy.deepcopy(norm).eval()
    half.running_var = encml.share(norm.running_var)
    close(half(encml.share(x)), norm.eval()(x))


def test_frozen_statistics_are_computed_once(session: Session) -> None:
    norm, x = with_weights(nn.BatchNorm2d(3)).eval(), normal(2, 3, 4, 4)
    held, start = encml.share(x), session.ledger.total.rounds
    shared = encml.share(norm)
    assert session.ledger.total.rounds - start == 1 + 1 + 30  # its tensors, finer digits, inverse and scale

    def rounds() -> int:
        before = session.ledger.total.rounds
        assert secret(shared(held)).pending
        return session.ledger.total.rounds - before

    with torch.no_grad():
        assert [rounds(), rounds()] == [0, 0]
        shared.weight.mul_(2)
        norm.weight.mul_(2)
        assert [rounds(), rounds()] == [3, 0]
        shared.running_var[1:].add_(1)
        norm.running_var[1:].add_(1)
        assert [rounds(), rounds()] == [30, 0]
        close(shared(held), norm(x))
        norm.eps = shared.eps = 0.5
        close(shared(held), norm(x))
        other, twin = with_weights(nn.BatchNorm2d(3), seed=9).eval(), None
        twin = encml.share(other)
        twin(held)
        shared.running_var.copy_(twin.running_var)
        norm.running_var.copy_(other.running_var)
        close(shared(held), norm(x))


def test_all_norms_of_a_module_are_prepared_in_the_rounds_of_one(session: Session) -> None:
    layers = nn.Sequential(*(nn.BatchNorm1d(3, affine=place % 2 == 0, eps=0.1**place) for place in range(4))).eval()
    layers.append(nn.BatchNorm1d(3, track_running_stats=False))
    before = session.ledger.total.rounds
    shared = encml.share(layers)
    assert session.ledger.total.rounds - before == 1 + 4 + 30
    x, start = encml.share(normal(5, 3)), session.ledger.total.rounds
    y = x
    for layer in shared[:4]:
        y = layer(y)
    y._secret.settle()
    assert session.ledger.total.rounds - start == 4 * 3
    close(y, layers[:4].double()(x.reveal()))


def test_rounds_and_bytes_of_batch_norm(session: Session) -> None:
    """28.25 B an element over the three parties, which is what a product costs that is shifted by more than 16 bits."""
    shape, elements, channels = (2, 64, 4, 4), 2048, 64
    norm, x, upstream = (encml.share(t) for t in (with_weights(nn.BatchNorm2d(64)), normal(*shape), normal(*shape)))
    x.requires_grad_()
    start = session.ledger.total
    y = norm(x)
    forward = session.ledger.total
    y.backward(upstream)
    backward = session.ledger.total
    norm.eval()(x)
    frozen = session.ledger.total
    assert (forward - start).rounds == 36
    assert (forward - start).bytes == 28.25 * elements + 3 * 251.75 * channels
    assert (backward - forward).rounds == 15
    assert (backward - forward).bytes == 28.25 * elements + 3 * 52.5 * channels
    assert (frozen - backward).rounds == 30
    assert (frozen - backward).bytes < 3 * 205 * channels


def test_other_operators_of_batch_norm() -> None:
    x, norm = normal(5, 3, 2), with_weights(nn.BatchNorm1d(3))
    mean, variance = norm.running_mean, norm.running_var
    matches(lambda a: aten._native_batch_norm_legit.no_stats(a, None, None, True, 0.1, 1e-5)[0], x, ulps=5, grad_ulps=8)
    matches(
        lambda a, w, b: aten._native_batch_norm_legit_no_training(a, w, b, mean, variance, 0.1, 1e-5)[0],
        x,
        norm.weight.detach(),
        norm.bias.detach(),
        ulps=5,
        grad_ulps=30,
    )
    shared = encml.share(norm)
    with torch.inference_mode():
        close(shared.eval()(encml.share(x)), norm.eval()(x))
    with pytest.raises(UnsupportedOperation, match="empty batch"):
        aten.native_batch_norm(encml.share(x[:0]), None, None, None, None, True, 0.1, 1e-5)
    with pytest.raises(UnsupportedOperation, match="without running statistics"):
        aten.native_batch_norm(encml.share(x), None, None, None, None, False, 0.1, 1e-5)
    assert shared.eval()(encml.share(x[:0])).shape == (0, 3, 2)


def test_sync_batch_norm_alone_is_batch_norm() -> None:
    """Its synchronisation wants an accelerator and a process group, and says so itself."""
    check(with_weights(nn.SyncBatchNorm(3)), normal(4, 3, 2))


def test_training_with_batch_norm_follows_float64() -> None:
    torch.manual_seed(3)
    plain = with_weights(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    )
    shared, x, y = encml.share(plain), normal(8, 1, 6, 6), normal(8, 2, seed=4)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (plain, shared)]
    for _ in range(4):
        for model, optimizer, a, b in zip(
            (plain, shared), optimizers, (x, encml.share(x)), (y, encml.share(y)), strict=True
        ):
            optimizer.zero_grad()
            F.mse_loss(model(a), b).backward()
            optimizer.step()
    for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
        close(q, p, 2.0**-9, 40)


# Layer, group and root-mean-square norms -----------------------------------------------------------------------------

WITHIN: list[tuple[Callable[[], Module], tuple[int, ...]]] = [
    (lambda: nn.LayerNorm(16), (5, 16)),
    (lambda: nn.LayerNorm(5), (2, 3, 5)),
    (lambda: nn.LayerNorm((3, 4), eps=1e-3), (2, 3, 4)),
    (lambda: nn.LayerNorm(6, bias=False), (4, 6)),
    (lambda: nn.LayerNorm(8, elementwise_affine=False), (4, 8)),
    (lambda: nn.LayerNorm(16, elementwise_affine=False), (4, 16)),
    (lambda: nn.LayerNorm(6), (6,)),
    (lambda: nn.GroupNorm(2, 6), (3, 6, 4)),
    (lambda: nn.GroupNorm(3, 6, affine=False), (2, 6, 3, 3)),
    (lambda: nn.GroupNorm(4, 4), (5, 4, 4, 2)),
    (lambda: nn.RMSNorm(12), (3, 12)),
    (lambda: nn.RMSNorm((2, 8), eps=1e-3), (3, 2, 8)),
    (lambda: nn.RMSNorm(7, elementwise_affine=False), (3, 7)),
]


@pytest.mark.parametrize(("make", "shape"), WITHIN)
def test_norms_within_an_example(make: Callable[[], Module], shape: tuple[int, ...]) -> None:
    check(with_weights(make()), normal(*shape, mean=0.5, deviation=2.0))
    module, x = with_weights(make()), normal(*shape, seed=5)
    with torch.inference_mode():
        close(encml.share(module)(encml.share(x)), module(x))


def test_no_eps_at_all() -> None:
    x = normal(3, 8)
    close(F.layer_norm(encml.share(x), [8], eps=0.0), F.layer_norm(x, [8], eps=0.0))
    assert torch.equal(F.layer_norm(encml.share(torch.zeros(2, 8)), [8], eps=0.0).reveal(), torch.zeros(2, 8))


def test_checkpoints_and_transforms() -> None:
    """A norm caught above autograd is caught again where a checkpoint recomputes, and left to PyTorch by torch.func."""
    module, x = with_weights(nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6), nn.LayerNorm(6))), normal(4, 6)
    shared, labels = encml.share(module), torch.arange(4)
    for net, data in ((module, x.clone()), (shared, encml.share(x))):
        data.requires_grad_()
        F.cross_entropy(checkpoint(net, data, use_reentrant=False) + F.normalize(data), labels).backward()
        net.slope = data.grad
    close(shared.slope, module.slope, 2.0**-12, 6)

    def loss(weights: dict[str, Tensor], net: Module, data: Tensor, targets: Tensor) -> Tensor:
        result = torch.func.functional_call(net, weights, (data,))
        return F.cross_entropy(result, targets) + data.norm() * result.mean()

    expected = torch.func.grad(loss)(dict(module.named_parameters()), module, x, labels)
    found = torch.func.grad(loss)(dict(shared.named_parameters()), shared, encml.share(x), labels)
    for name, slope in expected.items():
        close(found[name], slope, 2.0**-10, 12)


@pytest.mark.parametrize("make", [nn.LayerNorm, nn.RMSNorm])
def test_wide_rows(make: Callable[[int], Module]) -> None:
    """As in a transformer's stream: wide rows, a few elements much larger than the others, and quiet rows."""
    x = normal(3, 384, deviation=2.0)
    x[0, 7], x[1] = 150.0, normal(384, deviation=0.02, mean=0.125)
    check(with_weights(make(384)), x)


def test_rounds_and_bytes_of_layer_norm(session: Session) -> None:
    rows, width = 64, 128
    norm, x, upstream = (
        encml.share(t) for t in (with_weights(nn.LayerNorm(width)), normal(rows, width), normal(rows, width))
    )
    x.requires_grad_()
    start = session.ledger.total
    y = norm(x)
    forward = session.ledger.total
    assert secret(y).pending
    secret(y).settle()
    settled = session.ledger.total
    y.backward(upstream)
    backward = session.ledger.total
    assert (forward - start).rounds == 33
    assert (forward - start).bytes == 28.25 * x.numel() + 3 * 229 * rows - 32  # a few bits of less than a word
    assert (settled - forward).rounds == 3
    assert (backward - settled).rounds == 12
    assert (backward - settled).bytes < (28.25 + 26.25) * x.numel() + 3 * 56 * rows


def test_backward_without_what_forward_remembered() -> None:
    x, weight, gradient = normal(4, 6), normal(6, seed=2), normal(4, 6, seed=3)
    _, mean, deviation = aten.native_layer_norm(x, [6], weight, None, 1e-5)
    mask = [True, True, False]
    expected = aten.native_layer_norm_backward(gradient, x, [6], mean, deviation, weight, None, mask)
    inputs = [encml.share(t) for t in (gradient, x, mean, deviation, weight)]
    with torch.no_grad():
        found = aten.native_layer_norm_backward(inputs[0], inputs[1], [6], inputs[2], inputs[3], inputs[4], None, mask)
    for a, b in zip(found[:2], expected[:2], strict=True):
        close(a, b, 2.0**-12, 10)


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 4), st.integers(2, 40), st.floats(0.02, 50), st.floats(-100, 100), st.integers(0, 99))
def test_layer_norm_of_any_scale(rows: int, n: int, deviation: float, mean: float, seed: int) -> None:
    x = normal(rows, n, deviation=deviation, mean=mean, seed=seed)
    with Session(seed=5):
        # The mean is rounded by less than a unit, which is then divided by the deviation.
        close(F.layer_norm(encml.share(x), [n]), F.layer_norm(x, [n]), 2.0**-14, 4 + 1 / deviation)


@pytest.mark.parametrize("fraction_bits", [10, 20, 24])
def test_other_fraction_bits(fraction_bits: int) -> None:
    x = normal(8, 6).mul(2**8).round().div(2**8)
    with Session(fraction_bits=fraction_bits, seed=4):
        held = encml.share(x).requires_grad_()
        for f in (lambda t: F.layer_norm(t, [6]), lambda t: F.batch_norm(t, None, None, training=True), F.normalize):
            plain = x.clone().requires_grad_()
            expected, found = f(plain), f(held)
            tolerance = max(2.0**-14, 8 * 2.0**-fraction_bits)
            assert (found.reveal() - expected).abs().max() < 3 * tolerance
            expected.backward(x)
            held.grad = None
            found.backward(encml.share(x))
            assert (held.grad.reveal() - plain.grad).abs().max() < 6 * tolerance


# Lengths, variances --------------------------------------------------------------------------------------------------

LENGTHS: list[Callable[..., Any]] = [
    lambda x: F.normalize(x),
    lambda x: F.normalize(x, dim=-1),
    lambda x: F.normalize(x[:, :1], dim=1),
    lambda x: torch._weight_norm(x, x[:, :1, :1].clone(), 0),
    lambda x: torch._weight_norm(x, x[:1, :, :1].clone(), 1),
    lambda x: torch._weight_norm(x, x[0, 0, 0].clone(), -1),
    lambda x: x.norm(),
    lambda x: x.norm(dim=1),
    lambda x: torch.norm(x, dim=(0, 2), keepdim=True),
    lambda x: torch.linalg.norm(x),
    lambda x: torch.linalg.vector_norm(x, dim=-1),
    lambda x: torch.linalg.vector_norm(x, 1, dim=-1),
    lambda x: torch.linalg.matrix_norm(x),
    lambda x: torch.linalg.vector_norm(x, 3, dim=0),
    lambda x: torch.linalg.vector_norm(x * 2, 6, dim=(0, 2), keepdim=True),
    lambda x: x.norm(1.5),
    lambda x: torch.cdist(x, x[:, :2] + 1),
    lambda x: torch.linalg.vector_norm(x, 0, dim=0) + x.sum(0),
    lambda x: torch.var(x),
    lambda x: torch.var(x, 1),
    lambda x: torch.var(x, (0, 2), correction=0, keepdim=True),
    lambda x: torch.std(x, -1),
    lambda x: torch.std(x, correction=2),
    lambda x: torch.stack(torch.var_mean(x, 1)),
    lambda x: torch.stack(torch.std_mean(x)),
    lambda x: F.local_response_norm(x, 3),
]


@pytest.mark.parametrize("f", LENGTHS)
def test_lengths_and_variances(f: Callable[..., Any]) -> None:
    x = normal(3, 5, 4, deviation=1.5)
    matches(f, x, ulps=32, grad_ulps=24, strides=False)


def test_distances_of_many_pairs() -> None:
    """An entry's gradient adds up those of 6 copies by 5 others: 30 terms, each a few units off."""
    x = normal(3, 5, 4, deviation=1.5)
    matches(lambda x: torch.cdist(x.repeat(1, 6, 1), x.detach() + 1), x, ulps=32, grad_ulps=30 * 4, strides=False)


@pytest.mark.parametrize("f", [F.cosine_similarity, F.pairwise_distance, torch.dist])
def test_pairs(f: Callable[..., Any], session: Session) -> None:
    x, y = normal(4, 6), normal(4, 6, seed=1)
    matches(f, x, y, ulps=4, grad_ulps=5)
    matches(f, x, y, ulps=4, grad_ulps=5, public=(1,))
    matches(f, x, y, ulps=4, grad_ulps=5, public=(0,))
    before = session.ledger.total.rounds
    f(encml.share(x), encml.share(y))
    assert session.ledger.total.rounds - before <= 2 + 35


def test_orders_that_overflow_as_powers() -> None:
    x = torch.tensor([[300.0, -200.0, 100.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found, expected = (t.norm(4, dim=1) for t in (encml.share(x), x))
    assert (found.reveal() - expected).abs().max() < 0.05


def test_long_and_short_vectors() -> None:
    x = torch.tensor([[3000.0, 4000.0], [ULP, 0.0], [0.0, 0.0], [2.0**-8, 2.0**-9]], dtype=torch.float64)
    found = encml.share(x).norm(dim=1).reveal()
    assert torch.all((found - x.norm(dim=1)).abs() <= torch.tensor([0.2, 5 * ULP, 0, 2 * ULP]))
    units = F.normalize(encml.share(x)).reveal()
    assert (units - F.normalize(x))[[0, 3]].abs().max() < 2.0**-10
    assert torch.equal(units[2], torch.zeros(2, dtype=torch.float64))


def test_numbers_as_vectors() -> None:
    x, y = torch.tensor(1.5, dtype=torch.float64), torch.tensor(-0.25, dtype=torch.float64)
    matches(lambda a: torch.linalg.vector_norm(a, dim=-1) + a.norm(), -x, ulps=2, grad_ulps=4)
    matches(lambda a: torch.var(a, 0, correction=0), x, ulps=1)
    matches(lambda a, b: F.cosine_similarity(a, b, dim=0), x, y, ulps=2)


def test_gradient_of_the_length_of_nothing_is_nothing() -> None:
    x = encml.share(torch.zeros(3)).requires_grad_()
    x.norm().backward()
    assert torch.equal(x.grad.reveal(), torch.zeros(3))


def test_a_variance_of_one_value_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="divides by 0"):
        encml.share(normal(1)).var()


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_norms_of_weights_as_parametrizations(norm: Callable[[Module], Module]) -> None:
    torch.manual_seed(2)
    module, x = norm(nn.Linear(6, 3)).double(), normal(4, 6)
    shared = encml.share(module)
    for training in (True, False):
        expected, found = module.train(training)(x), shared.train(training)(encml.share(x))
        close(found, expected, 2.0**-13, 4)
    expected.sum().backward()
    found.sum().backward()
    for p, q in zip(module.parameters(), shared.parameters(), strict=True):
        close(q.grad, p.grad, 2.0**-12, 4)
