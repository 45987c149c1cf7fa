"""Three parties apart, each with its own two shares, hold bit for bit the shares that one process would give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from reference import grid
from torch import Tensor, nn

import encml
from encml import Session
from encml.mpc.parties import Parties
from encml.net.transport import PARTIES
from encml.tensor.shared import SharedTensor, secret

SEED = 77
Work = Callable[[Parties | None], list[SharedTensor]]


def owned(values: Tensor, owner: int, parties: Parties | None) -> SharedTensor:
    """Shared by ``owner``; the other parties know the shape alone."""
    knows = parties is None or parties.plays(owner)
    return encml.share(values if knows else torch.full_like(values, 7.0), owner=owner)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


NETWORK = network()
"""Made once: PyTorch's generator is one for all threads."""


def training(parties: Parties | None) -> list[SharedTensor]:
    """Two steps of SGD on a small convolutional net: activations, gradients, momentum and parameters."""
    model = encml.share(NETWORK, owner=0)
    x, y = owned(grid(4, 1, 8, 8).float(), 1, parties), owned(grid(4, 3).float(), 2, parties)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    kept: list[SharedTensor] = []
    for _ in range(2):
        optimizer.zero_grad()
        output = model(x)
        F.mse_loss(output, y).backward()
        optimizer.step()
        kept += [output, *(p.grad for p in model.parameters())]
    kept += [entry["momentum_buffer"] for entry in optimizer.state.values()]
    return [*kept, *model.parameters()]


def everything_else(parties: Parties | None) -> list[SharedTensor]:
    """One of each way in which a handler treats shares."""
    x, y = owned(grid(4, 6), 0, parties).requires_grad_(), owned(grid(4, 6, seed=1), 2, parties)
    plain = grid(4, 6, seed=2)
    z = y.clone()
    z[0].add_(1)
    z[:, 1] = x[:, 2]
    z.t().mul_(plain[0, 0].item())
    z[torch.tensor([1, 3])] = 0.5
    results: list[Any] = [
        x + y, x - plain, 1.5 - y, x * y, x * plain, y / 3, x**3, (x @ y.t()).t(), x.t() @ plain, -x,
        x > y, y <= 0.25, x == plain, x != y, (x > 0) & (y > 0), (x > 0) * y,
        x.sum(), x.mean(0), x.cumsum(1), x.flip(0), torch.cat([x, plain]), torch.stack([x * x, y * y]),
        x.view(2, 2, 6)[1].t(), x[:, [0, 3]], F.pad(x, (1, 1)), torch.zeros_like(x), torch.full_like(y, 0.25),
        F.avg_pool2d(x[None, None] * 1, 3, padding=1), x.relu(), F.relu(y.t()), z, (x * y).detach().relu_(),
        x.new_ones(3), x.clone().fill_(2), F.linear(x, y, plain[:, 0]), torch.einsum("ij,kj->ik", x, y),
    ]  # fmt: skip
    ((x * y).relu().sum() + (x @ plain.t()).mean()).backward()
    return [*results, x.grad]


@pytest.mark.parametrize("work", [training, everything_else])
def test_shares_are_those_of_one_process(work: Work) -> None:
    def apart(parties: Parties) -> list[tuple[Tensor, int, bool]]:
        with Session(parties.net, seed=SEED):
            found = [secret(x) for x in work(parties)]
            return [(s.terms.clone(), s.fraction_bits, s.pending) for s in found]

    with Session(seed=SEED) as session:
        together = [secret(x) for x in work(None)]
        results, transports = run_apart(apart, SEED)
        for i, expected in enumerate(together):
            for rank, found in enumerate(results):
                terms, bits, pending = found[i]
                assert (bits, pending) == (expected.fraction_bits, expected.pending)
                held = [rank] if pending else [rank, (rank + 1) % PARTIES]
                assert torch.equal(terms, expected.terms[held]), f"result {i} differs at party {rank}"
        for rank, transport in enumerate(transports):
            mine = transport.ledger.total
            # The threads set their keys up twice: once for the helper, once for the session.
            assert mine.rounds == session.ledger.total.rounds + 1
            assert mine.sent[rank] == session.ledger.total.sent[rank] + 16


def test_revealed_values_arrive_at_every_party_or_at_one() -> None:
    def apart(parties: Parties) -> tuple[Tensor, Tensor]:
        with Session(parties.net, seed=SEED):
            x = owned(grid(3).float(), 1, parties)
            return (x * 2).reveal(), (x * x).reveal(to=2)

    results, _ = run_apart(apart, SEED)
    expected = grid(3).float()
    for rank, (everyone, alone) in enumerate(results):
        assert torch.equal(everyone, expected * 2)
        if rank == 2:
            assert torch.allclose(alone, expected * expected, atol=2.0**-15)
        else:
            assert torch.equal(alone, torch.zeros(3))


def test_a_refused_operation_leaves_the_parties_in_step() -> None:
    def apart(parties: Parties) -> Tensor:
        with Session(parties.net, seed=SEED):
            x = owned(grid(3).float(), 0, parties)
            with pytest.raises(encml.UnsupportedOperation):
                torch.fft.fft(x)
            with pytest.raises(encml.errors.InvalidTensor):
                x * float("nan")
            return (x + 1).reveal()

    results, _ = run_apart(apart, SEED)
    assert all(torch.equal(found, grid(3).float() + 1) for found in results)


@pytest.mark.parametrize(
    "work", [lambda x: x > 0, lambda x: (x * x).reveal(), lambda x: encml.share(torch.ones(3), owner=1)]
)
def test_an_interrupt_halfway_ends_the_session(work: Callable[[SharedTensor], object]) -> None:
    """Party 1 is stopped where it has drawn masks and sent nothing: going on would give numbers without meaning."""
    closed: list[bool] = []

    def apart(parties: Parties) -> None:
        with Session(parties.net, seed=SEED) as session, pytest.MonkeyPatch.context() as patch:
            x = owned(grid(3).float(), 0, parties)
            if parties.plays(1):
                patch.setattr(session.parties.net, "exchange", interrupt)
                patch.setattr(session.parties.net, "rotate", interrupt)
                patch.setattr(session.parties.net, "close", lambda: closed.append(True))
            work(x)
            x.reveal()

    with pytest.raises(KeyboardInterrupt):
        run_apart(apart, SEED)
    assert closed == [True]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
