"""Who owns what: however the data are cut up, what the parties train on is the same."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_runs import small_training
from torch import Tensor

from encml.config import TrainingConfig
from encml.data import MnistData, to_float
from encml.data.mnist import load_subset
from encml.errors import DataError
from encml.experiment.training.owners import (
    check_part,
    count_right,
    cut,
    digest,
    owner_file,
    public_digest,
    read_part,
    share_rows,
    used_data,
    write_part,
)
from encml.mpc.session import Session
from encml.tensor import SharedTensor, share

OWNERS: dict[str, dict[str, object]] = {
    "one": {"kind": "one", "party": 2},
    "features_and_labels": {"kind": "features_and_labels", "features": 1, "labels": 0},
    "rows": {"kind": "rows"},
    "columns": {"kind": "columns", "labels": 1},
}


def owned(tmp_path: Path, owners: dict[str, object], public: str = "nothing") -> tuple[TrainingConfig, MnistData]:
    config = small_training(tmp_path, data={"train_images": 50, "test_images": 20, "owners": owners, "public": public})
    return config, used_data(config.data, load_subset("of a test"))


def reveal_of(secret: Tensor) -> Tensor:
    assert isinstance(secret, SharedTensor)
    return secret.reveal()


@pytest.mark.parametrize("kind", OWNERS)
def test_joined_again_the_data_are_the_same(kind: str, tmp_path: Path) -> None:
    config, data = owned(tmp_path, OWNERS[kind])
    parts = cut(config.data, data)
    session = Session()
    rows = share_rows(config.data, "train", dict(enumerate(parts)), session)
    tests = share_rows(config.data, "test", dict(enumerate(parts)), session)
    for found, images, labels in (
        (rows, data.train_images, data.train_labels),
        (tests, data.test_images, data.test_labels),
    ):
        opened = [reveal_of(secret) for secret in (found.images, found.labels, found.classes)]
        assert torch.allclose(opened[0], to_float(images), atol=2**-16, rtol=0)
        assert torch.equal(opened[1], F.one_hot(labels, 10).float())
        assert torch.equal(opened[2], labels)


@pytest.mark.parametrize("kind", OWNERS)
def test_each_owner_has_its_own_and_no_more(kind: str, tmp_path: Path) -> None:
    config, data = owned(tmp_path, OWNERS[kind])
    sizes = [sum(tensor.numel() for tensor in part.values()) for part in cut(config.data, data)]
    everything = 70 * (784 + 1)
    assert sum(sizes) == everything
    expected = {
        "one": [0, 0, everything],
        "features_and_labels": [70, 70 * 784, 0],
        "rows": [(17 + 7) * 785, (17 + 7) * 785, (16 + 6) * 785],
        "columns": [70 * 10 * 28, 70 * 9 * 28 + 70, 70 * 9 * 28],
    }[kind]
    assert sizes == expected


@pytest.mark.parametrize("public", ["images", "labels"])
def test_what_is_public_stays_plain_and_the_rest_does_not(public: str, tmp_path: Path) -> None:
    config, data = owned(tmp_path, {"kind": "one", "party": 1}, public)
    parts = cut(config.data, data)
    assert sorted(parts[0]) == [f"test_{public}", f"train_{public}"]
    rows = share_rows(config.data, "train", dict(enumerate(parts)), Session())
    assert isinstance(rows.images, SharedTensor) == (public != "images")
    assert isinstance(rows.labels, SharedTensor) == (public != "labels")
    plain = rows.images if public == "images" else rows.labels
    assert torch.equal(plain, to_float(data.train_images) if public == "images" else data.train_labels)


def test_a_file_holds_one_owners_part_and_is_its_owners_alone(tmp_path: Path) -> None:
    config, data = owned(tmp_path, OWNERS["rows"])
    part = cut(config.data, data)[1]
    path = owner_file(tmp_path, 1)
    write_part(path, part)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_part(path)
    assert found.keys() == part.keys()
    assert all(torch.equal(found[name], part[name]) for name in part)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        read_part(path)
    with pytest.raises(DataError, match="no such file"):
        read_part(tmp_path / "owner-7.safetensors")


def test_a_digest_tells_any_change_and_depends_on_its_key() -> None:
    part = {"train_images": torch.zeros(3, 4), "train_labels": torch.arange(3)}
    first = digest(part, b"key")
    assert digest(dict(reversed(part.items())), b"key") == first
    assert digest(part, b"kez") != first
    for changed in (
        {**part, "train_images": torch.zeros(4, 3)},
        {**part, "train_images": torch.full((3, 4), 1e-45)},
        {**part, "train_labels": torch.tensor([0, 2, 1])},
        {"train_images": part["train_images"]},
    ):
        assert digest(changed, b"key") != first


def test_more_images_than_there_are_is_an_error(tmp_path: Path) -> None:
    config = small_training(tmp_path, data={"train_images": 10**6})
    with pytest.raises(DataError, match=r"data.train_images: 1,000,000 wanted, but there are 9,000"):
        used_data(config.data, load_subset("of a test"))


@pytest.mark.parametrize("secret_classes", [True, False])
def test_only_how_many_are_right_is_found(secret_classes: bool) -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0], [3.0, -1.0, 2.5], [0.0, 0.25, 0.5], [-1.0, -2.0, -3.0]])
    classes = torch.tensor([1, 2, 2, 0])
    session = Session()
    right = count_right(share(scores, session=session), share(classes, session=session) if secret_classes else classes)
    assert isinstance(right, SharedTensor)
    assert right.shape == ()
    assert int(right.reveal()) == 3


ROWS = {"train_images": torch.zeros(4, 1, 28, 28), "train_labels": torch.arange(4)}
BAND = {"train_images": torch.zeros(4, 280)}


@pytest.mark.parametrize("kind", OWNERS)
def test_what_was_cut_up_is_what_each_owns(kind: str, tmp_path: Path) -> None:
    config, data = owned(tmp_path, OWNERS[kind])
    for rank, part in enumerate(cut(config.data, data)):
        check_part(config.data, rank, part, tested=True)


def test_of_rows_and_columns_a_party_may_have_none(tmp_path: Path) -> None:
    check_part(owned(tmp_path, OWNERS["rows"])[0].data, 1, {}, tested=True)
    check_part(owned(tmp_path, OWNERS["columns"])[0].data, 2, {}, tested=True)
    check_part(owned(tmp_path, OWNERS["columns"])[0].data, 1, {"train_labels": torch.arange(4)}, tested=False)


@pytest.mark.parametrize(
    ("kind", "rank", "part", "problem"),
    [
        ("one", 2, {}, "party 2 has no train data, expected train_images and train_labels"),
        ("one", 0, ROWS, "party 0 has train_images and train_labels, expected no train data"),
        ("one", 2, {**ROWS, "train_labels": torch.arange(5)}, "4 train_images, 5 train_labels; expected as many"),
        ("rows", 0, {"train_labels": torch.arange(4)}, "party 0 has train_labels, expected train_images and"),
        ("rows", 0, {**ROWS, "train_labels": torch.tensor([0, 10, -1, 3])}, "classes 0 to 9, found 2 of 4 beyond"),
        ("rows", 0, {**ROWS, "train_labels": torch.arange(4.0)}, "expected int64 of shape"),
        ("rows", 0, {**ROWS, "train_images": torch.zeros(4, 784)}, r"shape \(n, 1, 28, 28\), found torch.float32"),
        ("rows", 0, {**ROWS, "train_images": ROWS["train_images"].double()}, "float32 of shape .* found torch.float64"),
        ("rows", 0, {"train_images": torch.tensor(1.0), "train_labels": torch.tensor(1)}, "expected float32 of shape"),
        ("columns", 0, ROWS, "party 0 has train_images and train_labels, expected train_images:"),
        ("columns", 1, BAND, "party 1 has train_images, expected train_images and train_labels"),
        ("columns", 0, {"train_images": torch.zeros(4, 10, 28)}, r"shape \(n, columns\)"),
        ("features_and_labels", 0, ROWS, "party 0 has train_images and train_labels, expected train_labels"),
    ],
)
def test_what_an_owner_may_not_bring(
    kind: str, rank: int, part: dict[str, Tensor], problem: str, tmp_path: Path
) -> None:
    config, _ = owned(tmp_path, OWNERS[kind])
    with pytest.raises(DataError, match=problem):
        check_part(config.data, rank, part, tested=False)


@pytest.mark.parametrize(
    ("kind", "parts", "problem"),
    [
        (
            "features_and_labels",
            [{"train_labels": torch.arange(5)}, {"train_images": torch.zeros(4, 1, 28, 28)}, {}],
            "4 images and 5 labels",
        ),
        ("columns", [BAND, {**BAND, "train_labels": torch.arange(4)}, {}], "560 columns, expected 784"),
        ("rows", [{key: value[:0] for key, value in ROWS.items()}, {}, {}], "0 images and 0 labels"),
    ],
)
def test_what_the_owners_bring_together_must_fit(
    kind: str, parts: list[dict[str, Tensor]], problem: str, tmp_path: Path
) -> None:
    config, _ = owned(tmp_path, OWNERS[kind])
    for rank, part in enumerate(parts):
        check_part(config.data, rank, part, tested=False)
    with pytest.raises(DataError, match=problem):
        share_rows(config.data, "train", dict(enumerate(parts)), Session())


def test_two_parties_can_tell_whether_their_public_data_are_the_same(tmp_path: Path) -> None:
    config, data = owned(tmp_path, {"kind": "one", "party": 1}, "labels")
    zero, one, two = cut(config.data, data)
    first = public_digest(config.data, {0: zero})
    assert first == public_digest(config.data, {1: one}) == public_digest(config.data, {2: two})
    assert first != public_digest(config.data, {0: {**zero, "train_labels": zero["train_labels"].flip(0)}})
    # Of what is secret nothing goes into it.
    assert first == public_digest(config.data, {1: {**one, "train_images": torch.zeros(1)}})
    secret, _ = owned(tmp_path, OWNERS["rows"])
    assert public_digest(secret.data, {0: zero}) == public_digest(secret.data, {1: {}})
