"""One party's computing thread: it keeps the session with the other two and computes what all three have.

Whatever goes wrong in a session ends it: every waiting request gets the error, and the thread meets the others anew,
with new keys, until they are back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.config.cluster import ClusterConfig
from encml.errors import ConfigError, EncmlError, PartyError, ServingError
from encml.mpc.dealing import receive
from encml.mpc.session import Session
from encml.net.local import LocalTransport
from encml.serving import control
from encml.serving.control import LEADER, MAX_CANDIDATES, Marker
from encml.serving.jobs import Busy, Decision, Job, Verdict, choose, refusal, statement_of
from encml.serving.registry import MAX_MODELS, Model, Registry
from encml.serving.wire import Problem, QueryResult
from encml.tensor import SharedTensor, share
from encml.tensor.secret import Secret
from encml.tensor.shared import secret

PART_WAIT = 2.0
"""Seconds that a request may lack a part at some party before it is given up."""
MOMENT = 0.003
"""Seconds that a party holds up the others for a part that it lacks: a client sends to all three at about one time."""
HEARTBEAT = 1.0
"""Seconds between two signs of life (less with a short time-out)."""
WARM_BITS = 24
"""Bits of a declared range, to have what compares in few bits compiled, too."""
AGAIN = 1.0
"""Seconds before another attempt to join where the last one failed at once."""

_UNEXPECTED = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, OSError)
"""What a computation that nobody tried before may end with: no memory left, a full disk."""

_log = logging.getLogger(__name__)


class Engine:
    """Computes the jobs of one party, in the order that party 0 sets. ``ended`` is called when the thread ends."""

    def __init__(self, config: ClusterConfig, rank: int, registry: Registry, ended: Callable[[], None]) -> None:
        self._config = config
        self._rank = rank
        self._registry = registry
        self._ended = ended
        self._heartbeat = min(HEARTBEAT, config.timeout / 5)
        self._part_wait = min(PART_WAIT, config.timeout / 2)
        self._changed = threading.Condition()
        self._jobs: dict[bytes, Job] = {}
        self._stopping = False
        self._session: Session | None = None
        self._problem: Problem | None = None
        self._busy = False
        self._weights: dict[Model, dict[str, SharedTensor]] = {}
        self._thread = threading.Thread(target=self._work, name=f"party-{rank}", daemon=True)
        self.failure: EncmlError | None = None
        """Why the thread ended, if it was not told to."""

    def start(self) -> None:
        """Begin to meet the others."""
        self._thread.start()

    def stop(self) -> None:
        """End the session and the thread; waiting requests get an error. From another thread."""
        with self._changed:
            self._stopping = True
            session = self._session
            self._changed.notify_all()
        self._fail_all(Problem.of(ServingError(f"party {self._rank} is stopping"), self._rank))
        if session is not None:
            session.close()
            self._thread.join(timeout=1.0)
        # A thread that still waits for the other parties to come is left behind: nothing depends on it.

    @property
    def state(self) -> tuple[str, Problem | None, int]:
        """("ready" | "busy" | "connecting", why not connected, waiting requests)."""
        with self._changed:
            if self._session is None:
                return "connecting", self._problem, len(self._jobs)
            return "busy" if self._busy else "ready", None, len(self._jobs)

    def check_open(self) -> None:
        """Raise PartyError, naming the party at fault, while there is no session; ``Busy`` if the queue is full."""
        with self._changed:
            self._check_open()

    def submit(self, job: Job) -> None:
        """Queue a job; its result comes through its future. Raises as ``check_open``."""
        with self._changed:
            self._check_open()
            if job.request in self._jobs:
                raise ServingError(f"party {self._rank} has a request with this id already")
            job.result.set_running_or_notify_cancel()  # nobody cancels it from now on
            self._jobs[job.request] = job
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._stopping:
            raise ServingError(f"party {self._rank} is stopping")
        if self._session is None:
            if self._problem is not None:
                raise self._problem.exception()
            raise PartyError(f"party {self._rank} is still waiting for the other parties to join")
        if len(self._jobs) >= MAX_CANDIDATES:
            raise Busy(f"{MAX_CANDIDATES} requests wait at party {self._rank} already; ask again later")

    # The thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        joined = False
        try:
            _warm_up()
            while not self._stopping:
                session = self._join(fatal=not joined)
                if session is None:
                    continue
                joined = True
                try:
                    self._reconcile(session)
                    marker = Marker(session.parties)
                    _log.info("party %d: in session with the others", self._rank)
                    while True:
                        self._turn(session, marker)
                except EncmlError as error:
                    self._leave(session, error)
                except _UNEXPECTED as error:
                    _log.exception("party %d: a computation failed", self._rank)
                    self._leave(session, ServingError(f"party {self._rank} failed with a {type(error).__name__}"))
        except EncmlError as error:
            self.failure = error
        finally:
            self._fail_all(Problem.of(ServingError(f"party {self._rank} has stopped"), self._rank))
            self._ended()

    def _join(self, *, fatal: bool) -> Session | None:
        """A session with the others, or None after an attempt that failed."""
        started = time.monotonic()
        try:
            session = Session.from_cluster(self._config, self._rank)
        except EncmlError as error:
            if fatal and isinstance(error, ConfigError):
                raise
            with self._changed:
                news = self._problem is None or str(error) != self._problem.error
                self._problem = Problem.of(error)
                if news and not self._stopping:
                    _log.warning("party %d: %s", self._rank, error)
                if time.monotonic() - started < AGAIN:
                    self._changed.wait_for(lambda: self._stopping, AGAIN)
            return None
        with self._changed:
            if self._stopping:
                session.close()
                return None
            self._session, self._weights = session, {}
        return session

    def _leave(self, session: Session, error: EncmlError) -> None:
        session.close()
        with self._changed:
            self._session, self._busy = None, False
            self._problem = Problem.of(error)
            if not self._stopping:
                _log.warning("party %d: the session has ended: %s", self._rank, error)
        self._fail_all(self._problem)

    def _fail_all(self, problem: Problem) -> None:
        with self._changed:
            jobs = list(self._jobs.values())
            self._jobs.clear()
        for job in jobs:
            job.result.set_exception(problem.exception())

    def _reconcile(self, session: Session) -> None:
        """Agree on how many requests each model may still answer: the least that any party counts."""
        own = torch.zeros(1, MAX_MODELS, 2, dtype=torch.int64)
        models = self._registry.models()[:MAX_MODELS]
        for row, model in enumerate(models):
            own[0, row, 0] = model.tag
            own[0, row, 1] = -1 if model.remaining is None else model.remaining
        for step in (1, -1):
            theirs: dict[int, int] = dict(session.parties.net.rotate(own, step, "serve: counts")[0].tolist())
            for model in models:
                if theirs.get(model.tag, -1) >= 0:
                    self._registry.lower(model, theirs[model.tag])

    def _turn(self, session: Session, marker: Marker) -> None:
        """One proposal, and what follows from it. 2 rounds, and what the computation takes."""
        net = session.parties.net
        jobs: list[Job | None]
        if self._rank == LEADER:
            due, now = self._due(), time.monotonic()
            proposals = [job.proposal(now, self._part_wait) for job in due]
            control.propose(net, proposals)
            jobs = list(due)
        else:
            proposals = control.listen(net)
            now = time.monotonic()
            jobs = self._parts([proposal.candidate.request for proposal in proposals])
        statements = []
        for proposal, job in zip(proposals, jobs, strict=True):
            if job is not None:
                job.proposed = job.proposed or now
            statements.append(statement_of(proposal.candidate, job, marker))
        said = control.tell(net, self._rank, statements)
        self._carry_out(session, jobs, choose(proposals, said, jobs))
        if self._rank != LEADER:
            self._expire(now)

    def _due(self) -> list[Job]:
        """The jobs to propose now; waits for one no longer than a heartbeat."""
        until = time.monotonic() + self._heartbeat
        with self._changed:
            while True:
                now = time.monotonic()
                due = [job for job in self._jobs.values() if job.retry_at <= now]
                if due or now >= until or self._stopping:
                    return due[:MAX_CANDIDATES]
                self._changed.wait(min([until, *(job.retry_at for job in self._jobs.values())]) - now)

    def _parts(self, requests: Sequence[bytes]) -> list[Job | None]:
        """This party's parts of requests; if it has none of them, it gives the client a moment to send one."""
        with self._changed:
            if requests:
                self._changed.wait_for(lambda: self._stopping or any(r in self._jobs for r in requests), MOMENT)
            return [self._jobs.get(request) for request in requests]

    def _expire(self, now: float) -> None:
        """Give up requests that the leader, though it has spoken since, does not know."""
        with self._changed:
            late = [j for j in self._jobs.values() if j.proposed is None and now - j.arrived > self._part_wait]
        for job in late:
            self._drop(job, Decision(Verdict.INCOMPLETE, (LEADER,)))

    def _carry_out(self, session: Session, jobs: Sequence[Job | None], decisions: Sequence[Decision]) -> None:
        run: list[Job] = []
        for job, decision in zip(jobs, decisions, strict=True):
            if job is None:
                continue
            if decision.verdict == Verdict.RUN:
                run.append(job)
            elif decision.verdict == Verdict.WAIT:
                job.retry(time.monotonic())
            elif decision.verdict != Verdict.LATER:
                self._drop(job, decision)
        if run:
            self._registry.spend(run[0].model, len(run))
            with self._changed:
                self._busy = True
            self._compute(session, run)
            with self._changed:
                self._busy = False

    def _drop(self, job: Job, decision: Decision) -> None:
        if self._take(job):
            job.result.set_exception(refusal(job, decision, self._part_wait))

    def _take(self, job: Job) -> bool:
        """Take a job out of the queue; whoever does so, and nobody else, gives its result."""
        with self._changed:
            return self._jobs.pop(job.request, None) is not None

    def _compute(self, session: Session, jobs: Sequence[Job]) -> None:
        """Compute jobs of one model together; their shares of the output are fresh."""
        model = jobs[0].model
        with torch.no_grad(), session.ledger.measure() as spent:
            parameters = self._parameters(session, model)
            payload = torch.cat([job.payload for job in jobs], 1)
            output = secret(model.part.graph.run(parameters, _shared(session, payload)))
            # The zero mask makes what a client sees of this party independent of the weights' shares, whatever the
            # last operation was; after a product it is masked already.
            share = output.payload[0] + session.parties.zero(output.shape)[0]
        remaining = model.remaining
        start = 0
        for job in jobs:
            part = share[start : start + job.batch]
            start += job.batch
            result = QueryResult(
                model_id=model.part.model_id,
                shape=tuple(part.shape),
                fraction_bits=output.fraction_bits,
                rounds=spent[0].rounds,
                sent_bytes=spent[0].bytes,
                seconds=spent[0].seconds,
                remaining=remaining,
            )
            if self._take(job):
                job.result.set_result((part, result))

    def _parameters(self, session: Session, model: Model) -> dict[str, SharedTensor]:
        """The model's parameters in this session."""
        found = self._weights.get(model)
        if found is None:
            known = self._registry.models()
            self._weights = {model: weights for model, weights in self._weights.items() if model in known}
            found = {name: _shared(session, payload) for name, payload in model.part.tensors.items()}
            self._weights[model] = found
        return found


def _shared(session: Session, parcel: Tensor) -> SharedTensor:
    payload = receive(session.parties, [parcel])
    return SharedTensor(Secret(session, session.fraction_bits, payload=payload))


def _warm_up() -> None:
    """Have kernels compiled before anybody waits: a party that compiles in its first round seems to have stalled.

    Usual layers, for one example and several, on a product that is still to be rounded and on values that are not, in
    all bits and in few.
    """
    for batch, bits in ((2, None), (1, WARM_BITS)):
        session = Session(LocalTransport(), comparison_bits=bits)
        x: Tensor = share(torch.ones(batch, 2, 8, 8), session=session)
        with torch.no_grad():
            x = F.avg_pool2d(F.conv2d(x, x[:1, :, :3, :3].repeat(4, 1, 1, 1), x[0, 0, 0, :4], padding=1), 2)
            x = torch.relu(F.max_pool2d(torch.relu(x), 2)).flatten(1).repeat(1, 64)
            secret(torch.relu(F.linear(x, x[:1].repeat(5, 1), x[0, :5]))).settle()
