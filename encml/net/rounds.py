"""Independent protocols share their rounds.

Each protocol of ``together`` runs in a greenlet of its own, as if it were alone, until it exchanges messages. When all
of them wait, their messages travel as one round, and each goes on with what it received. The order in which they run,
and so the order in which they draw masks, is the same at every party: nothing here depends on time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

from encml.net.checks import check_rotation
from encml.net.transport import PARTIES, Message, Transport

_Wish = tuple[list[Message], str]
"""The messages of one protocol's next round, and the name of what they are for."""


class SharedRounds(Transport):
    """A transport on top of another, on which protocols can run together.

    Outside ``together`` it is the other transport, unchanged.
    """

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.local = inner.local
        self.ledger = inner.ledger
        self._jobs: set[Any] = set()

    def exchange(self, messages: Sequence[Message], operation: str) -> list[Tensor | None]:
        """See ``Transport.exchange``; in a job of ``together``, part of the round of all jobs."""
        job: Any = getcurrent()
        if job not in self._jobs:
            return self.inner.exchange(messages, operation)
        received: list[Tensor | None] = job.parent.switch((list(messages), operation))
        return received

    def rotate(self, rows: Tensor, step: int, operation: str) -> Tensor:
        """See ``Transport.rotate``; in a job of ``together``, part of the round of all jobs."""
        if getcurrent() not in self._jobs:
            return self.inner.rotate(rows, step, operation)
        check_rotation(rows, step, self.local)
        shape, dtype, own = tuple(rows.shape[1:]), rows.dtype, dict(zip(self.local, rows.unbind(), strict=True))
        # By receiver, so that what arrives is in order; a message between two others is for them to know.
        ways = [((rank - step) % PARTIES, rank) for rank in range(PARTIES)]
        messages = [Message(s, d, own.get(s), shape, dtype) for s, d in ways if s in own or d in own]
        arrived = [row for row in self.exchange(messages, operation) if row is not None]
        return arrived[0].unsqueeze(0) if len(arrived) == 1 else torch.stack(arrived)

    def together(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run independent protocols, merging the first rounds of all, the second rounds of all, and so on.

        Returns their results in order. As many rounds as the longest has. If one raises, the others are abandoned where
        they stand and the error is passed on. The jobs must not change PyTorch's modes (no_grad, ...) across a round.
        """
        if len(jobs) == 1:
            return [jobs[0]()]
        results: list[Any] = [None] * len(jobs)
        waiting: dict[int, _Wish] = {}
        running = [greenlet(job) for job in jobs]
        self._jobs.update(running)
        try:
            for place, job in enumerate(running):
                job.gr_context = copy_context()
                _resume(place, job, (), waiting, results)
            while waiting:
                answers = self._round(waiting)
                waiting = {}
                for place, answer in answers.items():
                    _resume(place, running[place], (answer,), waiting, results)
        finally:
            for job in running:
                if not job.dead:
                    job.throw()
            self._jobs.difference_update(running)
        return results

    def _round(self, waiting: dict[int, _Wish]) -> dict[int, list[Tensor | None]]:
        """All messages that the jobs wish to exchange, in one round; what came, by job."""
        messages = [message for wish, _ in waiting.values() for message in wish]
        received = self.exchange(messages, " + ".join(sorted({name for _, name in waiting.values()})))
        answers, start = {}, 0
        for place, (wish, _) in waiting.items():
            answers[place] = received[start : start + len(wish)]
            start += len(wish)
        return answers

    def close(self) -> None:
        """See ``Transport.close``."""
        self.inner.close()


def _resume(
    place: int,
    job: greenlet,
    values: tuple[Any, ...],
    waiting: dict[int, _Wish],
    results: list[Any],
) -> None:
    """Let a job run on until it wishes to exchange messages, or ends."""
    outcome = job.switch(*values)
    if job.dead:
        results[place] = outcome
    else:
        waiting[place] = outcome
