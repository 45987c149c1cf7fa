"""Payloads on another device: the same shares as on the CPU, bit for bit, from the same masks.

``another_device`` stands for what this machine lacks. The tests named after CUDA run where a GPU is present.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from another_device import DEVICE, AnotherDevice
from party_threads import run_apart
from torch import Tensor, nn

import encml
from encml import Session, UnsupportedOperation, models
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.net.local import LocalTransport
from encml.net.transport import PARTIES
from encml.tensor.shared import secret

CUDA = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: payloads on one are not tested"),
)
devices = pytest.mark.parametrize("device", [pytest.param(DEVICE, id="pretended"), CUDA])
Work = Callable[[], list[Tensor]]
"""Makes some SharedTensors in the current session."""


@contextmanager
def there(device: torch.device | str) -> Iterator[Session]:
    pretended = nullcontext() if torch.device(device).type == "cuda" else AnotherDevice()
    with pretended, Session(LocalTransport(tap=sent_from_here), seed=5, device=device) as session:
        yield session


def sent_from_here(source: int, destination: int, payload: Tensor, operation: str) -> None:
    """What travels is in the processor's memory, or sockets could not take it."""
    assert payload.device.type == "cpu", f"{operation} sends from {payload.device}"


def payloads(work: Work, device: torch.device | str | None = None) -> list[Tensor]:
    """What ``work`` makes, share by share, in a session on the CPU or a device."""
    if device is None:
        with Session(seed=5):
            return [secret(x).payload.clone() for x in work()]
    with there(device):
        made = [secret(x).payload for x in work()]
        assert {payload.device.type for payload in made} == {torch.device(device).type}
        return [payload.cpu() for payload in made]


def same(work: Work, device: torch.device | str) -> None:
    for here, moved in zip(payloads(work), payloads(work, device), strict=True):
        assert here.shape == moved.shape
        assert torch.equal(here, moved)


def data(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@devices
def test_what_is_shared_lies_there_and_is_revealed_here(device: torch.device | str) -> None:
    with there(device) as session:
        x = encml.share(torch.tensor([1.5, -2.0, 0.25]))
        assert session.device == torch.device(device)
        assert secret(x).payload.device.type == torch.device(device).type
        assert x.device.type == "cpu"
        assert x.reveal().tolist() == encml.reveal(x, to=2).tolist() == [1.5, -2.0, 0.25]
        assert torch.zeros_like(x).reveal().tolist() == [0, 0, 0]
        assert (x + torch.tensor([1.0, 2.0, 3.0])).reveal().tolist() == [2.5, 0, 3.25]
        given = torch.tensor([2.0]).to(device)
        assert encml.share(given).reveal().tolist() == [2]
        assert (x * given).reveal().tolist() == [3, -4, 0.5]
        with pytest.raises(UnsupportedOperation, match="stays on cpu"):
            x.to(DEVICE)


@devices
@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: x * y,
        lambda x, y: x @ y.t() - 1,
        lambda x, y: x.relu() + y.abs(),
        lambda x, y: torch.where(x > y, x, y),
        lambda x, y: x.softmax(1),
        lambda x, y: F.layer_norm(x, (6,), weight=y[0], bias=y[1]),
        lambda x, y: x.sigmoid() + y.exp() + y.abs().add(1).log(),
        lambda x, y: x / (y.abs() + 1),
        lambda x, y: torch.cat([x, y]).sort(1).values,
        lambda x, y: x.argmax(1),
        lambda x, y: x[[2, 0]].index_select(1, torch.tensor([5, 1])),
        lambda x, y: F.gelu(x) + y.square().mean(0, keepdim=True).sqrt(),
        lambda x, y: x.cumsum(1).flip(0),
        lambda x, y: (x @ data(6, 6, seed=4)) * torch.arange(6),
    ],
    ids=[
        "product", "matmul", "relu", "where", "softmax", "layer norm", "curves", "division", "sort", "argmax",
        "indices", "gelu", "sums", "public factors",
    ],
)  # fmt: skip
def test_functions(f: Callable[[Tensor, Tensor], Tensor], device: torch.device | str) -> None:
    same(lambda: [f(encml.share(data(4, 6, seed=2)), encml.share(data(4, 6, seed=3)))], device)


@devices
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_and_pooling_with_gradients(groups: int, device: torch.device | str) -> None:
    def work() -> list[Tensor]:
        x = encml.share(data(2, 4, 9, 9)).requires_grad_()
        weight = encml.share(data(6, 4 // groups, 3, 3, seed=2)).requires_grad_()
        y = F.conv2d(x, weight, stride=2, padding=1, groups=groups)
        z = F.avg_pool2d(F.max_pool2d(y, 2), 2) + F.conv_transpose2d(y[:, :4], data(4, 6, 1, 1)).mean()
        z.sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        assert weight.grad is not None
        return [z, x.grad, weight.grad]

    same(work, device)


def step(model: nn.Module, x: Tensor, labels: Tensor, optimizer: type[torch.optim.Optimizer], **options: Any) -> Work:
    def work() -> list[Tensor]:
        shared = encml.share(model)
        chosen: Any = optimizer(shared.parameters(), lr=0.125, **options)
        for _ in range(2):
            chosen.zero_grad()
            loss = F.cross_entropy(shared(encml.share(x)), encml.share(labels))
            loss.backward()  # type: ignore[no-untyped-call]
            chosen.step()
        return [loss, *shared.parameters()]

    return work


@devices
@pytest.mark.parametrize("letter", ["a", "d"])
def test_training_steps(letter: str, device: torch.device | str) -> None:
    torch.manual_seed(0)
    model = {"a": models.network_a, "d": models.network_d}[letter]()
    x = data(4, 784) if letter == "a" else data(4, 1, 28, 28)
    same(step(model, x, torch.tensor([3, 1, 4, 1]), torch.optim.SGD, momentum=0.5), device)


@devices
def test_inference(device: torch.device | str) -> None:
    torch.manual_seed(0)
    model = models.seed_network()

    def work() -> list[Tensor]:
        with torch.no_grad():
            return [encml.share(model)(encml.share(data(2, 1, 28, 28)))]

    same(work, device)


def test_parties_apart_hold_the_same_shares_wherever_these_lie() -> None:
    """Party 1's lie elsewhere, the others' do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    work = step(model, data(2, 1, 8, 8), torch.tensor([2, 0]), encml.optim.Adam)

    def apart(parties: Parties) -> list[Tensor]:
        elsewhere = parties.plays(1)
        with (
            AnotherDevice() if elsewhere else nullcontext(),
            Session(parties.net, seed=5, device=DEVICE if elsewhere else "cpu"),
        ):
            made = [secret(x).payload for x in work()]
            assert {payload.device.type for payload in made} == {DEVICE.type if elsewhere else "cpu"}
            return [payload.cpu() for payload in made]

    together = payloads(work)
    results, transports = run_apart(apart, 5)
    for rank, found in enumerate(results):
        for whole, part in zip(together, found, strict=True):
            assert torch.equal(part, whole[[rank, (rank + 1) % PARTIES]])
    assert {payload.device.type for transport in transports for _, _, payload in transport.transcript} == {"cpu"}


@devices
def test_files_of_shares_are_the_same_whatever_they_are_loaded_to(device: torch.device | str) -> None:
    with there(device):
        file = io.BytesIO()
        torch.save(encml.share(data(3, 2)), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert secret(loaded).payload.device.type == torch.device(device).type
    with Session(seed=6):
        file.seek(0)
        assert torch.equal(secret(torch.load(file, weights_only=True)).payload, secret(loaded).payload.cpu())


def test_the_pretended_device_refuses_what_a_real_one_does() -> None:
    """Else the tests above could not fail."""
    with there(DEVICE) as session:
        x = public(session.parties, torch.arange(6).view(2, 3))[0]
        for wrong in (lambda: x @ x.t(), lambda: x + torch.ones(3), lambda: x.index_select(0, torch.tensor([1]))):
            with pytest.raises(RuntimeError, match=r"same device|not implemented"):
                wrong()
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        assert torch.equal((x.double() @ x.t().double()).cpu(), torch.tensor([[5.0, 14], [14, 50]]).double())
