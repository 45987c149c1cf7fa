"""Models trained on shares, served from their shares; nothing is opened from the first batch to the first answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from torch import Tensor, nn
from typer.testing import CliRunner

import encml
from encml import Session
from encml.cli.app import app
from encml.errors import InvalidTensor, ProtocolError, ServingError, UnsupportedOperation
from encml.models import network_a, network_b, network_c, network_d
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport
from encml.ring.fixed import decode, encode
from encml.serving import (
    Cluster,
    PartyModel,
    install_file,
    load_model_shares,
    load_party_file,
    save_trained_shares,
    trained_shares,
)
from encml.serving.model_store import party_file
from encml.tensor.shared import secret

torch.manual_seed(5)
NETWORK_A = network_a()
"""Made once: PyTorch's generator is one for all threads."""
IMAGES, LABELS = torch.rand(8, 1, 28, 28), torch.randint(0, 10, (8,))


def trained(model: nn.Module, images: Tensor = IMAGES, labels: Tensor = LABELS, steps: int = 2) -> nn.Module:
    """Trained on shares in the current session."""
    shared = encml.share(model)
    x = encml.share(images)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(shared(x), labels).backward()
        optimizer.step()
    return shared


def plain_of(parts: tuple[PartyModel, ...]) -> dict[str, Tensor]:
    """The weights that three parties' shares add up to."""
    return {
        key: decode(torch.stack([part.tensors[key][0] for part in parts]).sum(0), parts[0].fraction_bits)
        for key in parts[0].tensors
    }


def revealed(shared: nn.Module, model: nn.Module) -> nn.Module:
    """``model`` with the values of the shared one, in evaluation mode."""
    with torch.no_grad():
        values = shared.state_dict()
        model.load_state_dict({k: v.reveal() if isinstance(v, encml.SharedTensor) else v for k, v in values.items()})
    return model.eval()


class Tap:
    """Every message of a session: (destination, payload, operation)."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Tensor, str]] = []

    def __call__(self, source: int, destination: int, payload: Tensor, operation: str) -> None:
        self.messages.append((destination, payload.clone(), operation))


@pytest.mark.parametrize("make", [network_a, network_b, network_c, network_d])
def test_the_files_hold_what_was_trained(make: Callable[[], nn.Sequential]) -> None:
    torch.manual_seed(1)
    with Session(seed=1):
        shared = trained(make(), steps=1)
        parts = trained_shares(shared, IMAGES, "digits")
        model = revealed(shared, make())
    with torch.no_grad():
        expected = model(IMAGES)
        assert torch.allclose(parts[0].graph.run(plain_of(parts), IMAGES), expected, atol=1e-5)
    assert {(p.name, p.model_id, p.fraction_bits) for p in parts} == {("digits", parts[0].model_id, 16)}
    assert re.fullmatch("[0-9a-f]{32}", parts[0].model_id)
    for part, following in zip(parts, (*parts[1:], parts[0]), strict=True):
        assert part.digests[1] == following.digests[0]


def test_nothing_is_opened_between_training_and_the_files() -> None:
    tap = Tap()
    with Session(LocalTransport(tap=tap)) as session:
        shared = trained(NETWORK_A, steps=1)
        secrets = {key: p._secret for key, p in shared.named_parameters()}
        session.catch_up()  # the last updates, put off until somebody looks
        tap.messages.clear()
        before = session.ledger.total
        parts = trained_shares(shared, encml.share(IMAGES))
        spent = session.ledger.total - before
        weights = plain_of(parts)
        assert not any("reveal" in operation for _, _, operation in tap.messages)
        # What a party holds and what it was sent do not add up to the weights, and no message is a weight itself.
        for destination, payload, _ in tap.messages:
            for key, held in secrets.items():
                if payload.numel() != weights[key].numel():
                    continue
                own = session.parties.held(held.payload)[destination]
                value = encode(weights[key], 16)
                for known in (torch.zeros_like(value), own[0], own[1], own[0] + own[1]):
                    assert not torch.equal(known + payload.reshape(value.shape), value)
        # The example is shared here: one round and its mask more.
        assert spent.rounds <= 4
        assert spent.bytes_per_party <= 8 * (sum(value.numel() for value in weights.values()) + IMAGES.numel()) + 100
        # Dealt anew: no share is one of those that parties had, which their checkpoints hold, too.
        for key, held in secrets.items():
            assert all((held.payload[i] != part.tensors[key][0]).float().mean() > 0.99 for i, part in enumerate(parts))


def test_every_file_alone_is_uniform() -> None:
    with Session():
        model = nn.Sequential(nn.Linear(64, 64, bias=False))
        nn.init.zeros_(model[0].weight)
        parts = trained_shares(encml.share(model), torch.zeros(1, 64))
        public = nn.Sequential(*encml.share(model), nn.Linear(64, 64, bias=False))
        nn.init.zeros_(public[1].weight)
        frozen = trained_shares(public, torch.zeros(1, 64))
    for part in (*parts, *frozen):
        for shares in part.tensors.values():
            counts = torch.bincount(shares.view(torch.uint8).flatten().long(), minlength=256).double()
            expected = counts.sum() / 256
            # 255 degrees of freedom: beyond 400 once in 10^8 draws.
            assert float(((counts - expected) ** 2 / expected).sum()) < 400


class Tied(nn.Module):
    """One weight at two places, a mask that is no parameter, and batch norms with and without a layer before them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm1d(16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.linspace(0, 1, 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.first(self.alone(x.flatten(1)))
        result: Tensor = self.second(torch.relu(x)) * self.mask
        return result


def test_batch_norms_fold_on_shares_and_what_is_tied_or_plain_stays_right() -> None:
    torch.manual_seed(2)
    images, labels = torch.rand(16, 1, 4, 4), torch.randint(0, 16, (16,))
    with Session(seed=2) as session:
        shared = trained(Tied(), images, labels)
        with session.ledger.measure() as spent:
            parts = trained_shares(shared, images)
        model = revealed(shared, Tied())
    assert not any("norm" in node.op for node in parts[0].graph.nodes)
    assert "second.weight" not in parts[0].tensors or "first.weight" not in parts[0].tensors
    assert shared.training
    with torch.no_grad():
        expected = model(images)
        found = parts[0].graph.run(plain_of(parts), images)
    assert float((found - expected).abs().max()) < 2e-3 * float(expected.abs().max() + 1)
    # Both norms in the rounds of one, then a product and a truncation for each of them.
    assert spent[0].rounds <= 45


def test_what_cannot_be_served_is_named() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else self.layer(x)

    x = torch.rand(2, 4)
    with Session() as session:
        with pytest.raises(UnsupportedOperation, match="cannot be exported"):
            trained_shares(encml.share(Branches()), x)
        loose = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
        with pytest.raises(UnsupportedOperation, match="without running statistics"):
            trained_shares(encml.share(loose), x)
        with pytest.raises(InvalidTensor, match="no weight of the model is shared"):
            trained_shares(nn.Linear(4, 4), x)
        with pytest.raises(InvalidTensor, match="single number"):
            trained_shares(encml.share(nn.Linear(4, 4)), torch.tensor(1.0))
        with pytest.raises(ServingError, match="cannot name a model"):
            trained_shares(encml.share(nn.Linear(4, 4)), x, "a b")
        other = encml.share(nn.Linear(4, 4), session=Session(LocalTransport()))
        with pytest.raises(InvalidTensor, match="of several sessions"):
            trained_shares(nn.Sequential(encml.share(nn.Linear(4, 4)), other), x)
        assert session.ledger.total.rounds < 20


def test_parties_that_save_different_models_are_told() -> None:
    def save(parties: Parties) -> None:
        with Session(parties.net, seed=3):
            trained_shares(encml.share(nn.Linear(4, 4)), torch.rand(1, 4), f"model-{parties.local[0] // 2}")

    with pytest.raises(ProtocolError, match="save different models"):
        run_apart(save, 3)


def test_files_of_different_runs_are_refused(tmp_path: Path) -> None:
    with Session():
        shared = encml.share(nn.Linear(4, 3))
        for folder in ("a", "b"):
            paths = save_trained_shares(shared, torch.rand(1, 4), tmp_path / folder)
            assert paths == [party_file(tmp_path / folder, rank) for rank in range(3)]
    assert load_model_shares(tmp_path / "a")[0].model_id != load_model_shares(tmp_path / "b")[0].model_id
    party_file(tmp_path / "b", 1).rename(party_file(tmp_path / "a", 1))
    with pytest.raises(ServingError, match="parties 0 and 1 come from different sharings"):
        load_model_shares(tmp_path / "a")
    # The same id does not make them belong together.
    other = load_party_file(party_file(tmp_path / "a", 1), 1)
    replace(other, model_id=load_party_file(party_file(tmp_path / "a", 0)).model_id).save(party_file(tmp_path / "a", 1))
    replace(
        load_party_file(party_file(tmp_path / "b", 2)),
        model_id=load_party_file(party_file(tmp_path / "a", 0)).model_id,
    ).save(party_file(tmp_path / "b", 2))
    with pytest.raises(ServingError, match="parties 0 and 1 come from different sharings"):
        load_model_shares(tmp_path / "a")


def three_parties_train(folder: Path, seed: int) -> tuple[dict[str, Tensor], list[list[str]]]:
    """Three parties run one program apart; each writes its own file, only then are the weights opened for the test."""

    def program(parties: Parties) -> dict[str, Any]:
        with Session(parties.net, seed=seed) as session:
            shared = trained(NETWORK_A)
            (path,) = save_trained_shares(shared, IMAGES, folder / f"at-{parties.local[0]}", "digits")
            assert path == party_file(folder / f"at-{parties.local[0]}", parties.local[0])
            operations = list(session.ledger.costs)
            with torch.no_grad():
                return {"operations": operations, **{k: p.reveal() for k, p in shared.named_parameters()}}

    results, _ = run_apart(program, seed)
    return {k: v for k, v in results[0].items() if k != "operations"}, [result["operations"] for result in results]


def command(*words: str | Path | int) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return f"{result.exit_code}: {result.output}"


def in_process_bytes(model: nn.Module, x: Tensor, bits: int | None) -> int:
    """What predictions cost all parties, in sessions of such a declared range."""
    session = Session(LocalTransport(), comparison_bits=bits)
    shared, secrets = encml.share(model, session=session), encml.share(x, session=session)
    with torch.no_grad(), session.ledger.measure() as spent:
        secret(shared(secrets)).settle()
    return spent[0].bytes


def test_three_parties_train_install_and_serve(tmp_path: Path) -> None:
    """Every party's program, its own file in its own store, three TLS processes, and a client."""
    weights, operations = three_parties_train(tmp_path, 1)
    assert not any("reveal" in names for names in operations)
    model = network_a()
    model.load_state_dict(weights)
    x = torch.rand(40, 1, 28, 28)
    with torch.no_grad():
        expected = model(x)
    files = [party_file(tmp_path / f"at-{rank}", rank) for rank in range(3)]
    cluster = Cluster.local(tmp_path / "cluster", timeout=5.0, comparison_bits=24)
    config = tmp_path / "cluster" / "cluster.yaml"
    # A party's own file only, before its server runs and while it does.
    with pytest.raises(ServingError, match="shares of party 0, expected those of party 1"):
        install_file(files[0], cluster.config, 1)
    assert "shares of party 0, expected those of party 2" in command("install", files[0], "-c", config, "-r", 2)
    assert command("install", files[0], "-c", config, "-r", 0).startswith("0: Party 0 has 'digits'")
    with cluster, cluster.client() as client:
        for rank in (1, 2):
            assert command("install", files[rank], "-c", config, "-r", rank).startswith("0: ")
        assert "'digits' is served" in command("serve", "-c", config, "--model", "digits")
        scores = client.query_model(x, "digits")
        assert client.last_cost is not None
        # Weights that nobody knows have no bounds: what the cluster's file declares holds for them.
        assert abs(sum(client.last_cost.sent_bytes) - in_process_bytes(model, x, 24)) <= 1000
        assert sum(client.last_cost.sent_bytes) < 0.85 * in_process_bytes(model, x, None)
        assert float((scores - expected).abs().max()) < 1e-3
        clear = expected.topk(2).values.diff().abs().squeeze() > 2e-3
        assert clear.sum() > 30
        assert torch.equal(scores.argmax(1)[clear], expected.argmax(1)[clear])
        _mixed_files_are_refused(tmp_path, cluster, files, x)


def _mixed_files_are_refused(tmp_path: Path, cluster: Cluster, files: list[Path], x: Tensor) -> None:
    three_parties_train(tmp_path / "again", 2)
    other = party_file(tmp_path / "again" / "at-1", 1)
    install_file(other, cluster.config, 1)
    with pytest.raises(ServingError, match="parties 0 and 1 hold come from different sharings"):
        cluster.serve(name="digits")
    with cluster.client() as client, pytest.raises(ServingError, match="takes no requests"):
        client.query_model(x, "digits")
    # The same id in spite of other shares: the parties' own check finds it.
    forged = replace(load_party_file(other), model_id=load_party_file(files[0]).model_id)
    forged.save(tmp_path / "forged")
    install_file(tmp_path / "forged", cluster.config, 1)
    cluster.serve(name="digits")
    with cluster.client() as client:
        with pytest.raises(ServingError, match="that the parties 0 and 1, 1 and 2 hold do not belong together"):
            client.query_model(x, "digits")
        install_file(files[1], cluster.config, 1)
        cluster.serve(name="digits")
        assert client.query_model(x[:2], "digits").shape == (2, 10)
