"""What one party sees of a protocol, frozen except for what that party does not know, and a test that it tells nothing.

A party's view is its own two shares, the two streams of masks it holds, and the messages it receives. Its shares and
streams are *frozen*: one constant in each of GROUPS groups of elements. The third share follows the secret, the third
stream is drawn anew. So every element of a group is one sample of what the received messages are, given all that the
party knows; two secrets that it must not tell apart have to give the same distribution. A message without a mask, or
with one its receiver knows, is a constant here, and the constants of two secrets differ.

Compared are all pairs of half-bytes of all messages (a half-byte with the other half of its byte among them), so masks
used twice and parts that only tell something together are found as well; and the parity of any three bits of which one
is a message by itself, for a bit whose mask is hidden in another message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from plain_ring import random_ring
from scipy.stats import chi2
from torch import Tensor

from encml.mpc.comparison import SecretBits
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport

N = 4096
GROUPS = 4
ALARM = 1e-14
"""With 2.2e6 comparisons of honest views in these tests a false alarm has a chance of 2e-8, whatever the seeds."""

Nibbles = npt.NDArray[np.uint8]


class Frozen:
    """A stream as the party that holds it sees it: every draw is one constant in each group of elements."""

    def __init__(self, seed: int) -> None:
        self._seed, self._draws = seed, 0

    def words(self, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        self._draws += 1
        constants = random_ring((*shape[:-1], GROUPS), self._seed * 1000 + self._draws)
        if _holds_bits(shape[-1], dtype):
            constants = -(constants & 1)
        return constants.to(dtype).repeat_interleave(shape[-1] // GROUPS, -1)

    def fill(self, out: npt.NDArray[Any]) -> None:
        out[...] = self.words(out.shape, torch.from_numpy(out).dtype).numpy()


def _holds_bits(length: int, dtype: torch.dtype) -> bool:
    """Whether ``length`` words hold one bit of each element, rather than one word of each."""
    if length == N:
        return False
    assert length * dtype.itemsize * 8 == N, "a draw or message of these protocols has a word or a bit an element"
    return True


@dataclass(frozen=True)
class Inputs:
    """Payloads of secrets as ``party`` may know them: its own shares frozen, the third one what the secret asks for."""

    parties: Parties
    party: int
    secret: tuple[int, ...]

    def payload(self, which: int) -> Tensor:
        own = Frozen(100 + which)
        return self._place(own.words((N,)), own.words((N,)), torch.full((N,), self.secret[which]), xor=False)

    def bits(self, which: int) -> SecretBits:
        own, words = Frozen(200 + which), (N // 64,)
        plane = torch.full(words, -(self.secret[which] & 1))
        return SecretBits(self._place(own.words(words), own.words(words), plane, xor=True), (N,))

    def _place(self, first: Tensor, second: Tensor, secret: Tensor, xor: bool) -> Tensor:
        third = secret ^ first ^ second if xor else secret - first - second
        return self.parties.assemble([first, second, third], self.party)


Tamper = Callable[[Parties], None]
Run = Callable[[Parties, Inputs], object]


@dataclass(frozen=True)
class Case:
    """A protocol; secrets that its parties must not tell apart; the masks it draws, in order, by name.

    ``insiders`` may know the secret (its owner). ``unneeded`` masks protect nothing on purpose.
    """

    run: Run
    secrets: tuple[tuple[int, ...], ...]
    draws: tuple[str, ...] = ()
    insiders: tuple[int, ...] = ()
    unneeded: tuple[str, ...] = ()


def received(case: Case, party: int, lead: int, secret: int, tamper: Tamper | None = None) -> Nibbles:
    """All that ``party`` receives when ``lead`` leads first and the secret is number ``secret``: (half-bytes, N)."""
    seen: list[Nibbles] = []

    def tap(source: int, destination: int, payload: Tensor, operation: str) -> None:
        if destination == party and operation != "setup":
            seen.append(nibbles(payload))

    parties = Parties(LocalTransport(tap=tap), seed=7000 + 100 * party + 10 * lead + secret)
    for stream in (party, party - 1):
        parties._streams[stream % 3] = Frozen(300 + stream % 3)  # type: ignore[assignment]
    parties._lead = (lead - 1) % 3
    if tamper is not None:
        tamper(parties)
    case.run(parties, Inputs(parties, party, case.secrets[secret]))
    return np.concatenate(seen) if seen else np.zeros((0, N), np.uint8)


def nibbles(payload: Tensor) -> Nibbles:
    """A message as rows of half-bytes, one column an element; bits go four planes to a row."""
    words = payload.contiguous().view(-1, payload.shape[-1])
    data = words.numpy().view(np.uint8).reshape(len(words), -1)
    if _holds_bits(payload.shape[-1], payload.dtype):
        planes = np.unpackbits(data, axis=1, bitorder="little")
        planes = np.concatenate([planes, np.zeros((-len(planes) % 4, N), np.uint8)]).reshape(-1, 4, N)
        return planes[:, 0] | planes[:, 1] << 1 | planes[:, 2] << 2 | planes[:, 3] << 3
    octets = data.reshape(len(words), N, -1).transpose(0, 2, 1).reshape(-1, N)
    return np.concatenate([octets & 15, octets >> 4])


def least_p_value(one: Nibbles, two: Nibbles, pairs: bool = True) -> float:
    """The least p-value for equal distributions in every group: of half-bytes, or also of what goes together."""
    assert one.shape == two.shape, "even the sizes of messages must not depend on a secret"
    least, group = _of_parities(one, two) if pairs else 1.0, np.arange(N) // (N // GROUPS) * 256
    for i in range(len(one)):
        stop = len(one) if pairs else i + 1
        a, b = (_counts(view[i : i + 1] * np.intp(16) + view[i:stop] + group) for view in (one, two))
        total = a + b
        statistic = np.divide((a - b) ** 2, total, out=np.zeros(a.shape), where=total > 0).sum(1)
        freedom = (total > 0).sum(1) - GROUPS
        # One cell in every group leaves no freedom, and nothing to tell apart.
        least = min(least, float(np.where(freedom > 0, chi2.sf(statistic, np.maximum(freedom, 1)), 1.0).min()))
    return least


def _of_parities(one: Nibbles, two: Nibbles) -> float:
    """Parities of three bits, one of them from a row that holds only one: their sums over a group, compared."""
    signs = [_signs(view) for view in (one, two)]
    alone = np.flatnonzero((one | two).max(1, initial=0) == 1) * 4
    least = 1.0
    for bit in alone:
        sums = [(s * s[:, :, bit, None]).swapaxes(1, 2) @ s for s in signs]
        statistic = ((sums[0] - sums[1]) ** 2).sum(0) / (2 * N // GROUPS)
        least = min(least, float(chi2.sf(statistic, GROUPS).min()))
    return least


def _signs(view: Nibbles) -> npt.NDArray[np.float32]:
    """The bits of half-bytes as +1 and -1: (GROUPS, elements of a group, bits)."""
    bits = (view[:, None] >> np.arange(4, dtype=np.uint8)[:, None] & 1).reshape(-1, GROUPS, N // GROUPS)
    return (1 - 2 * bits.astype(np.float32)).transpose(1, 2, 0)


def _counts(cells: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    rows, size = len(cells), GROUPS * 256
    return (
        np.bincount((cells + np.arange(rows)[:, None] * size).ravel(), minlength=rows * size).reshape(rows, size) * 1.0
    )


def leaks(case: Case, tamper: Tamper | None = None, pairs: bool = True) -> Iterator[str]:
    """Every view of every party under every lead in which two secrets look different.

    Without ``pairs`` only half-bytes by themselves are compared, which is quick.
    """
    for lead in range(3):
        for party in range(3):
            if party in case.insiders:
                continue
            first = received(case, party, lead, 0, tamper)
            for other in range(1, len(case.secrets)):
                p_value = least_p_value(first, received(case, party, lead, other, tamper), pairs)
                if p_value < ALARM:
                    yield f"party {party}, lead {lead}: secret 0 from secret {other}, p = {p_value:.1e}"
