"""Private inference on test images, measured, and compared with the same model in plain PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from encml.config.experiment import InferenceConfig
from encml.experiment.display import Display
from encml.experiment.metrics import Batch, Inference, operation_costs
from encml.mpc.session import Session
from encml.net.ledger import Cost
from encml.serving import Client, Cluster
from encml.tensor import share

REQUESTS = 20
"""So many requests are measured at each batch size but the largest, at which all images are classified."""

Query = Callable[[Tensor], tuple[Tensor, Cost]]
"""Scores (batch, classes) of images (batch, ...), and what they cost: rounds, payload bytes, seconds."""
Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Classified:
    """The figures, and the class predicted for every image, int64 (N,)."""

    record: Inference
    predicted: Tensor


def classify(
    config: InferenceConfig,
    model: nn.Module,
    shares: Path,
    images: Tensor,
    labels: Tensor,
    display: Display,
    phase: Phase,
) -> Classified:
    """Classify the first ``config.images`` of ``images`` (N, 1, 28, 28) privately, and compare with ``model``.

    shares: the folder into which ``model`` was saved as shares; what is served is read from there.

    All images are classified at the largest configured batch size, and some at each of the others, after one request at
    each size that is not measured. Raises PartyError where a party fails.
    """
    images, labels = images[: config.images], labels[: config.images]
    with torch.no_grad():
        plain = model(images).argmax(1)
    same = torch.ones(len(images), dtype=torch.bool)
    batches: list[Batch] = []
    predicted = plain
    largest = max(config.batch_sizes)
    with _parties(config, model, shares, display, phase) as query:
        display.phase(f"private inference on {len(images)} test images")
        for size in sorted(set(config.batch_sizes)):
            chosen = images if size == largest else images[: size * REQUESTS]
            with phase("Private inference"):
                predicted, batch = measure(query, chosen, size, display)
            same[: len(predicted)] &= predicted == plain[: len(predicted)]
            batches.append(batch)
    with phase("Counting by operation"):
        costs = _by_operation(model, images[:largest])
    record = Inference(
        transport=config.transport,
        images=len(images),
        agreeing=int(same.sum()),
        accuracy=float((predicted == labels).double().mean()),
        plain_accuracy=float((plain == labels).double().mean()),
        batches=tuple(batches),
        costs=operation_costs(costs),
    )
    return Classified(record, predicted)


def measure(query: Query, images: Tensor, size: int, display: Display) -> tuple[Tensor, Batch]:
    """Classes of the images, in requests of ``size``, and what a request of that size costs."""
    _, cost = query(images[:size])
    found: list[Tensor] = []
    start = time.perf_counter()
    for part in torch.split(images, size):
        scores, _ = query(part)
        found.append(scores.argmax(1))
        display.images(sum(map(len, found)), len(images), size)
    seconds = time.perf_counter() - start
    batch = Batch(
        batch_size=size,
        requests=len(found),
        ms_per_image=1000 * seconds / len(images),
        rounds=cost.rounds,
        bytes_per_party=cost.bytes_per_party,
    )
    return torch.cat(found), batch


@contextmanager
def _parties(
    config: InferenceConfig, model: nn.Module, shares: Path, display: Display, phase: Phase
) -> Iterator[Query]:
    """The three parties with the model among them."""
    if config.transport == "in_process":
        session = Session()
        shared = share(model, session=session)
        yield lambda images: _ask(shared, session, images)
        return
    with party_processes(config, shares, display, phase) as query:
        yield query


@contextmanager
def party_processes(config: InferenceConfig, shares: Path, display: Display, phase: Phase) -> Iterator[Query]:
    """Three processes that serve the model whose shares lie in ``shares``; stopped at the end, whatever ends it."""
    display.phase("starting three parties")
    cluster = Cluster.local(timeout=config.timeout)
    try:
        with phase("Starting three parties"):
            cluster.start()
        with phase("Sharing the model"):
            cluster.share_saved(shares)
            cluster.serve()
        with cluster.client() as client:
            yield lambda images: _query(client, images)
    finally:
        cluster.close()


def _query(client: Client, images: Tensor) -> tuple[Tensor, Cost]:
    """A request to the three processes."""
    scores = client.query_model(images)
    spent = client.last_cost
    assert spent is not None  # there has been a query
    return scores, Cost(spent.rounds, spent.sent_bytes, spent.seconds)


def _ask(shared: nn.Module, session: Session, images: Tensor) -> tuple[Tensor, Cost]:
    """A request in this process; its cost includes sharing the images and revealing the scores."""
    with torch.no_grad(), session.ledger.measure() as spent:
        scores: Tensor = shared(share(images, session=session)).reveal()
    return scores, spent[0]


def _by_operation(model: nn.Module, images: Tensor) -> dict[str, Cost]:
    """What one request costs by operation, counted in this process: rounds and bytes are those between processes."""
    session = Session()
    shared = share(model, session=session)
    before = session.ledger.costs.copy()
    _ask(shared, session, images)
    return {name: cost - before.get(name, Cost()) for name, cost in session.ledger.costs.items()}
