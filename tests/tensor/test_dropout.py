"""Dropout on secrets: a public mask, the same for value and gradient, at all parties, and again in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from reference import grid, near
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor
from encml.mpc.parties import Parties
from encml.net.transport import PARTIES
from encml.tensor.shared import secret

Drop = Callable[..., Tensor]


def ones(*shape: int) -> SharedTensor:
    return encml.share(torch.ones(shape, dtype=torch.float64)).requires_grad_()


def pattern(x: Tensor) -> Tensor:
    """Which elements of what became of ones were kept."""
    return x.detach().reveal() > 0.5


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.8, 0.99])
def test_values_and_gradients(p: float) -> None:
    """Each element is dropped with probability p, within 5 standard deviations; the rest grows by 1 / (1 - p), which
    fixed point rounds by half a unit, and so does the gradient, at the same places."""
    n = 20_000
    x, upstream = encml.share(grid(n)).requires_grad_(), grid(n, seed=1)
    y = F.dropout(x, p)
    y.backward(encml.share(upstream))
    kept = pattern(F.dropout(ones(n), p))
    assert abs(int(kept.sum()) - n * (1 - p)) < 5 * math.sqrt(n * p * (1 - p))
    kept = y.detach().reveal() != 0
    assert abs(int(kept.sum()) - n * (1 - p)) < 5 * math.sqrt(n * p * (1 - p)) + 10
    near(y.reveal(), grid(n) * kept / (1 - p), 2.1)
    near(x.grad.reveal()[grid(n) != 0], (upstream * kept / (1 - p))[grid(n) != 0], 2.1)


def test_masks_are_new_each_time_and_independent() -> None:
    a, b = (pattern(F.dropout(ones(64, 64))).double() for _ in range(2))
    assert not torch.equal(a, b)
    assert abs(float(((a - 0.5) * (b - 0.5)).mean())) < 5 * 0.25 / 64
    assert abs(float(((a[:, 1:] - 0.5) * (a[:, :-1] - 0.5)).mean())) < 5 * 0.25 / 64


def test_what_drops_nothing_or_all() -> None:
    x = grid(3, 4)
    for y in (F.dropout(encml.share(x), 0.7, training=False), F.dropout(encml.share(x), 0.0)):
        near(y.reveal(), x, 0)
    for drop in (F.dropout, F.dropout1d, F.alpha_dropout, F.feature_alpha_dropout):
        y = ones(3, 4)
        drop(y, 1.0, training=True).sum().backward()
        near(y.grad.reveal(), torch.zeros(3, 4), 0)
        near(drop(encml.share(x), 1.0, training=True).reveal(), torch.zeros(3, 4), 0)
        near(drop(encml.share(x), 0.5, training=False).reveal(), x, 0)
    assert F.dropout(encml.share(torch.zeros(0, 3))).shape == (0, 3)
    assert F.dropout(encml.share(torch.tensor(2.0)), 0.5).shape == ()
    for p in (-0.1, 1.1):
        for drop in (F.dropout, F.dropout2d, F.alpha_dropout, nn.Dropout):
            with pytest.raises(ValueError, match="between 0 and 1"):
                drop(encml.share(x), p) if drop is not nn.Dropout else nn.Dropout(p)
    with pytest.raises(RuntimeError, match="2 dimensions"):
        F.feature_alpha_dropout(encml.share(x[0]), 0.5, True)


def test_a_mask_costs_nothing_after_the_first(session: Session) -> None:
    """The key: 1 round, 96 bytes in all. p = 0.5 doubles, which needs no rescaling; p = 0.1 is rescaled later."""
    x = encml.share(grid(100))
    for p, rounds, sent, settled in ((0.5, 1, 96, 0), (0.5, 0, 0, 0), (0.8, 0, 0, 0), (0.1, 0, 0, 2)):
        with session.ledger.measure() as spent:
            y = F.dropout(x, p)
        assert (spent[0].rounds, spent[0].bytes) == (rounds, sent)
        with session.ledger.measure() as spent:
            secret(y).settle()
        assert spent[0].rounds == settled
    assert session.ledger.costs["dropout"].rounds == 1


@pytest.mark.parametrize(
    ("drop", "shape", "lead"),
    [
        (F.dropout1d, (20, 30, 5), 2),
        (F.dropout1d, (300, 5), 1),
        (F.dropout2d, (20, 30, 3, 4), 2),
        (F.dropout3d, (20, 30, 2, 3, 2), 2),
        (F.dropout3d, (300, 2, 3, 2), 1),
        (lambda x, p: torch.feature_dropout(x, p, True), (20, 30, 5), 2),
        (nn.Dropout1d(0.5), (20, 30, 5), 2),
        (nn.Dropout2d(0.5), (20, 30, 2, 3), 2),
        (nn.Dropout3d(0.5), (300, 2, 3, 2), 1),
    ],
)
def test_whole_channels(drop: Drop, shape: tuple[int, ...], lead: int) -> None:
    x = ones(*shape)
    y = drop(x) if isinstance(drop, nn.Module) else drop(x, 0.5)
    kept = pattern(y).flatten(lead)
    assert torch.all(kept == kept[..., :1])
    channels = kept[..., 0]
    assert abs(int(channels.sum()) - channels.numel() / 2) < 2.5 * math.sqrt(channels.numel())
    near(y.detach().reveal(), 2.0 * pattern(y), 0)


@pytest.mark.parametrize(
    ("drop", "channels"), [(F.alpha_dropout, False), (F.feature_alpha_dropout, True), (nn.AlphaDropout(0.2), False)]
)
def test_alpha_dropout_keeps_mean_and_variance(drop: Drop, channels: bool) -> None:
    """What is dropped becomes a floor; then a x + b. a and b come from PyTorch's own on ones with the same mask."""
    torch.manual_seed(0)
    values = torch.randn(200, 100, 3, dtype=torch.float64)
    x = encml.share(values).requires_grad_()
    y = drop(x) if isinstance(drop, nn.Module) else drop(x, 0.2, training=True)
    y.sum().backward()
    found, kept = y.detach().reveal(), x.grad.reveal() != 0
    alpha, p = 1.7580993408473766, 0.2
    a = ((alpha**2 * p + 1) * (1 - p)) ** -0.5
    near(found, a * torch.where(kept, values, torch.full_like(values, -alpha)) + a * alpha * p, 6)
    near(x.grad.reveal(), a * kept, 1)
    assert abs(float(found.mean())) < 0.03
    assert abs(float(found.var()) - 1) < 0.05
    assert bool((kept == kept[..., :1]).all()) == channels


@pytest.mark.parametrize(
    "drop",
    [
        lambda x: F.dropout(x, 0.5, inplace=True),
        lambda x: torch.dropout_(x, 0.5, True),
        lambda x: torch.feature_dropout_(x, 0.5, True),
        lambda x: torch.alpha_dropout_(x, 0.5, True),
        lambda x: torch.feature_alpha_dropout_(x, 0.5, train=True),
        nn.Dropout(0.5, inplace=True),
    ],
)
def test_in_place(drop: Drop) -> None:
    leaf = ones(50, 8)
    x = leaf * 1
    y = drop(x)
    assert y is x
    y.sum().backward()
    dropped = leaf.grad.reveal() == 0
    assert 0.2 < float(dropped.double().mean()) < 0.8
    assert len(set(y.detach().reveal()[dropped].tolist())) == 1


@pytest.mark.parametrize(
    "low", [torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout]
)
def test_low_level_names(low: Drop) -> None:
    assert 0.1 < float((low(ones(40, 9), p=0.5, train=True).detach().reveal() < 0.5).double().mean()) < 0.9
    near(low(ones(40, 9), 0.5, False).reveal(), torch.ones(40, 9), 0)


def test_layout_and_dtype_stay() -> None:
    x = encml.share(grid(4, 6).float()).t()
    assert F.dropout(x).stride() == x.stride()
    assert F.dropout(x).dtype == torch.float32
    with torch.inference_mode():
        assert F.dropout(encml.share(grid(4))).shape == (4,)


def masks(seed: int | None, generator: int | None) -> Tensor:
    with Session(seed=seed):
        if generator is not None:
            torch.manual_seed(generator)
        return pattern(F.dropout(encml.share(torch.ones(40)))) * 1


def test_the_session_chooses_the_mask_and_not_pytorch() -> None:
    assert torch.equal(masks(3, None), masks(3, 5))
    assert not torch.equal(masks(3, 5), masks(4, 5))
    assert not torch.equal(masks(None, 5), masks(None, 5))


def test_the_same_state_of_the_generator_means_the_same_mask() -> None:
    """Within a session, as PyTorch has it; other shapes read on in the same stream."""
    state = torch.get_rng_state()
    first = pattern(F.dropout(ones(10)))
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    assert torch.equal(pattern(F.dropout(ones(10))), first)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(pattern(F.dropout(ones(10))), first)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_meet_the_same_mask(use_reentrant: bool, session: Session) -> None:
    """y = (m x)^2 with the mask m: its gradient 2 m^2 x is right only if the second pass has the first one's."""
    x, w = encml.share(grid(30, 30)).requires_grad_(), encml.share(grid(30, 30, seed=1))

    def block(a: Tensor) -> Tensor:
        return F.dropout(F.dropout(a) * w, 0.75)

    for _ in range(2):
        x.grad = None
        y = checkpoint(block, x, use_reentrant=use_reentrant)
        y.sum().backward()
        factor = y.detach().reveal() / (grid(30, 30) * grid(30, 30, seed=1))
        kept = (y.detach().reveal() != 0) * 8.0
        assert torch.allclose(factor[kept > 0], torch.tensor(8.0, dtype=torch.float64), atol=0.5)
        near(x.grad.reveal(), kept * grid(30, 30, seed=1), 0.5)
        assert 0.05 < float((kept > 0).double().mean()) < 0.2
        with torch.no_grad():
            x.add_(0)


def test_a_model_with_dropout_learns() -> None:
    torch.manual_seed(0)
    model = encml.share(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.25), nn.Linear(16, 1)).double())
    x, w = grid(64, 4), grid(4, 1, seed=1)
    inputs, targets = encml.share(x), encml.share(x @ w)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().reveal().item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    model.eval()
    near(model(inputs).detach().reveal(), model(inputs).detach().reveal(), 20)


def test_parties_apart_have_the_masks_of_one_process() -> None:
    def work(parties: Parties | None) -> list[SharedTensor]:
        x = encml.share(grid(4, 6, 2), owner=1).requires_grad_()
        y: Any = F.dropout2d(F.dropout(x, 0.3)[None], 0.5)
        y = y + F.alpha_dropout(x * x, 0.5, training=True)
        y.sum().backward()
        return [y.detach(), x.grad, F.dropout(x)]

    def apart(parties: Parties) -> list[tuple[Tensor, int, bool]]:
        with Session(parties.net, seed=7):
            return [(s.terms.clone(), s.fraction_bits, s.pending) for s in (secret(x) for x in work(parties))]

    results, _ = run_apart(apart, 7)
    with Session(seed=7):
        for i, expected in enumerate(secret(x) for x in work(None)):
            for rank, found in enumerate(results):
                held = [rank] if expected.pending else [rank, (rank + 1) % PARTIES]
                assert found[i][1:] == (expected.fraction_bits, expected.pending)
                assert torch.equal(found[i][0], expected.terms[held])


def test_flips_in_place_are_public_and_common() -> None:
    """What composite operators of PyTorch's own end in."""
    x = encml.share(torch.zeros(4000))
    assert x.bernoulli_(0.25) is x
    assert abs(float(x.reveal().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)
    assert set(x.reveal().tolist()) == {0.0, 1.0}
    with pytest.raises(InvalidTensor, match="generator"):
        x.bernoulli_(0.5, generator=torch.Generator())
    with pytest.raises(InvalidTensor, match="probability"):
        x.bernoulli_(1.5)


@pytest.mark.parametrize(
    "noise",
    [
        torch.rand_like, torch.randn_like, torch.bernoulli, lambda x: torch.randint_like(x, 3), lambda x: x.normal_(),
        lambda x: x.uniform_(), lambda x: x.random_(), lambda x: x.exponential_(), lambda x: torch.normal(x, 1.0),
        F.gumbel_softmax, nn.init.kaiming_uniform_,
    ],
)  # fmt: skip
def test_other_noise_is_refused(noise: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(encml.UnsupportedOperation, match="let one party draw it"):
        noise(encml.share(torch.ones(3, 3)))


def test_inside_functional_transforms() -> None:
    """There PyTorch draws the mask itself; value and gradient still agree."""
    x = encml.share(grid(50))
    found, y = torch.func.grad_and_value(lambda a: (F.dropout(a) * a).sum())(x)
    kept = (found.reveal() / (4 * grid(50)) > 0.5) * 2.0
    near(found.reveal(), kept * 2 * grid(50), 2)
    near(y.reveal(), (kept * grid(50) ** 2).sum(), 1)
    assert 10 < int((kept > 0).sum()) < 40
