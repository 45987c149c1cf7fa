"""Sessions: three parties that compute together, and the one that is current."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType

import torch

from encml.config.cluster import LEAST_WHOLE_BITS, ClusterConfig, load_cluster
from encml.errors import ConfigError
from encml.mpc.coins import PublicCoins
from encml.mpc.comparison import WORD_BITS
from encml.mpc.later import Later
from encml.mpc.parties import Parties
from encml.net.ledger import Ledger
from encml.net.local import LocalTransport
from encml.net.tls import TlsTransport
from encml.net.transport import PARTIES, Transport
from encml.ring.devices import CPU
from encml.ring.fixed import DEFAULT_FRACTION_BITS, MAX_FRACTION_BITS

logger = logging.getLogger("encml")

_current: ContextVar[Session | None] = ContextVar("encml_session", default=None)
_default: list[Session] = []
_warned: list[bool] = []


class Session:
    """Three computing parties and the fixed-point format they use.

    Without a transport all three parties live in this process: the very protocol that separate processes run, with
    every message counted, but no privacy. ``Session.from_cluster`` joins real parties. As a context manager the
    session is the one that ``encml.share`` uses inside the block; on exit it is closed.

    fraction_bits: f, 4 to 24; values are multiples of 2^-f with magnitude below 2^(62 - 2f).
    comparison_bits: declares that all values that meet in a comparison (of a ReLU, a maximum, a sign, ``<``, ...) are
        below 2^(comparison_bits - 1 - f) in magnitude: 2^15 for 32 and f = 16. A ReLU then takes 10.7 B a party and
        value less than one of 64 bits and a round less. Beyond that range comparisons are wrong without a sign;
        ``encml.check`` tells. Default: what is compared may have twice the magnitude of the whole range.
    seed: reproducible masks, for tests and benchmarks only.
    device: where payloads lie and products are worked out, such as "cuda". To PyTorch, SharedTensors are on the CPU
        nevertheless, as all that is public about them is: what is shared may lie anywhere, and what is revealed lies
        there. (PyTorch runs what is differentiated on another device in another thread.)
    """

    def __init__(
        self,
        transport: Transport | None = None,
        *,
        fraction_bits: int = DEFAULT_FRACTION_BITS,
        comparison_bits: int | None = None,
        seed: int | None = None,
        device: torch.device | str = CPU,
    ) -> None:
        if not 4 <= fraction_bits <= MAX_FRACTION_BITS:
            raise ConfigError(f"fraction_bits: found {fraction_bits}, allowed 4 to {MAX_FRACTION_BITS}")
        least = fraction_bits + LEAST_WHOLE_BITS
        if comparison_bits is not None and not least <= comparison_bits <= WORD_BITS:
            raise ConfigError(f"comparison_bits: found {comparison_bits}, allowed {least} to {WORD_BITS}")
        if transport is None:
            transport = LocalTransport()
            _say_once_that_in_process_is_not_private()
        self.fraction_bits = fraction_bits
        self.comparison_bits = comparison_bits
        self.parties = Parties(transport, seed, torch.device(device))
        self.coins = PublicCoins(self.parties)
        self.later = Later(self.parties)
        self._tokens: list[Token[Session | None]] = []

    @classmethod
    def from_cluster(
        cls, cluster: ClusterConfig | str | Path, rank: int, *, device: torch.device | str = CPU
    ) -> Session:
        """Join the session of a cluster of real parties as party ``rank``; all three must do so.

        cluster: a cluster file or what ``load_cluster`` read from one. Blocks until the others are there, up to its
        ``connect_timeout`` seconds. Raises ConfigError, AuthenticationError or PartyTimeout, which names the party.
        """
        config = cluster if isinstance(cluster, ClusterConfig) else load_cluster(cluster)
        transport = TlsTransport.connect(config, rank)
        return cls(transport, fraction_bits=config.fraction_bits, comparison_bits=config.comparison_bits, device=device)

    def __repr__(self) -> str:
        return f"Session(parties here: {self.parties.local}, fraction_bits={self.fraction_bits})"

    @property
    def ledger(self) -> Ledger:
        """Rounds, bytes and seconds so far, by operation."""
        return self.parties.ledger

    @property
    def device(self) -> torch.device:
        """Where payloads lie."""
        return self.parties.device

    def rekey(self, context: bytes) -> None:
        """Begin all masks and public random choices anew: see ``Parties.rekey``. No communication."""
        self.parties.rekey(context)
        self.coins.forget()

    def compared_bits(self, fraction_bits: int, *, difference: bool = True) -> int:
        """The bits, 64 at most, in which values with so many fraction bits are compared: integers below 2^(bits - 1).

        difference: of two such values, else of one and 0. Without a declared range there is a bit to spare for sums,
        so that both are the same: |x| < 2^(63 - 2f).
        """
        f = self.fraction_bits
        more = max(fraction_bits - f, 0)
        if self.comparison_bits is None:
            return min(WORD_BITS, WORD_BITS - f + more)
        return min(WORD_BITS, self.comparison_bits + difference + more)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What happens inside happens whole, or ends this party's session.

        An error or Ctrl-C that strikes one party between drawing a mask and sending, say, would leave its masks out of
        step with the others', and every later result wrong without a sign. Where the error came before anything was
        drawn or sent, the session goes on; in one process the parties cannot drift apart.
        """
        before = self.parties.place, self.coins.drawn
        try:
            yield
        except BaseException:
            if self.parties.here < PARTIES and (self.parties.place, self.coins.drawn) != before:
                self.close()
            raise

    def catch_up(self) -> None:
        """Work out what was put off, all of it in the same rounds; see ``encml.mpc.later``. Free if nothing was."""
        if self.later:
            with self.whole(), self.ledger.operation("update"):
                self.later.catch_up()

    def close(self) -> None:
        """End the session; idempotent. What was put off is not worked out any more; leaving a ``with`` block does."""
        self.parties.net.close()

    def __enter__(self) -> Session:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())
        if not self._tokens:
            try:
                if error is None:
                    self.catch_up()
            finally:
                self.close()


def current_session() -> Session:
    """The session of the innermost ``with`` block, else one in-process session made on first use."""
    session = _current.get()
    if session is not None:
        return session
    if not _default:
        _default.append(Session())
    return _default[0]


def _say_once_that_in_process_is_not_private() -> None:
    if not _warned:
        _warned.append(True)
        logger.warning(
            "in-process session: all three parties live in this process, so nothing is hidden from it; "
            "use Session.from_cluster for real parties"
        )
