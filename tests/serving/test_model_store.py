"""Models as shares: three files that add up, none of which says anything alone, and every wrong file refused."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encml.errors import EncmlError, ServingError
from encml.ring.fixed import decode
from encml.serving import model_store
from encml.serving.model_store import (
    PartyModel,
    load_model_shares,
    load_party_file,
    party_file,
    save_model_shares,
    share_model,
    write_whole,
)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))


@pytest.fixture(scope="module")
def parts() -> tuple[PartyModel, PartyModel, PartyModel]:
    return share_model(network(), torch.randn(2, 4), "small")


def test_three_files_add_up_to_the_model(tmp_path: Path) -> None:
    model = network()
    paths = save_model_shares(model, torch.randn(2, 4), tmp_path / "shares", "small")
    assert paths == [tmp_path / "shares" / f"party-{rank}.safetensors" for rank in range(3)]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    assert sorted(path.name for path in (tmp_path / "shares").iterdir()) == [path.name for path in paths]
    parts = load_model_shares(tmp_path / "shares")
    for name, value in model.state_dict().items():
        shares = [part.tensors[name] for part in parts]
        assert all(share.shape == (2, *value.shape) for share in shares)
        for rank in range(3):
            assert torch.equal(shares[rank][1], shares[(rank + 1) % 3][0])
        total: Tensor = torch.stack([share[0] for share in shares]).sum(0)
        assert torch.allclose(decode(total, 16), value, atol=2.0**-16)
    assert "0.weight" not in repr(parts[0])


def test_no_file_holds_a_weight_in_clear_or_the_same_share_twice(tmp_path: Path) -> None:
    """A constant model: every byte of every share must be random nevertheless, and fresh each time."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.zeros_(model[0].weight)
    first, second = (share_model(model, torch.zeros(1, 64), "zero") for _ in range(2))
    for part, again in zip(first, second, strict=True):
        shares = part.tensors["0.weight"]
        counts = torch.bincount(shares.view(torch.uint8).flatten().long(), minlength=256).double()
        expected = counts.sum() / 256
        # 255 degrees of freedom: beyond 400 once in 10^8 draws.
        assert float(((counts - expected) ** 2 / expected).sum()) < 400
        assert not torch.equal(shares, again.tensors["0.weight"])
    assert first[0].model_id != second[0].model_id


Change = Callable[[dict[str, str], dict[str, Tensor]], object]


def broken(parts: tuple[PartyModel, ...], path: Path, change: Change) -> Path:
    parts[1].save(path)
    metadata = {
        "format": "encml-model-shares",
        "version": "1",
        "name": "small",
        "model_id": parts[1].model_id,
        "rank": "1",
        "fraction_bits": "16",
        "graph": parts[1].graph.model_dump_json(),
    }
    tensors = dict(parts[1].tensors)
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m, _: m.update(format="other"), "not a file of model shares"),
        (lambda m, _: m.update(version="2"), "not a file of model shares"),
        (lambda m, _: m.update(name="../x"), "name"),
        (lambda m, _: m.update(model_id="1"), "id"),
        (lambda m, _: m.update(rank="3"), "rank"),
        (lambda m, _: m.update(rank="2"), "shares of party 2, expected those of party 1"),
        (lambda m, _: m.update(fraction_bits="²"), "fraction bits"),
        (lambda m, _: m.update(graph="{}"), "graph"),
        (lambda m, _: m.pop("graph"), "graph"),
        (lambda _, t: t.pop("0.bias"), "parameters"),
        (lambda _, t: t.update(extra=t["0.bias"].clone()), "parameters"),
        (lambda _, t: t.update({"0.bias": t["0.bias"].float()}), "float32"),
        (lambda _, t: t.update({"0.bias": t["0.bias"][:1].clone()}), r"\(1, 3\)"),
    ],
)
def test_a_wrong_file_is_refused(
    parts: tuple[PartyModel, PartyModel, PartyModel],
    tmp_path: Path,
    change: Change,
    named: str,
) -> None:
    with pytest.raises(ServingError, match=named):
        load_party_file(broken(parts, tmp_path / "p.safetensors", change), 1)


def test_mixed_files_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_model_shares(network(), torch.randn(2, 4), tmp_path / folder)
    party_file(tmp_path / "a", 2).rename(party_file(tmp_path / "b", 2))
    with pytest.raises(ServingError, match="different sharings"):
        load_model_shares(tmp_path / "b")
    with pytest.raises(ServingError, match="no such file"):
        load_model_shares(tmp_path / "a")
    party_file(tmp_path / "b", 2).rename(party_file(tmp_path / "a", 0))
    with pytest.raises(ServingError, match="party 2, expected those of party 0"):
        load_model_shares(tmp_path / "a")


def test_fuzzed_files_never_get_further_than_their_error(
    parts: tuple[PartyModel, PartyModel, PartyModel], tmp_path: Path
) -> None:
    whole = parts[0].to_bytes()
    rng = random.Random(7)
    path = tmp_path / "fuzzed.safetensors"
    refused = 0
    for _ in range(400):
        data = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.4 else whole)
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            load_party_file(path, 0)
        except EncmlError:
            refused += 1
    assert refused > 200
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ServingError, match="safetensors"):
        load_party_file(path)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a" * 65, "ümlaut", "a b"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ServingError, match="cannot name a model"):
        share_model(network(), torch.randn(2, 4), name)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model_store.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_another_precision_say_so(parts: tuple[PartyModel, PartyModel, PartyModel], tmp_path: Path) -> None:
    other = replace(parts[0], fraction_bits=12)
    other.save(tmp_path / "p")
    assert load_party_file(tmp_path / "p", 0).fraction_bits == 12
