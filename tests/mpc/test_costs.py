"""The ledger agrees with the declared cost of every primitive, exactly; and what is declared is within the design."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from plain_ring import in_process, random_ring, split, split_bits
from torch import Tensor

from encml.mpc import sharing
from encml.mpc.comparison import SecretBits, invert, negative, select, to_arithmetic
from encml.mpc.costs import COSTS, carry_gates
from encml.mpc.multiplication import and_bits, product
from encml.mpc.parties import Parties
from encml.mpc.pending import negative_rows, scale_rows, select_rows
from encml.mpc.truncation import truncate, truncate_rows

Run = Callable[[Parties, Tensor, SecretBits, int], object]
"""Run a primitive on a payload x, bits of its shape, and a width."""


def positive(parties: Parties, x: Tensor, width: int) -> Tensor:
    return to_arithmetic(parties, negative(parties, -x, width))


def relu(parties: Parties, x: Tensor, width: int) -> Tensor:
    return select(parties, invert(parties, negative(parties, x, width)), x)


RUNS: dict[str, Run] = {
    "share": lambda p, x, b, w: sharing.share_from(p, 0, x[0], x[0].shape),
    "reveal": lambda p, x, b, w: sharing.open_to_all(p, x),
    "reveal_to": lambda p, x, b, w: sharing.open_to(p, x, 1),
    "reveal_rows": lambda p, x, b, w: p.open_rows(product(p, torch.mul, x, x), "test"),
    "product": lambda p, x, b, w: p.reshare(product(p, torch.mul, x, x), "test"),
    "reshare_pair": lambda p, x, b, w: p.reshare_pair(0, x[0], x[1], x[0].shape, "test"),
    "and_bits": lambda p, x, b, w: and_bits(p, b.plane, b.plane, "test"),
    "truncate": lambda p, x, b, w: truncate(p, x, w),
    "product_truncate": lambda p, x, b, w: truncate_rows(p, product(p, torch.mul, x, x), w),
    "negative": lambda p, x, b, w: negative(p, x, w),
    "positive": lambda p, x, b, w: positive(p, x, w),
    "relu": lambda p, x, b, w: relu(p, x, w),
    "negative_rows": lambda p, x, b, w: negative_rows(p, product(p, torch.mul, x, x), w),
    "select_rows": lambda p, x, b, w: select_rows(p, b, product(p, torch.mul, x, x), w),
    "scale_rows": lambda p, x, b, w: scale_rows(p, product(p, torch.mul, x, x), w, 3, w),
    "to_arithmetic": lambda p, x, b, w: to_arithmetic(p, b),
    "select": lambda p, x, b, w: select(p, b, x),
}
WIDTHS = {"": [0], "bits": [2, 3, 16, 32, 33, 63, 64], "shift": [1, 8, 16, 17, 32, 33, 48]}
NAMES = pytest.mark.parametrize("name", sorted(COSTS))


def test_every_declared_primitive_is_run() -> None:
    assert set(RUNS) == set(COSTS)


@NAMES
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (63,), (64,), (65,), (3, 50), (256,)])
def test_ledger_equals_declaration(name: str, shape: tuple[int, ...]) -> None:
    parties, declared = in_process(), COSTS[name]
    x = split(parties, random_ring(shape, 1))
    n = x[0].numel()
    bits = SecretBits(split_bits(parties, torch.ones(shape)), shape)
    for width in WIDTHS[declared.width_means]:
        with parties.ledger.measure() as spent:
            RUNS[name](parties, x, bits, width)
        assert spent[0].rounds == declared.rounds(width), (name, width)
        assert spent[0].bytes == declared.sent(n, width), (name, width)


@pytest.mark.parametrize("name", sorted(set(COSTS) - {"share", "reveal_to", "reshare_pair"}))
def test_roles_take_turns_so_that_parties_send_alike(name: str) -> None:
    """All primitives but those whose caller names the party."""
    parties, declared = in_process(), COSTS[name]
    x = split(parties, random_ring((128,), 1))
    bits = SecretBits(split_bits(parties, torch.ones(128)), (128,))
    with parties.ledger.measure() as spent:
        for _ in range(3):
            RUNS[name](parties, x, bits, declared.width)
    assert spent[0].sent == (declared.sent(128, declared.width),) * 3


@pytest.mark.parametrize(
    ("name", "width", "most_bytes", "most_rounds"),
    [
        ("product", 0, 8, 1),
        ("product_truncate", 16, 9, 3),
        ("positive", 64, 31, 10),
        ("positive", 32, 19, 10),
        ("relu", 64, 34, 10),
        ("relu", 32, 22, 10),
    ],
)
def test_within_the_design(name: str, width: int, most_bytes: float, most_rounds: int) -> None:
    """design.md, section 5: at most so many bytes an element and party, and so many rounds; from the ledger."""
    n = 64 * 100
    parties = in_process()
    x = split(parties, random_ring((n,), 1))
    bits = SecretBits(split_bits(parties, torch.ones(n)), (n,))
    with parties.ledger.measure() as spent:
        RUNS[name](parties, x, bits, width)
    assert spent[0].bytes_per_party / n <= most_bytes
    assert spent[0].bytes_per_party / n == pytest.approx(COSTS[name].bytes_per_party(width))
    assert spent[0].rounds <= most_rounds


def test_a_matmul_costs_its_output_whatever_the_inner_dimension() -> None:
    for inner in [1, 17, 300]:
        parties = in_process()
        a, b = split(parties, random_ring((4, inner), 1)), split(parties, random_ring((inner, 6), 2))
        with parties.ledger.measure() as spent:
            parties.reshare(product(parties, torch.matmul, a, b), "test")
        assert (spent[0].rounds, spent[0].bytes) == (1, COSTS["product"].sent(24, 0))


def test_setup_costs_one_key_a_party() -> None:
    assert in_process().ledger.total.sent == (16, 16, 16)
    assert in_process().ledger.total.rounds == 1


@pytest.mark.parametrize(("bits", "gates", "levels"), [(2, 0, 0), (3, 1, 1), (32, 55, 5), (64, 118, 6)])
def test_carry_gates(bits: int, gates: int, levels: int) -> None:
    assert carry_gates(bits) == (gates, levels)
