"""A party's store: models and counts survive, nothing is half there, and nothing wrong gets in."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from encml.errors import ServingError
from encml.serving import registry
from encml.serving.model_store import PartyModel, share_model
from encml.serving.registry import Model, Registry, UnknownModel


@pytest.fixture(scope="module")
def parts() -> list[PartyModel]:
    torch.manual_seed(1)
    return [share_model(nn.Linear(2, 1), torch.randn(1, 2), name)[1] for name in ("one", "one", "two")]


def put(store: Registry, part: PartyModel, name: str | None = None) -> Model:
    handle, path = store.incoming()
    with open(handle, "wb") as file:
        file.write(part.to_bytes())
    try:
        return store.install(path, name or part.name)
    finally:
        path.unlink(missing_ok=True)


def test_models_and_counts_survive_a_restart(parts: list[PartyModel], tmp_path: Path) -> None:
    store = Registry(tmp_path, 1, 16)
    put(store, parts[0])
    put(store, parts[2])
    assert [(m.part.name, m.remaining) for m in store.models()] == [("one", 0), ("two", 0)]
    store.allow("one", 5)
    store.allow("two", None)
    store.spend(store.get("one"), 2)
    store.spend(store.get("two"), 2)
    again = Registry(tmp_path, 1, 16)
    assert [(m.part.name, m.part.model_id, m.remaining) for m in again.models()] == [
        ("one", parts[0].model_id, 3),
        ("two", parts[2].model_id, None),
    ]
    files = sorted((tmp_path / "party-1").iterdir())
    assert len(files) == 4
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert stat.S_IMODE((tmp_path / "party-1").stat().st_mode) == 0o700


def test_a_new_sharing_starts_without_the_old_ones_count(parts: list[PartyModel], tmp_path: Path) -> None:
    store = Registry(tmp_path, 1, 16)
    old = put(store, parts[0])
    store.allow("one", 5)
    new = put(store, parts[1])
    assert (old.remaining, new.remaining) == (0, 0)
    store.spend(old, 1)
    store.lower(old, 0)
    assert Registry(tmp_path, 1, 16).get("one").remaining == 0
    assert len(list((tmp_path / "party-1").iterdir())) == 1


def test_counts_only_fall_to_other_parties_counts(parts: list[PartyModel], tmp_path: Path) -> None:
    store = Registry(tmp_path, 1, 16)
    model = put(store, parts[0])
    for own, theirs, result in ((None, 4, 4), (3, 4, 3), (3, 2, 2), (3, None, 3), (None, None, None)):
        store.allow("one", own)
        store.lower(model, theirs)
        assert model.remaining == result
    store.allow("one", 1)
    store.spend(model, 5)
    assert model.remaining == 0


def test_what_is_gone_is_gone(parts: list[PartyModel], tmp_path: Path) -> None:
    store = Registry(tmp_path, 1, 16)
    put(store, parts[0])
    store.allow("one", 5)
    store.remove("one")
    assert list((tmp_path / "party-1").iterdir()) == []
    for call in (lambda: store.get("one"), lambda: store.remove("one"), lambda: store.allow("one", 1)):
        with pytest.raises(UnknownModel, match="no model 'one'; it has: none"):
            call()


def test_what_does_not_fit_is_refused(parts: list[PartyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Registry(tmp_path, 1, 16)
    with pytest.raises(ServingError, match="expected 'other'"):
        put(store, parts[0], "other")
    with pytest.raises(ServingError, match="cannot name a model"):
        put(store, parts[0], "../other")
    with pytest.raises(ServingError, match="shares of party 1, expected those of party 0"):
        put(Registry(tmp_path, 0, 16), parts[0])
    with pytest.raises(ServingError, match="16 fraction bits and the cluster 12"):
        put(Registry(tmp_path, 1, 12), parts[0])
    monkeypatch.setattr(registry, "MAX_MODELS", 1)
    put(store, parts[0])
    put(store, parts[1])
    with pytest.raises(ServingError, match="remove one first"):
        put(store, parts[2])
    assert [path.name for path in (tmp_path / "party-1").iterdir()] == ["one.safetensors"]


def test_leftovers_and_damage_are_found_at_the_start(
    parts: list[PartyModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Registry(tmp_path, 1, 16)
    put(store, parts[0])
    put(store, parts[2])
    store.allow("one", 3)
    (tmp_path / "party-1" / f"one.{parts[0].model_id}.json").write_text('{"remaining": -1}')
    leftover = tmp_path / "party-1" / ".incoming-x"
    leftover.write_bytes(b"half")
    again = Registry(tmp_path, 1, 16)
    assert [model.part.name for model in again.models()] == ["two"]
    assert not leftover.exists()
    assert "party 1 leaves out" in caplog.text
    assert "remaining" in caplog.text
