"""No message tells its receiver anything, for every message of every protocol; and the test notices a missing mask.

How: see party_views.py. The second half takes out every mask of every protocol, one at a time, or replaces it by one
that its receiver knows, and asserts that the same test finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from party_views import ALARM, Case, Frozen, Inputs, N, Nibbles, Tamper, leaks, least_p_value, nibbles, received
from plain_ring import wrap
from torch import Tensor

from encml.mpc import dealing, sharing
from encml.mpc.circuits import any_above, bits_at, one_hot
from encml.mpc.comparison import invert, negative, select, to_arithmetic
from encml.mpc.functions.exponent import exponents
from encml.mpc.lookup import lookup
from encml.mpc.multiplication import and_bits, product
from encml.mpc.parties import Parties, Row, known
from encml.mpc.pending import negative_rows, scale_rows, select_rows
from encml.mpc.truncation import Division, truncate, truncate_rows
from encml.net.local import LocalTransport
from encml.ring.kernels.elementwise import Integers, Words
from encml.ring.prg import KeyStream

RING = ((0,), (2**62 - 2**20 - 1,), (-(2**61) - 0x123456789ABCDEF,))
"""One secret: nothing, nearly the bound, and a negative one that differs in every byte."""
FACTORS = ((0, 0), (2**31 - 2**17 + 77, 2**31 - 2**16 - 5), (-(2**31) + 2**17 - 99, 2**31 - 2**16 - 5))
"""Two secrets whose product is nothing, nearly the bound, or nearly its negative."""
ODD = 0x123456789ABCDEF1
SAME_PRODUCT = tuple((wrap(k), wrap(24 * pow(k, -1, 2**64))) for k in (1, 3, ODD, -ODD))
BITS = ((0,), (1,))
Bits = npt.NDArray[Any]


def two_products(parties: Parties, inputs: Inputs) -> None:
    for _ in range(2):
        parties.reshare(product(parties, torch.mul, inputs.payload(0), inputs.payload(1)), "test")


def truncated_product(m: int) -> Callable[[Parties, Inputs], Tensor]:
    return lambda p, i: truncate_rows(p, product(p, torch.mul, i.payload(0), i.payload(1)), m)


def rows_of(parties: Parties, inputs: Inputs) -> Tensor:
    return product(parties, torch.mul, inputs.payload(0), inputs.payload(1))


def refresh(parties: Parties, inputs: Inputs) -> None:
    """What parties ``first`` and ``first`` + 1 hold between them, reshared."""
    first, x = parties.next_lead(), inputs.payload(0)
    left = known(parties.share(x, first)) + known(parties.share(x, first + 1))
    parties.reshare_pair(first, left, parties.share(x, first + 2), (N,), "test")


def and_of_bits(parties: Parties, inputs: Inputs) -> None:
    and_bits(parties, inputs.bits(0).plane, inputs.bits(1).plane, "test")


def relu(parties: Parties, inputs: Inputs) -> None:
    x = inputs.payload(0)
    select(parties, invert(parties, negative(parties, x, 8)), x)


def from_owner(owner: int) -> Case:
    def run(parties: Parties, inputs: Inputs) -> None:
        sharing.share_from(parties, owner, torch.full((N,), inputs.secret[0]), (N,))

    return Case(run, RING, ("x_o",), insiders=(owner,))


def both_planes(inputs: Inputs) -> Tensor:
    return torch.stack([inputs.bits(0).plane, inputs.bits(1).plane], 1)


PLANES = ((0, 0), (0, 1), (1, 0), (1, 1))
PAIR = ("low", "high")
DEAL = ("a", "c0", "b")
CASES: dict[str, Case] = {
    **{f"share from {owner}": from_owner(owner) for owner in range(3)},
    "product": Case(
        lambda p, i: p.reshare(product(p, torch.mul, i.payload(0), i.payload(1)), "test"), FACTORS, ("zero",)
    ),
    "two products": Case(two_products, FACTORS, ("zero 1", "zero 2")),
    "open a product": Case(
        # The product itself is what is revealed: only its factors are to stay secret.
        lambda p, i: p.open_rows(product(p, torch.mul, i.payload(0), i.payload(1)), "test"),
        SAME_PRODUCT,
        ("zero",),
    ),
    "reshare a pair": Case(refresh, RING, PAIR),
    "and": Case(and_of_bits, ((0, 0), (0, 1), (1, 0), (1, 1)), ("zero",)),
    "product, truncate by 16": Case(truncated_product(16), FACTORS, ("zero", *DEAL, *PAIR)),
    "product, truncate by 20": Case(truncated_product(20), FACTORS, ("zero", *DEAL, *PAIR)),
    "product, truncate by 40": Case(truncated_product(40), FACTORS, ("zero", *DEAL, *PAIR)),
    "truncate": Case(lambda p, i: truncate(p, i.payload(0), 16), RING, (*DEAL, "split", *PAIR), unneeded=("split",)),
    "compare 16 bits": Case(
        lambda p, i: negative(p, i.payload(0), 16),
        RING,
        ("s0", *PAIR, *(f"level {k}" for k in range(1, 5))),
    ),
    "to arithmetic": Case(lambda p, i: to_arithmetic(p, i.bits(0)), BITS, ("masks", *PAIR)),
    "select": Case(
        lambda p, i: select(p, i.bits(0), i.payload(1)), ((0, 5), (1, 5), (1, -(2**60)), (0, 2**61)), ("masks", *PAIR)
    ),
    "compare a product": Case(
        lambda p, i: negative_rows(p, rows_of(p, i), 16),
        FACTORS,
        ("zero", "s0", *PAIR, *(f"level {k}" for k in range(1, 5))),
    ),
    "select from a product": Case(
        lambda p, i: select_rows(p, i.bits(2), rows_of(p, i), 16),
        ((0, 0, 1), (*FACTORS[1], 0), (*FACTORS[1], 1), (*FACTORS[2], 1)),
        ("zero", "masks", *DEAL, *PAIR),
        unneeded=DEAL,
    ),
    "truncate a product twice": Case(
        lambda p, i: scale_rows(p, rows_of(p, i), 20, 6 * 2**10, 16),
        FACTORS,
        ("zero", *DEAL, *(f"{name} 2" for name in DEAL), "split", *PAIR),
        unneeded=(*(f"{name} 2" for name in DEAL), "split"),
    ),
    "look-up": Case(
        lambda p, i: lookup(p, both_planes(i), N, [[2**40 + 1, -7], [3, 5], [0, 2**62]], "test"),
        PLANES,
        ("masks", *PAIR),
    ),
    "OR prefixes": Case(lambda p, i: any_above(p, both_planes(i), "test"), PLANES, ("level 1",)),
    "one-hot": Case(
        lambda p, i: one_hot(p, both_planes(i), "test", mask=i.bits(2).plane),
        ((0, 0, 0), (1, 1, 1), (0, 1, 1), (1, 1, 0)),
        ("mask", "both"),
    ),
    "bits 4 to 6": Case(
        lambda p, i: bits_at(p, i.payload(0), 4, 3, "test"),
        RING,
        ("s0", *PAIR, "low level 1", "high level 1", "low level 2", "carry"),
    ),
}
LARGE: dict[str, Case] = {
    "exponents": Case(lambda p, i: exponents(p, i.payload(0), 52, "test", signed=True), ((0,), (2**9 - 3,), (-77,))),
    "compare 64 bits": Case(lambda p, i: negative(p, i.payload(0)), RING[1:]),
    "relu": Case(relu, RING[1:]),
}


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_no_view_depends_on_the_secret(name: str) -> None:
    assert list(leaks((CASES | LARGE)[name])) == []


@pytest.mark.parametrize("receiver", [0, 1, 2])
def test_only_the_receiver_of_a_secret_receives_anything(receiver: int) -> None:
    case = Case(lambda p, i: sharing.open_to(p, i.payload(0), receiver), RING)
    sizes = [len(received(case, party, 0, 0)) for party in range(3)]
    assert [size > 0 for size in sizes] == [party == receiver for party in range(3)]


@pytest.mark.parametrize("party", [0, 1, 2])
def test_opening_sends_each_party_only_the_share_it_lacks(party: int) -> None:
    """Which its own shares and the revealed value determine, so nothing else is revealed."""
    lacking: list[Tensor] = []

    def run(parties: Parties, inputs: Inputs) -> None:
        x = inputs.payload(0)
        lacking.append(known(parties.share(x, party + 2)))
        sharing.open_to_all(parties, x)
        sharing.open_to(parties, x, party)

    seen = received(Case(run, RING), party, 0, 1)
    assert np.array_equal(seen, np.concatenate([nibbles(lacking[0])] * 2))


# Tampered versions -----------------------------------------------------------------------------------------------


def tampered(which: int, shift: int) -> Tamper:
    """Mask number ``which`` is absent (shift 0), or from another stream: one that its receiver knows, too."""

    def tamper(parties: Parties) -> None:
        count = iter(range(1000))
        masks, mask_rows = parties.masks, parties.mask_rows

        def tampered_masks(stream: int, *arguments: Any, **options: Any) -> Integers | None:
            if next(count) != which:
                return masks(stream, *arguments, **options)
            mask = known(masks(stream + shift, *arguments, **options))
            if not shift:
                mask[...] = 0
            return mask

        def tampered_rows(*arguments: Any) -> tuple[Words, list[Row]]:
            room, rows = mask_rows(*arguments)
            if next(count) != which:
                return room, rows
            # Row i goes to party i - 1, who holds streams i - 1 and i - 2: what is that party's own mask, or taken off.
            own, previous = ({place: row[k].copy() for place, *row in rows} for k in (0, 1))
            for place, row, _ in rows:
                row[...] = own[(place - 1) % 3] if shift == 2 else 0
                previous[place] = (0 * own[place], previous[place], own[(place - 2) % 3])[shift]
            return room, [(place, row, previous[place]) for place, row, _ in rows]

        parties.masks = tampered_masks  # type: ignore[method-assign]
        parties.mask_rows = tampered_rows  # type: ignore[method-assign]

    return tamper


def detected(case: Case, tamper: Tamper) -> bool:
    """Half-bytes alone first, which is quick, then pairs."""
    return any(any(True for _ in leaks(case, tamper, pairs)) for pairs in (False, True))


MASKS = [(name, k) for name, case in CASES.items() for k in range(len(case.draws))]


@pytest.mark.parametrize("shift", [0, 1, 2], ids=["absent", "from the next stream", "from the stream before"])
@pytest.mark.parametrize(("name", "which"), MASKS, ids=[f"{name}: {CASES[name].draws[k]}" for name, k in MASKS])
def test_a_mask_taken_out_or_known_to_the_receiver_is_noticed(name: str, which: int, shift: int) -> None:
    case = CASES[name]
    assert detected(case, tampered(which, shift)) == (case.draws[which] not in case.unneeded)


@pytest.mark.parametrize("name", CASES)
def test_every_mask_drawn_is_among_those_taken_out(name: str) -> None:
    drawn = 0

    def count(parties: Parties) -> None:
        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal drawn
                drawn += 1
                return function(*arguments, **options)

            return call

        parties.masks = counted(parties.masks)  # type: ignore[method-assign]
        parties.mask_rows = counted(parties.mask_rows)  # type: ignore[method-assign]

    received(CASES[name], 2, 0, 0, count)
    assert drawn == len(CASES[name].draws)


@pytest.mark.parametrize("name", ["select from a product", "truncate a product twice"])
def test_a_bit_opened_beside_a_term_is_masked_by_a_dealt_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each term of a division depends on messages as a whole, and no pair of half-bytes shows that a bit opened about
    the other one needs a mask of its own. So they are met with the terms here: for x = 0 either tells the other."""
    opened: list[tuple[Bits, Bits, Bits]] = []
    second_term = Division.second_term

    def recorded(self: Division, c1: Tensor, *arguments: Any) -> None:
        small = [(known(x) ^ (known(x) << 1)) >= 0 for x in (self.x0, self.x1)]
        e, d = (np.unpackbits(known(bits), count=N, bitorder="little") for bits in (self.e, self.d))
        opened.append((e ^ small[1], d ^ small[0], c1.numpy() == 0))
        second_term(self, c1, *arguments)

    monkeypatch.setattr(Division, "second_term", recorded)
    case = CASES[name]
    first = case.draws.index("a 2") if "a 2" in case.draws else case.draws.index("a")

    def far_from_even(tamper: Tamper | None) -> list[bool]:
        opened.clear()
        parties = Parties(LocalTransport(), seed=1)
        if tamper is not None:
            tamper(parties)
        case.run(parties, Inputs(parties, 0, case.secrets[0]))
        e, d, zero = (bits.mean() for bits in opened[-1])
        return [abs(float(e) - 0.5) > 0.1, abs(float(d) - 0.5) > 0.1, float(zero) > 0.1]

    assert far_from_even(None) == [False] * 3
    noticed = [far_from_even(tampered(first + k, 0)) for k in range(3)]
    assert noticed[0][0]
    assert noticed[1][2]
    assert noticed[2][1]


def test_a_mask_used_twice_is_noticed() -> None:
    """Each message alone is uniform; their difference is not."""

    def tamper(parties: Parties) -> None:
        mask_rows = parties.mask_rows
        kept: list[list[Words]] = []

        def same_rows(*arguments: Any) -> tuple[Words, list[Row]]:
            room, rows = mask_rows(*arguments)
            kept.append([part.copy() for _, *row in rows for part in row])
            for (_, own, _), first in zip(rows, kept[0][::2], strict=True):
                own[...] = first
            return room, [
                (place, own, taken.copy()) for (place, own, _), taken in zip(rows, kept[0][1::2], strict=True)
            ]

        parties.mask_rows = same_rows  # type: ignore[method-assign]

    def run(parties: Parties, inputs: Inputs) -> None:
        x, y = inputs.payload(0), inputs.payload(1)
        parties.reshare(product(parties, torch.mul, x, y), "test")
        parties.reshare(product(parties, torch.mul, x, x), "test")

    case = Case(run, FACTORS)
    assert not list(leaks(case))
    assert not list(leaks(case, tamper, pairs=False))
    assert list(leaks(case, tamper, pairs=True))


# Dealing from outside --------------------------------------------------------------------------------------------

KEYS = (b"seed of share 0.", b"seed of share 1.")


def parcel_of(party: int, secret: int, streams: dict[bytes, object], keys: tuple[bytes, bytes]) -> Nibbles:
    """The ring elements in ``party``'s parcel of a dealt ``secret``, its own seeds frozen; by half-bytes."""
    dealt_keys = iter(keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealing, "fresh_key", lambda: next(dealt_keys))
        patch.setattr(dealing, "KeyStream", lambda key: streams.get(key) or KeyStream(key))
        parcel = dealing.deal(torch.full((N,), secret))[party]
    elements = [half for half in (parcel.first, parcel.second) if isinstance(half, Tensor)]
    return np.concatenate([nibbles(half) for half in elements])


class Absent:
    """A stream of zeros."""

    def words(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype)


def dealing_leaks(party: int, absent: int | None = None, same_seed: bool = False) -> bool:
    known_key = KEYS[1] if party == 1 else KEYS[0]

    def view(secret: int, fresh: bytes) -> Nibbles:
        # The seed that this party lacks is another one for every secret.
        keys = (KEYS[0], fresh) if known_key == KEYS[0] else (fresh, KEYS[1])
        streams: dict[bytes, object] = {known_key: Frozen(5)}
        if absent is not None:
            streams[keys[absent]] = Absent()
        return parcel_of(party, secret, streams, (known_key, known_key) if same_seed else keys)

    views = [view(secret, f"fresh for view {k}".encode()[:16].ljust(16)) for k, (secret,) in enumerate(RING)]
    return min(least_p_value(views[0], other) for other in views[1:]) < ALARM


def test_party_0_is_dealt_seeds_only() -> None:
    parcel = dealing.deal(torch.zeros(N, dtype=torch.int64))[0]
    assert isinstance(parcel.first, bytes)
    assert isinstance(parcel.second, bytes)


@pytest.mark.parametrize("party", [1, 2])
def test_a_parcel_does_not_depend_on_the_secret(party: int) -> None:
    assert not dealing_leaks(party)


@pytest.mark.parametrize(("party", "absent"), [(1, 0), (2, 1)])
def test_a_parcel_masked_only_by_what_its_party_knows_is_noticed(party: int, absent: int) -> None:
    assert dealing_leaks(party, absent=absent)
    assert dealing_leaks(party, same_seed=True)
