"""encml.profile books every round and byte once, to the module where it was spent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from torch import Tensor, nn

import encml
from encml import Session
from encml.inspect import ModuleCosts
from encml.models import seed_network
from encml.mpc.costs import COSTS
from encml.mpc.parties import Parties
from encml.net.ledger import Cost
from encml.net.transport import PARTIES


class Block(nn.Module):
    """A module with children, work of its own, and an in-place module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.first(x) * x).relu()
        return self.second(self.act(y * 2)) + x


def model() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(Block(), nn.Sequential(Block(), nn.ReLU()))


def sent(node: ModuleCosts) -> tuple[int, tuple[int, int, int]]:
    return node.total.rounds, node.total.sent


def test_everything_is_booked_once(session: Session) -> None:
    shared = encml.share(model())
    x = encml.share(torch.randn(5, 6))
    before = session.ledger.total
    with encml.profile(shared) as costs:
        loss = F.mse_loss(shared(x), encml.share(torch.zeros(5, 6)))
        loss.backward()
        torch.optim.SGD(shared.parameters(), lr=0.1).step()
    spent = session.ledger.total - before
    assert (costs.total.rounds, costs.total.sent, costs.total.calls) == (spent.rounds, spent.sent, spent.calls)
    assert costs.total.seconds == pytest.approx(spent.seconds)
    assert costs.seconds >= costs.total.seconds > 0
    for part in (costs.forward, costs.backward, costs.outside):
        assert part.total.rounds > 0
    assert not session.ledger.listeners


def test_a_module_has_its_own_costs_and_those_below_it(session: Session) -> None:
    shared = encml.share(seed_network())
    x = encml.share(torch.randn(2, 1, 28, 28))
    with encml.profile(shared) as costs:
        shared(x).sum().backward()
    relu = costs.module("2")
    assert (relu.name, relu.kind, relu.children) == ("2", "ReLU", {})
    declared = COSTS["product_truncate"].sent(2 * 16 * 14 * 14, 18) + COSTS["relu"].sent(2 * 16 * 14 * 14, 48)
    assert relu.total.bytes == declared
    assert relu.total.rounds == 13
    assert costs.module("0").total.rounds == 0, "a product is rounded where it is needed"
    assert costs.module("2", backward=True).total.rounds > 0
    assert costs.module("").total.rounds == sum(child.total.rounds for child in costs.forward.children.values())
    assert costs.module("").kind == "Sequential"
    with pytest.raises(KeyError):
        costs.module("77")


def test_nested_modules_make_a_tree(session: Session) -> None:
    shared = encml.share(model())
    with encml.profile(shared) as costs:
        shared(encml.share(torch.randn(5, 6))).sum().backward()
    block = costs.module("1.0")
    assert block.kind == "Block"
    assert set(block.children) == {"1.0.first", "1.0.act", "1.0.second"}
    assert set(block.operations) >= {"mul", "relu", "add"}, "its own work, not its children's"
    assert "addmm" not in block.operations
    assert set(block.children["1.0.act"].operations) >= {"relu_"}
    assert set(costs.module("1.0.act", backward=True).operations) >= {"threshold_backward"}
    assert "mul" in costs.module("1.0", backward=True).operations
    text = str(costs)
    assert all(part in text for part in ("├─ 0 ", "│  ├─ first ", "│  └─ second ", "└─ 1 ", "Linear", "by the clock"))
    assert text.index("forward") < text.index("│  ├─ first") < text.index("backward") < text.index("(outside)")


def test_the_table_can_be_shallow_or_show_operations(session: Session) -> None:
    shared, x = encml.share(model()), encml.share(torch.randn(5, 6))
    with encml.profile(shared) as costs:
        shared(x)
    assert costs.table(depth=0).row_count == 1
    assert costs.table(depth=1).row_count == 3
    assert costs.table().row_count == 11
    assert costs.table(operations=True).row_count > 20
    assert not costs.backward.children


def test_without_a_model_all_is_outside(session: Session) -> None:
    with encml.profile() as costs:
        x = encml.share(torch.randn(3)).requires_grad_()
        (x * x).relu().sum().backward()
    assert {"mul", "relu", "share"} <= set(costs.outside.operations)
    assert "threshold_backward" in costs.backward.operations
    assert not costs.forward.operations


def test_an_error_ends_the_block_cleanly(session: Session) -> None:
    shared, narrow = encml.share(model()), encml.share(torch.randn(5, 5))
    with encml.profile(shared) as costs, pytest.raises(RuntimeError):
        shared(narrow)
    shared(encml.share(torch.randn(5, 6)))
    assert costs.total.rounds == 0
    assert not session.ledger.listeners
    assert all(not part._forward_hooks for part in shared.modules())


def test_real_parties_see_their_own_bytes() -> None:
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4)

    def script(parties: Parties) -> tuple[Cost, Cost, str]:
        with Session(parties.net, seed=5):
            shared = encml.share(plain)
            with encml.profile(shared) as costs:
                shared(encml.share(x)).sum().backward()
        return costs.module("1").total, costs.module("0", backward=True).total, str(costs)

    with Session(seed=5):
        shared = encml.share(plain)
        with encml.profile(shared) as costs:
            shared(encml.share(x)).sum().backward()
    for rank, (forward, backward, text) in enumerate(run_apart(script, seed=5)[0]):
        for apart, together in ((forward, costs.module("1")), (backward, costs.module("0", backward=True))):
            assert apart.rounds == together.total.rounds
            assert apart.sent[rank] == together.total.sent[rank]
            assert all(apart.sent[other] == 0 for other in range(PARTIES) if other != rank)
        assert f"sent by party {rank}" in " ".join(text.split())
