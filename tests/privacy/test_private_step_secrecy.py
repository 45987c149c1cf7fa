"""Nothing that a party receives while gradients are clipped and added up depends on the examples.

As in the tests of secure averaging: a party's own shares and streams are frozen, the third share is what the secret
asks for, the third stream is drawn anew in each run. Two worlds: a short and a long gradient, in either order. All
half-bytes of all messages must have the same distribution in both; with the masks taken out, the same test notices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

from encml.mpc.parties import Parties
from encml.net.local import LocalTransport
from encml.privacy import wraparound
from encml.privacy.grid import Grid
from encml.privacy.layers import layers_of
from encml.privacy.per_example import Captured, clipped_sums
from encml.ring.prg import KeyStream, fresh_key

ALARM = 1e-11
RUNS = 64
GRID = Grid.of(16, 1.0, 1.0, 10)
SHORT = torch.tensor([[2**12, -77], [5, 2**13 + 1]]), torch.tensor([[2**10 + 3], [-9]])
LONG = torch.tensor([[2**19 + 5, -(2**17)], [2**18, 3]]), torch.tensor([[-(2**16) - 1], [2**17 + 7]])
WORLDS = ((SHORT, LONG), (LONG, SHORT))

Bytes = npt.NDArray[np.uint8]


def frozen(values: Tensor, party: int, seed: int) -> Tensor:
    """A payload of which ``party``'s two shares are always the same."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(-(2**62), 2**62, (2, *values.shape), generator=generator)
    by_index = [first, second, values - first - second]
    return torch.stack([by_index[(i - party) % 3] for i in range(3)])


def received(party: int, world: int) -> Bytes:
    """All messages to ``party``: (RUNS, bytes)."""
    ((_, layer),) = layers_of(nn.Linear(2, 1))
    activations, errors = (torch.stack([example[i] for example in WORLDS[world]]) for i in range(2))
    samples = []
    for _ in range(RUNS):
        seen: list[bytes] = []

        def tap(source: int, destination: int, payload: Tensor, operation: str, into: list[bytes] = seen) -> None:
            if destination == party:
                into.append(payload.contiguous().numpy().tobytes())

        parties = Parties(LocalTransport(tap=tap), seed=1)
        seen.clear()
        parties._streams[(party + 1) % 3] = KeyStream(fresh_key())
        clipped_sums(
            parties, [Captured(layer, frozen(activations, party, 1), frozen(errors, party, 2))], GRID, bytes(16)
        )
        samples.append(np.frombuffer(b"".join(seen), np.uint8))
    return np.stack(samples)


def least_p_value(one: Bytes, two: Bytes) -> float:
    """The least p-value for the same distribution in both samples, over all half-bytes."""
    halves = [np.concatenate([sample & 15, sample >> 4], axis=1).astype(np.intp) for sample in (one, two)]
    columns = halves[0].shape[1]
    a, b = (
        np.bincount((half + 16 * np.arange(columns)).ravel(), minlength=16 * columns).reshape(columns, 16)
        for half in halves
    )
    total = a + b
    statistic = np.divide((a - b) ** 2.0, total, out=np.zeros(total.shape), where=total > 0).sum(1)
    freedom = (total > 0).sum(1) - 1
    return float(np.where(freedom > 0, chi2.sf(statistic, np.maximum(freedom, 1)), 1.0).min())


@pytest.fixture(autouse=True)
def few_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the norm check's projections, one word of bits an example: the same messages, shorter."""
    monkeypatch.setattr(wraparound, "DIRECTIONS", 32)


@pytest.mark.parametrize("party", range(3))
def test_what_a_party_receives_does_not_depend_on_the_examples(party: int) -> None:
    views = [received(party, world) for world in (0, 1)]
    assert views[0].shape[1] > 4000
    assert least_p_value(*views) > ALARM


def test_missing_zero_masks_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Parties.mask_rows

    def mask_rows(self: Parties, *arguments: Any) -> Any:
        room, rows = original(self, *arguments)
        room[...] = 0
        return room, [(place, own, np.zeros_like(own)) for place, own, _ in rows]

    monkeypatch.setattr(Parties, "mask_rows", mask_rows)
    monkeypatch.setitem(globals(), "RUNS", 32)
    assert any(least_p_value(received(party, 0), received(party, 1)) < ALARM for party in range(3))
