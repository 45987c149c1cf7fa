"""Roots of radicands with fraction bits of their own: values over the whole range, cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encml import Session
from encml.mpc.functions.roots import RADICAND_BITS, inverse_root, root
from encml.mpc.sharing import share_from


def radicands(least: int) -> Tensor:
    """Integers of every size from ``least`` up to 2^58 - 1, powers of two and their neighbours."""
    generator = torch.Generator().manual_seed(1)
    low = torch.log2(torch.tensor(float(least)))
    spread = torch.rand(1000, generator=generator, dtype=torch.float64) * (RADICAND_BITS - low) + low
    powers = 2 ** torch.arange(RADICAND_BITS)
    edges = torch.cat([powers, powers - 1, powers + 1, torch.tensor([2**RADICAND_BITS - 1, least])])
    every = torch.cat([(2**spread).long(), edges])
    return every[(every >= least) & (every < 2**RADICAND_BITS)]


def shared(session: Session, integers: Tensor) -> Tensor:
    return share_from(session.parties, 0, integers, tuple(integers.shape))


@pytest.mark.parametrize(
    ("bits", "least", "relative"), [(32, 1e-5, -15), (40, 1e-5, -15), (28, 1e-2, -15), (32, 2.0**-27, -13)]
)
def test_inverse_roots(bits: int, least: float, relative: int) -> None:
    with Session(seed=1) as session:
        x = radicands(int(least * 2**bits) + 1)
        found = inverse_root(session.parties, shared(session, x), bits, 24, least).sum(0).double() / 2**24
        expected = (x.double() / 2**bits).rsqrt()
        assert ((found - expected).abs() <= 2.0**-24 + expected * 2.0**relative).all()
        nothing = inverse_root(session.parties, shared(session, torch.zeros(2, dtype=torch.int64)), bits, 24, least)
        assert (nothing.sum(0) > 0).all()
        assert (nothing.sum(0) < 16 * least**-0.5 * 2**24).all()


@pytest.mark.parametrize(("bits", "result_bits"), [(28, 16), (32, 16), (28, 20), (16, 8)])
def test_roots(bits: int, result_bits: int) -> None:
    with Session(seed=1) as session:
        x = torch.cat([radicands(1), torch.zeros(1, dtype=torch.int64)])
        found = root(session.parties, shared(session, x), bits, result_bits).sum(0).double() / 2**result_bits
        expected = (x.double() / 2**bits).sqrt()
        assert ((found - expected).abs() <= 2.0**-result_bits + expected * 2.0**-15).all()
        assert found[-1] == 0


def test_shapes() -> None:
    with Session(seed=1) as session:
        for shape in ((), (0,), (2, 3)):
            x = torch.full(shape, 4 << 28)
            assert tuple(root(session.parties, shared(session, x), 28, 16).shape) == (3, *shape)
            assert tuple(inverse_root(session.parties, shared(session, x), 28, 16, 1.0).shape) == (3, *shape)


def test_cost() -> None:
    with Session(seed=1) as session:
        x = shared(session, torch.full((640,), 4 << 32))
        costs = []
        for job in (lambda: inverse_root(session.parties, x, 32, 24, 1e-5), lambda: root(session.parties, x, 28, 16)):
            before = session.ledger.total
            job()
            costs.append(session.ledger.total - before)
        assert [cost.rounds for cost in costs] == [27, 27]
        assert all(cost.bytes / 640 / 3 <= 196 for cost in costs)
