"""Three parties apart, each with its own shares only, compute bit for bit what the in-process session does.

A protocol that used a share, mask or message that its party does not hold would fail here, and so would one in which
the parties' streams of masks drift apart.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from plain_ring import in_process, random_ring, split, split_bits
from torch import Tensor

from encml.errors import ProtocolError
from encml.mpc import dealing, sharing
from encml.mpc.comparison import SecretBits, invert, negative, select, to_arithmetic
from encml.mpc.multiplication import and_bits, product
from encml.mpc.parties import Parties, known
from encml.mpc.truncation import truncate, truncate_rows
from encml.net.ledger import Ledger
from encml.net.local import LocalTransport

SEED = 2024


def inputs(parties: Parties, shape: tuple[int, ...] = (3, 23)) -> tuple[Tensor, Tensor, SecretBits]:
    x, y = (split(parties, random_ring(shape, k) >> 34, 10 + k) for k in (0, 1))
    return x, y, SecretBits(split_bits(parties, random_ring(shape, 2) & 1, 12), shape)


def from_owner(parties: Parties, owner: int) -> Tensor:
    value = random_ring((4, 5), owner)
    return sharing.share_from(parties, owner, value if parties.plays(owner) else None, (4, 5))


def pair(parties: Parties, first: int, xor: bool) -> Tensor:
    left, right = random_ring((2, 9), 7)
    sides = left if parties.plays(first) else None, right if parties.plays(first + 1) else None
    return parties.reshare_pair(first, *sides, (9,), "test", xor=xor)


def dealt(parties: Parties) -> Tensor:
    """Parcels as a dealer would make them, with fixed seeds so that every thread sees the same ones."""
    values, seeds = random_ring((6,), 3), [bytes([k]) * 16 for k in (1, 2)]
    x0, x1 = (dealing.Parcel(seed, seed, (6,)).expand()[0] for seed in seeds)
    rest = values - x0 - x1
    halves: list[dealing.Half] = [seeds[0], seeds[1], rest]
    parcels = [dealing.Parcel(halves[i], halves[(i + 1) % 3], (6,)).expand() for i in parties.local]
    return dealing.receive(parties, parcels)


def relu(parties: Parties, width: int) -> list[Tensor]:
    x, _, _ = inputs(parties)
    return [select(parties, invert(parties, negative(parties, x, width)), x)]


def layers(parties: Parties) -> list[Tensor]:
    """Many protocols in a row, so that drifting streams or turns would show."""
    image, weight = split(parties, random_ring((2, 1, 6, 6), 1) >> 36, 3), split(parties, random_ring((2, 1, 3, 3), 2))
    outputs = []
    for _ in range(3):
        h = truncate_rows(parties, product(parties, F.conv2d, image, weight), 16)
        h = select(parties, invert(parties, negative(parties, h)), h)
        h = truncate(parties, h, 3)
        outputs += [h, parties.reshare(product(parties, torch.mul, h, h), "square")]
    return outputs


def relu_of_public(parties: Parties) -> list[Tensor]:
    x = sharing.public(parties, random_ring((9,), 1) >> 4)
    return [select(parties, negative(parties, x), x), truncate(parties, x, 16)]


PAYLOADS: dict[str, Callable[[Parties], list[Tensor]]] = {
    "public": lambda p: [sharing.public(p, random_ring((3, 2), 1))],
    "share": lambda p: [from_owner(p, owner) for owner in range(3)],
    "deal": lambda p: [dealt(p)],
    "reshare_pair": lambda p: [pair(p, first, xor) for first in range(3) for xor in (False, True)],
    "product": lambda p: [p.reshare(product(p, torch.mul, *inputs(p)[:2]), "test")],
    "matmul": lambda p: [
        p.reshare(product(p, torch.matmul, inputs(p)[0], inputs(p)[1].transpose(1, 2)), "test"),
    ],
    "and": lambda p: [and_bits(p, inputs(p)[2].plane, inputs(p)[2].plane, "test")],
    "truncate": lambda p: [truncate(p, inputs(p)[0], m) for m in (1, 8, 16, 17, 33, 48)],
    "truncate_rows": lambda p: [
        truncate_rows(p, product(p, torch.mul, *inputs(p)[:2]), m) for m in (1, 8, 16, 17, 33, 48)
    ],
    "negative": lambda p: [negative(p, inputs(p)[0], bits).plane for bits in (2, 3, 31, 32, 63, 64)],
    "invert": lambda p: [invert(p, inputs(p)[2]).plane],
    "to_arithmetic": lambda p: [to_arithmetic(p, inputs(p)[2]) for _ in range(3)],
    "select": lambda p: [select(p, inputs(p)[2], inputs(p)[0]) for _ in range(3)],
    "relu": lambda p: relu(p, 64) + relu(p, 32) + relu(p, 64),
    "views": lambda p: [
        truncate(p, inputs(p)[0].transpose(1, 2), 4),
        to_arithmetic(p, negative(p, inputs(p)[0][..., ::2])),
    ],
    "zero-dimensional": lambda p: [truncate(p, inputs(p, ())[0], 4), to_arithmetic(p, negative(p, inputs(p, ())[0]))],
    "empty": lambda p: [truncate(p, inputs(p, (0, 2))[0], 4), to_arithmetic(p, negative(p, inputs(p, (0, 2))[0]))],
    "constant shares": relu_of_public,
    "layers": layers,
}


def whole_ledger(ledgers: list[Ledger]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Rounds and bytes by operation; of three ledgers, each of which knows its own party's bytes."""
    names = {name for ledger in ledgers for name in ledger.costs}
    booked = {}
    for name in names:
        rounds = {ledger.costs[name].rounds for ledger in ledgers}
        assert len(rounds) == 1, "every party counts every round"
        sent = tuple(sum(ledger.costs[name].sent[rank] for ledger in ledgers) for rank in range(3))
        booked[name] = (rounds.pop(), sent)
    return booked


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_shares_are_bit_for_bit_the_in_process_ones(name: str) -> None:
    sent: list[list[tuple[int, str, Tensor]]] = [[], [], []]
    together = Parties(LocalTransport(tap=lambda s, d, payload, op: sent[s].append((d, op, payload.clone()))), SEED)
    expected = PAYLOADS[name](together)
    results, transports = run_apart(PAYLOADS[name], SEED)
    for rank, result in enumerate(results):
        assert len(result) == len(expected)
        for mine, all_three in zip(result, expected, strict=True):
            assert torch.equal(mine, all_three[[rank, (rank + 1) % 3]])
    assert whole_ledger([transport.ledger for transport in transports]) == whole_ledger([together.ledger])
    # What the secrecy tests see in one process is what real parties send.
    for rank, transport in enumerate(transports):
        assert len(transport.transcript) == len(sent[rank])
        for (to, operation, mine), (there, booked, theirs) in zip(transport.transcript, sent[rank], strict=True):
            assert (to, operation) == (there, booked)
            assert torch.equal(mine.view(theirs.shape), theirs)


def test_what_is_opened_is_the_same() -> None:
    def script(parties: Parties) -> list[Tensor | None]:
        x, y, _ = inputs(parties)
        rows = product(parties, torch.mul, x, y)
        one = [sharing.open_to(parties, x, receiver) for receiver in range(3)]
        return [sharing.open_to_all(parties, x), parties.open_rows(rows, "test"), *one]

    together = script(in_process(SEED))
    results, _ = run_apart(script, SEED)
    for rank, result in enumerate(results):
        for position, (mine, expected) in enumerate(zip(result, together, strict=True)):
            if position >= 2 and position - 2 != rank:
                assert mine is None, "only the receiver learns"
            else:
                assert torch.equal(known(mine), known(expected))


def test_masks_agree_between_their_two_holders_and_nobody_else() -> None:
    def script(parties: Parties) -> list[Tensor | None]:
        return [parties.common(stream, (4,)) for stream in range(3)]

    results, _ = run_apart(script, SEED)
    for stream in range(3):
        assert results[(stream + 2) % 3][stream] is None
        assert torch.equal(known(results[stream][stream]), known(results[(stream + 1) % 3][stream]))
    assert len({tuple(known(results[stream][stream]).tolist()) for stream in range(3)}) == 3


def test_without_a_seed_every_session_has_its_own_masks() -> None:
    draws = [Parties(LocalTransport()).zero((2,)) for _ in range(20)]
    assert len({tuple(draw.view(-1).tolist()) for draw in draws}) == 20


def test_a_share_that_is_not_held_stops_the_protocol() -> None:
    def script(parties: Parties) -> Tensor:
        return known(parties.share(inputs(parties)[0], 0))

    with pytest.raises(ProtocolError, match="no party in this process holds"):
        run_apart(script, SEED)


def test_parties_that_do_different_things_stop() -> None:
    def script(parties: Parties) -> Tensor:
        x, _, _ = inputs(parties)
        return sharing.open_to_all(parties, x[:, :1] if parties.plays(0) else x)

    with pytest.raises(ProtocolError, match="drifted apart"):
        run_apart(script, SEED)
