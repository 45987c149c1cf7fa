"""The doors: what is shared comes back, as what it was, at the declared cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ULP, grid, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor
from encml.tensor.shared import secret

SHAPES = [(), (0,), (1,), (5,), (3, 0, 2), (2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("owner", [0, 1, 2])
def test_what_is_shared_comes_back(shape: tuple[int, ...], dtype: torch.dtype, owner: int, session: Session) -> None:
    values = grid(*shape).to(dtype)
    before = session.ledger.total
    x = encml.share(values, owner=owner)
    spent = session.ledger.total - before
    assert (spent.rounds, spent.bytes) == (1, 8 * values.numel())
    assert (x.shape, x.dtype, x.is_leaf, x.requires_grad) == (values.shape, dtype, True, False)
    before = session.ledger.total
    back = x.reveal()
    spent = session.ledger.total - before
    assert (spent.rounds, spent.bytes) == (1, 24 * values.numel())
    assert type(back) is Tensor
    assert torch.equal(back, values)


@settings(deadline=None)
@given(st.lists(st.floats(-(2.0**29), 2.0**29, allow_nan=False), min_size=1, max_size=20))
def test_any_values_come_back_to_the_nearest_unit(values: list[float]) -> None:
    with Session(seed=1):
        plain = torch.tensor(values, dtype=torch.float64)
        near(encml.share(plain).reveal(), plain, 0.5 + 2.0**-20)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (torch.tensor([1, -2, 3]), torch.int64),
        (torch.tensor([2**30 - 1, -(2**30) + 1]), torch.int64),
        (torch.tensor([True, False]), torch.bool),
        (torch.tensor([1, 255], dtype=torch.uint8), torch.int64),
        (torch.tensor([7, -7], dtype=torch.int32), torch.int64),
        (torch.tensor([0.5, -1.25], dtype=torch.float16), torch.float32),
        (torch.tensor([0.5, -1.25], dtype=torch.bfloat16), torch.float32),
    ],
)
def test_other_dtypes_keep_their_kind(values: Tensor, dtype: torch.dtype) -> None:
    x = encml.share(values)
    assert x.dtype == dtype
    assert secret(x).fraction_bits == (16 if dtype.is_floating_point else 0)
    assert torch.equal(x.reveal(), values.to(dtype))


def test_shared_integers_are_exact_and_become_floats_where_they_meet_some() -> None:
    """As plain int64 tensors do; what needs a fraction gets it."""
    n, other = torch.tensor([3, -2, 0, 7]), torch.tensor([1, 1, 0, -5])
    x, w = encml.share(n), grid(4)
    integers: list[tuple[Tensor, Tensor]] = [
        (x + 1, n + 1), (x * encml.share(other), n * other), (x - other, n - other), (-x, -n), (x.sum(), n.sum()),
        (x.cumsum(0), n.cumsum(0)), (x[1:], n[1:]), (x.relu(), n.relu()), (x**2, n**2), (x.long(), n),
        (torch.zeros_like(x), n * 0), (x.clone().fill_(4), n * 0 + 4), (torch.cat([x, x]), torch.cat([n, n])),
        (x * True, n), (x == 3, n == 3), (x < other, n < other), (x != 0, n != 0),
    ]  # fmt: skip
    floats: list[tuple[Tensor, Tensor]] = [
        (x + w, n + w), (x * encml.share(w), n * w), (x * 0.5, n * 0.5), (x / 2, n / 2), (x.float(), n.float()),
        (x.double().mean(), n.double().mean()), (x + 0.25, n + 0.25), (x.float().requires_grad_() * 2, n * 2.0),
    ]  # fmt: skip
    for found, expected in integers:
        assert found.dtype == expected.dtype
        assert torch.equal(found.reveal(), expected)
    for found, expected in floats:
        assert found.dtype == expected.dtype
        near(found.reveal(), expected, 1)
    with pytest.raises(RuntimeError, match="floating point"):
        x.requires_grad_()
    for refused in (lambda: x.mean(), lambda: x.clone().add_(0.5), lambda: x.clone().copy_(w)):
        with pytest.raises(encml.UnsupportedOperation):
            refused()
    with pytest.raises(InvalidTensor, match="fixed-point range"):
        encml.share(torch.tensor([2**30]))


def test_shared_bools_compare_and_mask() -> None:
    mask = torch.tensor([True, False, True])
    m = encml.share(mask)
    near((m * grid(3)).reveal(), mask * grid(3), 0)
    assert torch.equal((~m).reveal(), ~mask)
    assert torch.equal((m & encml.share(~mask)).reveal(), mask & ~mask)
    assert m.sum().dtype == torch.int64
    assert m.sum().reveal() == 2


def test_views_are_shared_as_they_look() -> None:
    base = grid(4, 6)
    for view in (base.t(), base[::2, 1::3], base[:1].expand(3, 6), base[0, 0]):
        near(encml.share(view).reveal(), view, 0)
    x = encml.share(base)
    base.zero_()
    near(x.reveal(), grid(4, 6), 0)


def test_requires_grad_is_taken_over() -> None:
    x = encml.share(grid(3).requires_grad_())
    assert x.requires_grad
    assert x.is_leaf
    assert x.grad_fn is None
    assert encml.share(grid(3).requires_grad_() * 2).is_leaf


def test_sessions() -> None:
    with Session(seed=1) as outer:
        a = encml.share(grid(2))
        with Session(seed=2) as inner:
            b, c = encml.share(grid(2)), encml.share(grid(2), session=outer)
        assert (a.session, b.session, c.session) == (outer, inner, outer)
        near((a + c).reveal(), 2 * grid(2), 0)
        with pytest.raises(ConnectionError, match="closed"):
            b.reveal()


def test_masks_are_reproducible_by_seed_and_fresh_without() -> None:
    shares = []
    for seed in (1, 1, 2, None, None):
        with Session(seed=seed):
            shares.append(secret(encml.share(grid(4))).payload)
    assert torch.equal(shares[0], shares[1])
    assert len({tuple(s.reshape(-1).tolist()) for s in shares}) == 4


def test_two_shares_say_nothing_by_themselves() -> None:
    """Of a constant, shared many times: the owner's successor gets masks that look uniform in the top byte."""
    x = secret(encml.share(torch.full((40_000,), 3.25))).payload
    for share in x[:2]:
        counts = torch.bincount((share >> 56) + 128, minlength=256).double()
        assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 255 + 7 * (2 * 255) ** 0.5
    assert torch.all(x.sum(0) == int(3.25 / ULP))


@pytest.mark.parametrize("shape", SHAPES)
def test_public_values_as_secrets_cost_nothing(shape: tuple[int, ...], session: Session) -> None:
    x = encml.share(torch.zeros(1))
    before = session.ledger.total.rounds
    made = [x.new_zeros(shape), x.new_ones(shape), x.new_full(shape, 0.25), torch.full_like(x.new_zeros(shape), -3)]
    made += [
        torch.zeros_like(made[2]),
        torch.ones_like(made[2]),
        torch.empty_like(made[2]) * 0 + 2,
        x.new_empty(shape) * 0,
    ]
    assert session.ledger.total.rounds == before
    for found, value in zip(made, (0, 1, 0.25, -3, 0, 1, 2, 0), strict=True):
        assert isinstance(found, SharedTensor)
        near(found.reveal(), torch.full(shape, float(value)), 0)


def test_a_module_of_an_owner() -> None:
    model = encml.share(nn.Linear(2, 2), owner=2)
    assert all(isinstance(p, SharedTensor) for p in model.parameters())
    with pytest.raises(InvalidTensor, match="shared already"):
        encml.share(next(model.parameters()))
