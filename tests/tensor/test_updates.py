"""Updates are put off and worked out together: the values that they would have had, in the rounds of one."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from party_threads import run_apart
from reference import ULP, grid, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor, PartyError
from encml.mpc import later
from encml.mpc.parties import Parties
from encml.tensor.shared import secret

SHAPES = ((5, 4), (5,), (3, 5), (3,))


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def losses(network: nn.Module, x: Tensor) -> Tensor:
    return (network(x) * 0.125).sum()


OPTIMIZERS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "plain": ({}, [4, 4, 4]),
    "ascent": ({"maximize": True}, [4, 4, 4]),
    "momentum": ({"momentum": 0.9}, [4, 10, 7]),
    "dampened": ({"momentum": 0.9, "dampening": 0.5}, [4, 11, 8]),
    "weight decay": ({"weight_decay": 0.01}, [6, 6, 6]),
    "Nesterov": ({"momentum": 0.9, "nesterov": True}, [8, 12, 9]),
    "all": ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, [10, 14, 11]),
}
"""Arguments of SGD, and the rounds that all updates of each step take together."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stock_sgd_updates_in_the_rounds_of_one_tensor(name: str, session: Session) -> None:
    """Three steps as in float64; 8 units a step cover the roundings of gradients of 6 summed rows and of updates."""
    options, rounds = OPTIMIZERS[name]
    plain, x = model(), grid(6, 4)
    shared = encml.share(plain)
    one, other = (torch.optim.SGD(m.parameters(), lr=0.05, **options) for m in (plain, shared))
    for step in range(3):
        for optimizer, network, data in ((one, plain, x), (other, shared, encml.share(x))):
            optimizer.zero_grad()
            losses(network, data).backward()
            before = session.ledger.rounds
            optimizer.step()
        assert session.ledger.rounds == before, "nothing is sent before somebody looks"
        for p in shared.parameters():
            secret(p).settle()
        assert session.ledger.rounds - before == rounds[step]
    for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
        near(q.reveal(), p.detach(), 24)


def test_a_loop_of_ones_own(session: Session) -> None:
    parameters = [encml.share(grid(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    gradients = [encml.share(grid(*shape, seed=10 + i)) for i, shape in enumerate(SHAPES)]
    before = session.ledger.rounds
    for p, g in zip(parameters, gradients, strict=True):
        p.sub_(g * g, alpha=0.3)
        p.mul_(0.9)
    assert session.ledger.rounds == before
    found = parameters[2].reveal()
    assert session.ledger.rounds - before == 4 + 2 + 1
    for i, p in enumerate(parameters):
        exact = (grid(*SHAPES[i], seed=i) - 0.3 * grid(*SHAPES[i], seed=10 + i) ** 2) * 0.9
        near(p.reveal(), exact, 4)
    assert session.ledger.rounds - before == 4 + 2 + 1 + len(parameters)
    assert torch.equal(found, parameters[2].reveal())


LOOKS: dict[str, Callable[[SharedTensor], Tensor]] = {
    "reveal": lambda x: x.reveal(),
    "a view made before": lambda x: x.reveal(),
    "a view made after": lambda x: x.t().reveal().t(),
    "a copy": lambda x: copy.deepcopy(x).reveal(),
    "a clone": lambda x: x.clone().reveal(),
    "detached": lambda x: x.detach().reveal(),
    "a product": lambda x: (x * 1).reveal(),
    "saved": lambda x: _saved(x).reveal(),
    "a comparison": lambda x: torch.where((x > 0).reveal(), x.reveal(), x.reveal()),
    "written over": lambda x: x.add_(0.0, alpha=1).reveal(),
    "data": lambda x: x.data.reveal(),
}


def _saved(x: SharedTensor) -> SharedTensor:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    loaded: SharedTensor = torch.load(file)
    return loaded


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_sees_the_update(look: str) -> None:
    x, y = encml.share(grid(3, 4)), encml.share(grid(3, 4, seed=1))
    part = x.t()[1:3]
    x.add_(y, alpha=0.3)
    assert not secret(x).made
    assert "put off" in repr(secret(x))
    exact = grid(3, 4) + 0.3 * grid(3, 4, seed=1)
    found = part.reveal() if look == "a view made before" else LOOKS[look](x)
    near(found, exact.t()[1:3] if look == "a view made before" else exact, 2)


def test_what_was_put_off_reads_what_was_there() -> None:
    """Writing over an operand, whole or in part, comes after the updates that need it; so does writing on a view."""
    for write in (lambda y: y.zero_(), lambda y: y[0].fill_(7.0), lambda y: y.mul_(0.3), lambda y: y.copy_(y * 2)):
        x, y = encml.share(grid(3, 4)), encml.share(grid(3, 4, seed=1))
        x.add_(y, alpha=0.3)
        write(y)
        near(x.reveal(), grid(3, 4) + 0.3 * grid(3, 4, seed=1), 2)
    x, y = encml.share(grid(3, 4)), encml.share(grid(3, 4, seed=1))
    x.add_(y, alpha=0.3)
    x[1].zero_()
    exact = grid(3, 4) + 0.3 * grid(3, 4, seed=1)
    exact[1] = 0
    near(x.reveal(), exact, 2)


def test_updates_that_depend_on_each_other_keep_their_order(session: Session) -> None:
    x, y, z = (encml.share(grid(4, seed=i)) for i in range(3))
    a, b, c = (grid(4, seed=i) for i in range(3))
    x.add_(y, alpha=0.3)
    z.add_(x, alpha=0.7)
    x.mul_(0.5)
    near(z.reveal(), c + 0.7 * (a + 0.3 * b), 4)
    near(x.reveal(), (a + 0.3 * b) * 0.5, 3)
    x.add_(x, alpha=0.5)
    near(x.reveal(), (a + 0.3 * b) * 0.75, 6)


def test_one_gradient_for_two() -> None:
    """Both settle the same product, one after the other."""
    x, y, g = encml.share(grid(4)), encml.share(grid(4, seed=1)), encml.share(grid(4, seed=2))
    product = g * g
    x.add_(product)
    y.add_(product)
    near(x.reveal(), grid(4) + grid(4, seed=2) ** 2, 1)
    near(y.reveal(), grid(4, seed=1) + grid(4, seed=2) ** 2, 1)


def test_errors_come_at_once() -> None:
    x, y = encml.share(grid(3, 4)), encml.share(grid(2, 3, 4))
    with pytest.raises((InvalidTensor, RuntimeError)):
        x.add_(y, alpha=0.3)
    with pytest.raises(InvalidTensor, match="range"):
        x.add_(x.clone(), alpha=1.5 * 2.0**40)
    with Session(seed=2), pytest.raises(InvalidTensor, match="sessions"):
        x.add_(encml.share(grid(3, 4)), alpha=0.3)
    near(x.reveal(), grid(3, 4), 1)


def test_sessions_do_not_meet() -> None:
    with Session(seed=1) as one:
        x = encml.share(grid(4))
        x.mul_(0.3)
        with Session(seed=2) as two:
            y = encml.share(grid(4))
            y.mul_(0.3)
            before = one.ledger.rounds
            near(y.reveal(), grid(4) * 0.3, 2)
            assert (one.ledger.rounds, bool(one.later), bool(two.later)) == (before, True, False)
            y.mul_(0.3)
        assert secret(y).made, "leaving the block works out what was put off"
        near(x.reveal(), grid(4) * 0.3, 2)


def test_after_an_error_the_rest_is_still_there(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process the session goes on; what was cut off is done again when somebody looks again."""
    x, y = encml.share(grid(4)), encml.share(grid(4, seed=1))
    x.mul_(0.3)
    y.mul_(0.7)
    exchange, count = session.parties.net.inner.exchange, iter(range(100))

    def cut(*arguments: Any) -> Any:
        if next(count) == 1:
            raise PartyError("party 1 is gone")
        return exchange(*arguments)

    monkeypatch.setattr(session.parties.net.inner, "exchange", cut)
    with pytest.raises(PartyError):
        x.reveal()
    near(x.reveal(), grid(4) * 0.3, 2)
    near(y.reveal(), grid(4, seed=1) * 0.7, 2)


def test_what_nobody_looks_at_is_not_kept_for_good(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "MOST", 5)
    made = []
    for i in range(12):
        made.append(encml.share(grid(2, seed=i)))
        made[-1].mul_(0.3)
    assert [secret(x).made for x in made] == [True] * 10 + [False] * 2


def _work(parties: Parties | None) -> Iterator[Tensor]:
    torch.manual_seed(0)
    shared = encml.share(model())
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(2):
        optimizer.zero_grad()
        losses(shared, encml.share(grid(6, 4))).backward()
        optimizer.step()
    yield from (secret(p).settle().terms.clone() for p in shared.parameters())


def test_three_parties_apart_hold_the_shares_of_one_process() -> None:
    def apart(parties: Parties) -> list[Tensor]:
        with Session(parties.net, seed=7):
            return list(_work(parties))

    with Session(seed=7):
        together = list(_work(None))
    results, _ = run_apart(apart, 7)
    for rank, found in enumerate(results):
        for ours, expected in zip(found, together, strict=True):
            assert torch.equal(ours, expected[[rank, (rank + 1) % 3]])


def test_clipping_then_updating(session: Session) -> None:
    """All gradients by one secret factor, and the updates after: in the rounds of one tensor, as in float64."""
    plain, x = model(), grid(6, 4)
    shared = encml.share(plain)
    for network, data in ((plain, x), (shared, encml.share(x))):
        losses(network, data).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
    before = session.ledger.rounds
    for network in (plain, shared):
        torch.optim.SGD(network.parameters(), lr=0.05).step()
    for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
        near(q.reveal(), p.detach(), 0.05 * 0.5 / ULP * 2.0**-9)
    assert session.ledger.rounds - before <= 3 + 2 + len(list(shared.parameters()))
