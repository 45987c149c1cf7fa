"""Work that is put off until somebody needs its result, and then done in the same rounds as all that was put off.

A loop that updates one tensor after the other would pay the rounds of each; put off, all updates are worked out at once
when the first of them is looked at. What depends on what was put off before joins its *chain* and keeps its order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from encml.mpc.parties import Parties

MOST = 4096
"""How many jobs may wait; the next one has them all done first. What nobody ever looks at would be kept for good."""


class Job:
    """Something that is to be done once, after the jobs that were put off before it in its chain."""

    __slots__ = ("_chain", "_do")

    def __init__(self, do: Callable[[], None], after: Iterable[Job] = ()) -> None:
        self._do: Callable[[], None] | None = do
        self._chain: Job | None = None
        for job in after:
            if (first := job.chain) is not self:
                first._chain = self

    @property
    def done(self) -> bool:
        """Whether it has been done."""
        return self._do is None

    @property
    def chain(self) -> Job:
        """Stands for the chain: the same for all jobs of one."""
        last = self
        while last._chain is not None:
            last = last._chain
        return last

    def run(self) -> None:
        """Do it, and let go of all that it held."""
        if self._do is not None:
            self._do()
            self._do = None


class Later:
    """What has been put off in one session, in order. The order is the program's, and so the same at every party."""

    def __init__(self, parties: Parties) -> None:
        self._parties = parties
        self._jobs: list[Job] = []

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def put_off(self, do: Callable[[], None], after: Iterable[Job | None]) -> Job:
        """Have something done later; ``after`` the jobs, if not done already, whose results it needs."""
        if len(self._jobs) >= MOST:
            self.catch_up()
        job = Job(do, [before for before in after if before is not None and not before.done])
        self._jobs.append(job)
        return job

    def catch_up(self) -> None:
        """Do all that waits; independent chains in the same rounds. After an error, what is not done waits on."""
        jobs, self._jobs = self._jobs, []
        chains: dict[Job, list[Job]] = {}
        for job in jobs:
            chains.setdefault(job.chain, []).append(job)
        try:
            self._parties.together(*(partial(_run, chain) for chain in chains.values()))
        finally:
            self._jobs = [job for job in jobs if not job.done] + self._jobs


def _run(chain: list[Job]) -> None:
    for job in chain:
        job.run()
