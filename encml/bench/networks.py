"""Whole networks with secret weights and inputs: private inference, and one step of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encml.bench.case import Case, Job, Payload, normal
from encml.bench.primitives import fresh, settled
from encml.models import network_a, network_b, network_c, network_d, seed_network
from encml.mpc.session import Session
from encml.serving.export import export_model
from encml.tensor import SharedTensor, share

_LEARNING_RATE = 0.01
_CLASSES = 10

Size = tuple[int, ...]
Loss = Callable[[Tensor, Tensor], Tensor]


def _first_weights(make: Callable[[], nn.Sequential]) -> nn.Sequential:
    """A network with the same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _inference(session: Session, size: Size) -> Job:
    """``size``: batch. Images and weights are shared; scores stay shared."""
    model = _first_weights(seed_network)
    images = normal(size[0], 1, 28, 28).clamp(0, 1)
    x, shared = share(images, session=session), share(model, session=session)

    def run() -> SharedTensor:
        with torch.no_grad():
            return settled(shared(fresh(x)))

    with torch.no_grad():
        return Job(run, model.double()(images.double()))


def _training(make: Callable[[], nn.Sequential], loss: Loss) -> Callable[[Session, Size], Job]:
    """One step of SGD on secret images and secret one-hot labels; ``size``: batch."""

    def prepare(session: Session, size: Size) -> Job:
        images = normal(size[0], 1, 28, 28).clamp(0, 1)
        labels = F.one_hot(torch.arange(size[0]) % _CLASSES, _CLASSES).float()
        plain = _first_weights(make)
        model = share(plain, session=session)
        x, y = share(images, session=session), share(labels, session=session)
        optimizer = torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE)

        def run() -> None:
            loss(model(fresh(x)), fresh(y)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for parameter in model.parameters():
                settled(parameter)
            # Here and not first, so that no step finds memory that the one before it left behind.
            optimizer.zero_grad()

        given = sum(value.numel() for value in (*plain.parameters(), images, labels))
        return Job(run, payload=Payload(given, _activations(plain, images)))

    return prepare


def _activations(model: nn.Sequential, images: Tensor) -> int:
    """The elements of all layers' outputs, those that are views of their inputs left out."""
    count, x = 0, images
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            count += 0 if isinstance(layer, nn.Flatten) else x.numel()
    return count


def _served(session: Session, size: Size) -> Job:
    """As ``_inference``, in the form in which an owner has it served who declares that inputs lie between 0 and 1."""
    model = _first_weights(seed_network)
    images = normal(size[0], 1, 28, 28).clamp(0, 1)
    graph, parameters = export_model(model, images, session.fraction_bits, (0.0, 1.0))
    x = share(images, session=session)
    shared: dict[str, Tensor] = {name: share(value, session=session) for name, value in parameters.items()}

    def run() -> SharedTensor:
        with torch.no_grad():
            return settled(graph.run(shared, fresh(x)))

    with torch.no_grad():
        return Job(run, model.double()(images.double()))


def _seed(batch: int, quick: int) -> tuple[Case, Case]:
    name, does = f"seed-{batch}", "seed network, private inference, batch {0}"
    declared = Case(f"{name}-range", "networks", f"{does}, inputs declared", (batch,), (quick,), _served)
    return Case(name, "networks", does, (batch,), (quick,), _inference), declared


def _step(letter: str, make: Callable[[], nn.Sequential], name: str, text: str, loss: Loss) -> Case:
    does = f"network {letter.upper()}, training step, {text}, batch {{0}}"
    return Case(f"network-{letter}-{name}", "networks", does, (128,), (4,), _training(make, loss))


def _entropy_step(letter: str, make: Callable[[], nn.Sequential]) -> Case:
    return _step(letter, make, "cross-entropy", "cross-entropy", F.cross_entropy)


NETWORKS: tuple[Case, ...] = (
    *_seed(1, 1),
    *_seed(64, 3),
    _step("a", network_a, "mse", "squared error", F.mse_loss),
    _entropy_step("a", network_a),
    _entropy_step("b", network_b),
    _entropy_step("c", network_c),
    _entropy_step("d", network_d),
)
