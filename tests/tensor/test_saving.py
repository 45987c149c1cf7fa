"""Shares in files: what torch.save writes and torch.load reads, in one process and at parties apart; who may not."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from reference import grid, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor, ProtocolError, SecretError
from encml.mpc.parties import Parties
from encml.tensor.shared import secret


def saved(x: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return file


def again(x: Any, **options: Any) -> Any:
    return torch.load(saved(x), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: encml.share(grid(3, 4)),
        lambda: encml.share(grid(3, 4).float()),
        lambda: encml.share(grid(3, 4)).t(),
        lambda: encml.share(grid(3, 4))[1:, ::2],
        lambda: encml.share(grid(3, 1)).expand(3, 4),
        lambda: encml.share(grid()),
        lambda: encml.share(torch.zeros(0, 2)),
        lambda: encml.share(torch.arange(5)),
        lambda: encml.share(grid(5)) > 0,
        lambda: encml.share(grid(5)).requires_grad_(),
        lambda: encml.share(grid(5)).mean(),
    ],
)
def test_what_is_saved_comes_back(make: Callable[[], SharedTensor]) -> None:
    x = make()
    y = again(x)
    assert isinstance(y, SharedTensor)
    assert (y.shape, y.dtype, y.requires_grad, y.is_leaf) == (x.shape, x.dtype, x.requires_grad, True)
    assert torch.equal(y.detach().reveal(), x.detach().reveal())
    assert torch.equal(secret(y).payload, secret(x).payload)
    if x.is_contiguous() or (x.ndim == 2 and x.t().is_contiguous()):
        assert y.stride() == x.stride()
    with torch.no_grad():
        y += y
    assert torch.equal(y.reveal(), x.detach().reveal() * 2 if x.dtype != torch.bool else x.reveal())


def test_a_pending_product_is_settled_first(session: Session) -> None:
    x = encml.share(grid(4)) * encml.share(grid(4, seed=1))
    assert secret(x).pending
    file = saved(x)
    assert not secret(x).pending
    assert session.ledger.costs["save"].rounds == 3
    near(torch.load(file).reveal(), grid(4) * grid(4, seed=1), 1)


def test_a_file_holds_this_process_s_shares_and_no_more() -> None:
    """Two words of 8 bytes an element apart, three in one process; a part of a tensor is saved without the rest."""
    x = encml.share(grid(1000))
    for y, n in ((x, 1000), (x[:10], 10), (x.view(10, 100)[:, 3], 10)):
        with zipfile.ZipFile(saved(y)) as file:
            data = [file.read(name) for name in file.namelist() if "/data/" in name]
        assert [len(part) for part in data] == [3 * 8 * n]
    whole = secret(x).payload.numpy().tobytes()
    plain = (grid(1000) * 2**16).long().numpy().tobytes()
    blob = saved(x).getvalue()
    assert whole in blob
    assert plain not in blob
    assert grid(1000).numpy().tobytes() not in blob


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.frozen = nn.Parameter(grid(2), requires_grad=False)
        self.register_buffer("mean", grid(3, seed=1))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - self.mean) + self.frozen


def test_a_model_s_state() -> None:
    model, other = encml.share(Net()), encml.share(Net())
    state = again(model.state_dict())
    assert isinstance(state, OrderedDict)
    assert {type(v) for v in state.values()} == {SharedTensor, Tensor}
    other.load_state_dict(state)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        near(encml.reveal(a) if name != "count" else a, encml.reveal(b) if name != "count" else b, 0)
    with pytest.raises(RuntimeError, match="plain tensor"):
        Net().load_state_dict(state)
    other.load_state_dict(state, assign=True)
    assert all(isinstance(p, nn.Parameter) for p in other.parameters())
    near(other(encml.share(grid(2, 3))).detach().reveal(), model(encml.share(grid(2, 3))).detach().reveal(), 8)


def test_a_whole_model() -> None:
    """weights_only=False, as for plain modules."""
    model = encml.share(Net())
    loaded = again(model, weights_only=False)
    assert [type(p) for p in loaded.parameters()] == [SharedTensor] * 3
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in loaded.parameters())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    near(loaded.layer.weight.detach().reveal(), model.layer.weight.detach().reveal(), 0)


def test_an_optimizer_s_state_and_going_on_from_it() -> None:
    """Three steps, a checkpoint, two more: the same as five in one go, but for rounding."""
    x, y = encml.share(grid(8, 3)), encml.share(grid(8, 2, seed=1))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    model = encml.share(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
    for _ in range(3):
        step(model, optimizer)
    file = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    for _ in range(2):
        step(model, optimizer)
    resumed = encml.share(Net())
    other = torch.optim.SGD(resumed.parameters(), lr=0.125, momentum=0.5)
    state = torch.load(file)
    resumed.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    assert state["epoch"] == 3
    for _ in range(2):
        step(resumed, other)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        near(a.detach().reveal(), b.detach().reveal(), 40)


def test_cost(session: Session) -> None:
    """Saving what is settled is local; loading takes 1 round a tensor, in which neighbours compare digests."""
    x = encml.share(grid(100))
    with session.ledger.measure() as spent:
        file = saved([x, x.detach()])
    assert spent[0].rounds == 0
    with session.ledger.measure() as spent:
        torch.load(file)
    assert (spent[0].rounds, spent[0].bytes) == (2, 2 * 3 * 16)


def test_in_another_session() -> None:
    file = saved(encml.share(grid(5)))
    with Session() as other:
        y = torch.load(file)
        assert y.session is other
        near(y.reveal(), grid(5), 0)
    file.seek(0)
    with Session(fraction_bits=12), pytest.raises(InvalidTensor, match="saved at 16 fraction bits"):
        torch.load(file)


# Parties apart -------------------------------------------------------------------------------------------------------


def files() -> list[bytes]:
    """What the three parties saved of the same model."""

    def apart(parties: Parties) -> bytes:
        with Session(parties.net, seed=7):
            model = encml.share(MODEL, owner=2)
            product = model.layer.weight * model.layer.weight
            return saved({"state": model.state_dict(), "product": product.detach()}).getvalue()

    return run_apart(apart, 7)[0]


MODEL = Net()


def load_apart(blobs: list[bytes]) -> list[tuple[Tensor, Tensor]]:
    def apart(parties: Parties) -> tuple[Tensor, Tensor]:
        with Session(parties.net, seed=9):
            loaded = torch.load(io.BytesIO(blobs[parties.local[0]]))
            return loaded["state"]["layer.weight"].reveal(), loaded["product"].reveal()

    return run_apart(apart, 9)[0]


def test_each_party_saves_and_loads_its_own() -> None:
    blobs = files()
    weight = MODEL.layer.weight.detach()
    integers = (weight * 2**16).round().long().numpy().tobytes()
    for blob in blobs:
        with zipfile.ZipFile(io.BytesIO(blob)) as file:
            sizes = sorted(len(file.read(name)) for name in file.namelist() if "/data/" in name)
        assert sizes == sorted([8, *(2 * 8 * n for n in (2, 2, 3, 6, 6))])
        assert integers not in blob
    for found, product in load_apart(blobs):
        near(found, weight, 0.51)
        near(product, weight**2, 4)


def test_another_party_s_file_is_refused() -> None:
    blobs = files()
    with pytest.raises(InvalidTensor, match=r"parties \[\d\]; this one has \[\d\]"):
        load_apart([blobs[1], blobs[2], blobs[0]])
    with pytest.raises(InvalidTensor, match=r"parties \[0\]; this one has \[0, 1, 2\]"):
        torch.load(io.BytesIO(blobs[0]))


def test_files_of_different_moments_are_refused() -> None:
    """One party has an older file of the same shapes: without the check the values would be garbage."""
    first, second = files(), files()
    for a, b in zip(first, second, strict=True):
        assert len(a) == len(b)
    load_apart(first)

    def other(parties: Parties) -> bytes:
        with Session(parties.net, seed=8):
            model = encml.share(MODEL, owner=2)
            product = model.layer.weight * model.layer.weight
            return saved({"state": model.state_dict(), "product": product.detach()}).getvalue()

    older = run_apart(other, 8)[0]
    for stale in range(3):
        mixed = [older[rank] if rank == stale else first[rank] for rank in range(3)]
        with pytest.raises(ProtocolError, match="do not belong together"):
            load_apart(mixed)


# Files that are not what they should be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"payload": torch.zeros(3, 2)},
        {"payload": torch.zeros(2, 2, dtype=torch.int64)},
        {"payload": torch.zeros((), dtype=torch.int64)},
        {"payload": torch.zeros(3, 2, dtype=torch.int64, device="meta")},
        {"fraction_bits": -1},
        {"fraction_bits": 17},
        {"dtype": "torch.float16"},
        {"dtype": "__main__"},
        {"local": [0]},
        {"local": []},
        {"session_bits": 20},
    ],
)
def test_malformed_files_are_refused(change: dict[str, Any]) -> None:
    from_file = {
        "payload": torch.zeros(3, 2, dtype=torch.int64), "fraction_bits": 16, "dtype": "torch.float32",
        "requires_grad": False, "is_parameter": False, "local": [0, 1, 2], "session_bits": 16,
    }  # fmt: skip
    encml.tensor.saving.rebuild(**from_file)
    with pytest.raises(InvalidTensor):
        encml.tensor.saving.rebuild(**{**from_file, **change})


def test_a_fresh_process_reads_a_file_by_the_defaults(tmp_path: Path) -> None:
    """``encml.Session`` is all that a program needs to have used."""
    torch.save({"a": encml.share(torch.tensor([1.5, -2.0]))}, tmp_path / "a.pt")
    code = (
        "import sys, torch, encml\nwith encml.Session():\n    print(torch.load(sys.argv[1])['a'].reveal().tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.pt"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[1.5, -2.0]"


# Everything else that pickles ----------------------------------------------------------------------------------------


def through_a_queue(x: Any) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    queue.put(x)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: nn.Parameter(x), lambda x: {"a": [x]}, lambda x: (x * x)[None]]
)
@pytest.mark.parametrize(
    "send",
    [
        pickle.dumps,
        lambda x: pickle._dumps(x),
        ForkingPickler.dumps,
        through_a_queue,
        lambda x: torch.multiprocessing.SimpleQueue().put(x),
    ],
)
def test_only_torch_save_pickles(send: Callable[[Any], Any], wrap: Callable[[SharedTensor], Any]) -> None:
    with pytest.raises(SecretError, match=r"torch.save\(\) writes"):
        send(wrap(encml.share(grid(3))))


def test_copies_do_not_go_by_pickling() -> None:
    x = encml.share(grid(3))
    with pytest.raises(SecretError, match="not pickled"):
        copy.copy(x)
    near(copy.deepcopy(x).reveal(), grid(3), 0)


def test_finer_digits_of_running_variances_survive() -> None:
    """A copy, another dtype and a file give what the module itself gives."""
    norm, x = nn.BatchNorm1d(4).double().eval(), torch.full((2, 4), 0.125, dtype=torch.float64)
    norm.running_var.fill_(1e-4)
    shared, expected = encml.share(norm), norm(x)
    file = io.BytesIO()
    torch.save(shared.state_dict(), file)
    file.seek(0)
    loaded = encml.share(nn.BatchNorm1d(4).double().eval())
    loaded.load_state_dict(torch.load(file))
    for module in (shared, copy.deepcopy(shared), loaded, encml.share(norm).float().double()):
        found = module(encml.share(x)).reveal()
        assert float(((found - expected).abs().max() / expected.max()).detach()) < 5e-4
