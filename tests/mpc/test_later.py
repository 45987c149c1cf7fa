"""Work that is put off: done once, in order within a chain, chains in the same rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ring import in_process

from encml.mpc import later
from encml.mpc.later import Job, Later
from encml.mpc.parties import Parties


def waiting(parties: Parties, done: list[int], number: int, rounds: int = 2) -> Callable[[], None]:
    """A job of so many rounds."""

    def job() -> None:
        for _ in range(rounds):
            parties.net.rotate(torch.zeros(parties.here, 1), +1, "test")
        done.append(number)

    return job


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=1, max_size=12))
def test_jobs_run_after_what_they_need_and_chains_share_rounds(needs: list[list[int]]) -> None:
    parties, done = in_process(), list[int]()
    queue, jobs = Later(parties), list[Job]()
    for number, before in enumerate(needs):
        jobs.append(queue.put_off(waiting(parties, done, number), [jobs[i] for i in before if i < number]))
    start, chains = parties.ledger.rounds, [job.chain for job in jobs]
    queue.catch_up()
    assert sorted(done) == list(range(len(needs)))
    for number, before in enumerate(needs):
        assert all(done.index(i) < done.index(number) for i in before if i < number)
        assert all(chains[i] is chains[number] for i in before if i < number)
    longest = max(sum(chain is other for other in chains) for chain in chains)
    assert parties.ledger.rounds - start == 2 * longest
    assert not queue
    queue.catch_up()
    assert len(done) == len(needs)


def test_what_an_error_left_undone_is_done_the_next_time() -> None:
    parties, done = in_process(), list[int]()
    queue, refuse = Later(parties), [True]

    def fails() -> None:
        if refuse:
            raise RuntimeError("cut off")
        done.append(1)

    first = queue.put_off(waiting(parties, done, 0, rounds=0), [])
    second = queue.put_off(fails, [first])
    queue.put_off(waiting(parties, done, 2), [])
    with pytest.raises(RuntimeError, match="cut off"):
        queue.catch_up()
    assert (done, first.done, second.done, bool(queue)) == ([0], True, False, True)
    refuse.clear()
    queue.catch_up()
    assert done == [0, 1, 2]


def test_more_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "MOST", 3)
    parties, done = in_process(), list[int]()
    queue = Later(parties)
    for number in range(4):
        queue.put_off(waiting(parties, done, number), [])
    assert done == [0, 1, 2]
