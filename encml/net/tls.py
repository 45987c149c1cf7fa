"""Three parties as processes on hosts and ports: tensors over mutual TLS 1.3.

One connection per direction between every two parties, non-blocking: all sends and receives of a round go on at
once, so two parties that send each other any amount never wait for one another. An error ends the session: the
transport closes itself, which the others see at once, and says last whom it blames, so that all name the same party.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from encml.config.cluster import ClusterConfig
from encml.errors import EncmlError, PartyError, PartyTimeout, ProtocolError
from encml.net.checks import check_message, check_rotation
from encml.net.ledger import Ledger
from encml.net.mesh import Mesh, meet
from encml.net.streams import Expected, FrameReader, FrameWriter, tensor_bytes
from encml.net.transport import PARTIES, Message, Transport

TURN_BYTES = 2**20
"""Bytes moved one way before the other way has its turn."""
NOTICE_SHARE = 0.75
"""After this share of the time-out, a waiting party tells the other party whom it waits for."""


class TlsTransport(Transport):
    """The transport of one party in its own process; see ``Transport`` and ``connect``.

    Used by one thread at a time; ``close`` may be called from any thread and ends a round that waits.
    """

    def __init__(self, mesh: Mesh, timeout: float, ledger: Ledger | None = None) -> None:
        self.rank = mesh.rank
        self.local: tuple[int, ...] = (mesh.rank,)
        self.ledger = ledger if ledger is not None else Ledger()
        self._mesh = mesh
        self._timeout = timeout
        self._links = {peer: _Link(mesh, peer) for peer in sorted(mesh.outgoing)}
        self._busy = threading.Lock()
        self._closed = False
        self._told = False

    @classmethod
    def connect(cls, config: ClusterConfig, rank: int, ledger: Ledger | None = None) -> TlsTransport:
        """Meet the two other parties, in whatever order they start, and agree on a fresh session.

        Blocks up to ``config.connect_timeout`` seconds. Raises PartyTimeout naming a party that did not come,
        AuthenticationError where a certificate is not that of the expected party, ConfigError for missing keys, a
        port in use, or fixed-point bits that differ.
        """
        return cls(meet(config, rank), config.timeout, ledger)

    @property
    def session(self) -> bytes:
        """The session's public id, the same at all three parties and never used before; 16 bytes."""
        return self._mesh.session

    def exchange(self, messages: Sequence[Message], operation: str) -> list[Tensor | None]:
        """One round; see ``Transport.exchange``."""
        with self._round():
            results: list[Tensor | None] = [None] * len(messages)
            sent = 0
            for place, message in enumerate(messages):
                check_message(message, operation)
                if message.source == self.rank:
                    if message.payload is None:
                        raise ProtocolError(f"{operation}: {message!r} has no payload, though its source is here")
                    sent += self._links[message.destination].put(message.payload, operation)
                elif message.destination == self.rank:
                    results[place] = self._links[message.source].expect(message.shape, message.dtype, operation)
            self._pump(operation)
        self.ledger.round(operation, {self.rank: sent})
        return results

    def rotate(self, rows: Tensor, step: int, operation: str) -> Tensor:
        """One round; see ``Transport.rotate``. ``rows`` is (1, ...)."""
        with self._round():
            check_rotation(rows, step, self.local)
            label = f"{operation} {step:+d}"
            sent = self._links[(self.rank + step) % PARTIES].put(rows, label)
            result = self._links[(self.rank - step) % PARTIES].expect(tuple(rows.shape), rows.dtype, label)
            self._pump(operation)
        self.ledger.round(operation, {self.rank: sent})
        return result

    def check(self) -> None:
        """Between rounds: raise PartyError, and close, if a peer has closed its side; costs microseconds.

        A party that waits for requests calls this now and then, to notice a restarted peer before a request does.
        """
        with self._round():
            for link in self._links.values():
                if link.hung_up():
                    raise link.gone()

    def close(self) -> None:
        """Close all connections; idempotent, from any thread. A round that waits ends with PartyError."""
        self._closed = True
        for link in self._links.values():
            link.shut_down()
        self._settle()

    @contextmanager
    def _round(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise ProtocolError("two threads use one transport at the same time: rounds must follow one another")
        try:
            if self._closed:
                raise PartyError("closed", rank=self.rank)
            yield
        except BaseException as error:
            if self._closed and isinstance(error, EncmlError):
                message = f"party {self.rank} has closed this session: connect again"
                raise PartyError(message, rank=self.rank) from None
            self._closed = True
            if isinstance(error, PartyError) and error.rank is not None:
                self._last_words(error.rank)
            raise
        finally:
            self._busy.release()
            self._settle()

    def _settle(self) -> None:
        """Release the sockets of a closed transport, once no round uses them."""
        if self._closed and self._busy.acquire(blocking=False):
            for link in self._links.values():
                link.close()
            self._busy.release()

    def _last_words(self, suspect: int) -> None:
        """Tell the other party whom this one blames, if that can be done at once."""
        for peer, link in self._links.items():
            if peer != suspect and link.writer.done:
                link.writer.put_waiting(suspect)
                with suppress(EncmlError):
                    link.writer.advance(link.send, TURN_BYTES)

    def _pump(self, operation: str) -> None:
        """Write and read until this round is done."""
        self._told = False
        now = time.monotonic()
        # Everything is sent before anything is read: should reading fail, the peers still get what they wait for.
        for link in self._links.values():
            link.progress = now
            link.write()
        while active := [link for link in self._links.values() if link.active]:
            patience = self._patience(active, operation)
            if len(active) == 1 and active[0].writer.done:
                # Nothing else can be done meanwhile: the read waits itself, cheaper than a read that fails and a poll.
                active[0].advance(patience)
            else:
                for link in [link for link in active if link.ready] or _woken(active, patience):
                    link.advance(0)

    def _patience(self, active: list[_Link], operation: str) -> float:
        """The seconds that may be waited now; raises PartyTimeout when the slowest peer has used up its time."""
        slowest = min(active, key=lambda link: link.progress)
        waited = time.monotonic() - slowest.progress
        if waited >= self._timeout:
            raise self._stalled(slowest, operation)
        if waited >= NOTICE_SHARE * self._timeout and not self._told:
            self._told = True
            for link in self._links.values():
                if link is not slowest:
                    link.writer.put_waiting(slowest.peer)
                    link.progress = time.monotonic()
                    link.write()
        limit = self._timeout if self._told else NOTICE_SHARE * self._timeout
        return limit - waited

    def _stalled(self, link: _Link, operation: str) -> PartyTimeout:
        rank, other = link.peer, link.reader.waits_for
        because = ""
        if other is not None and other != self.rank:
            rank, because = other, f", and party {link.peer} waits for it"
        elif other is not None:
            because = ", and it waits for this party: are both at the same place of the same program?"
        address = self._mesh.addresses[rank]
        found = f"party {rank} ({address}) has stalled: no progress for {self._timeout:g} s in {operation!r}{because}"
        return PartyTimeout(f"{found}; timeout in the cluster file sets the limit", rank=rank, address=address)


def _woken(active: list[_Link], seconds: float) -> list[_Link]:
    """Those whose connections can go on, as soon as there is one; none after ``seconds``."""
    poll = select.poll()
    for link in active:
        link.register(poll)
    descriptors = {descriptor for descriptor, _ in poll.poll(max(1, round(1000 * seconds)))}
    return [link for link in active if not descriptors.isdisjoint(link.descriptors)]


class _Link:
    """The two connections with one peer, and where their streams are."""

    def __init__(self, mesh: Mesh, peer: int) -> None:
        self.peer = peer
        self.progress = 0.0
        """When data last went either way, as ``time.monotonic``."""
        self.writer = FrameWriter(mesh.session)
        self.reader = FrameReader(peer, mesh.rank, mesh.addresses, mesh.session)
        self._out = mesh.outgoing[peer]
        self._in = mesh.incoming[peer]
        self.descriptors = (self._out.fileno(), self._in.fileno())
        self._name = f"party {peer} ({mesh.addresses[peer]})"
        self._out_events, self._in_events = select.POLLOUT, select.POLLIN
        self._lost = False

    @property
    def active(self) -> bool:
        """Whether the round needs more of this peer."""
        return not (self.writer.done and self.reader.done)

    def put(self, payload: Tensor, operation: str) -> int:
        """Queue a payload for the peer; returns its bytes."""
        if not payload.is_cpu:
            raise ProtocolError(f"{operation}: a payload on {payload.device}; parties send tensors in CPU memory")
        data = tensor_bytes(payload.detach().contiguous())
        self.writer.put(operation, tuple(payload.shape), payload.dtype, data)
        return len(data)

    def expect(self, shape: tuple[int, ...], dtype: torch.dtype, operation: str) -> Tensor:
        """The tensor into which the peer's next payload will go."""
        result = torch.empty(shape, dtype=dtype)
        self.reader.expect(Expected(operation, shape, dtype, tensor_bytes(result)))
        return result

    @property
    def ready(self) -> bool:
        """Whether there is something to do that no socket would tell: bytes already decrypted, or a lost peer."""
        return self._lost if self.reader.done else self._in.pending() > 0

    def write(self) -> int:
        """Write what goes without waiting; returns the bytes."""
        return 0 if self.writer.done or self._lost else self.writer.advance(self.send, TURN_BYTES)

    def advance(self, patience: float) -> None:
        """Write what goes without waiting, and read, waiting up to ``patience`` seconds for each piece."""
        count = self.write()
        if not self.reader.done:
            self._in.settimeout(patience)
            count += self.reader.advance(self.receive, TURN_BYTES)
        if self._lost and self.reader.done:
            raise self.gone()
        if count and self.reader.waits_for is None:
            self.progress = time.monotonic()

    def gone(self) -> PartyError:
        """The error for a lost peer, once what it said last has been read."""
        self._in.settimeout(0)
        self.reader.last_words(self.receive)
        return self.reader.gone()

    def send(self, data: bytes | memoryview) -> int | None:
        """Write some of ``data``; None where that would block, or the peer is lost (then its own words are read)."""
        try:
            return self._out.send(data)
        except ssl.SSLWantWriteError:
            self._out_events = select.POLLOUT
        except ssl.SSLWantReadError:
            self._out_events = select.POLLIN
        except OSError:
            self._lost = True
        return None

    def receive(self, buffer: memoryview) -> int | None:
        """Fill some of ``buffer``; None where that would block, 0 where the peer is gone."""
        try:
            return self._in.recv_into(buffer, len(buffer))
        except ssl.SSLWantReadError:
            self._in_events = select.POLLIN
            return None
        except ssl.SSLWantWriteError:
            self._in_events = select.POLLOUT
            return None
        except TimeoutError:
            return None
        except ssl.SSLEOFError:
            return 0
        except ssl.SSLError as error:
            found = f"{self._name}: what came is not what it sent ({error.reason})"
            raise ProtocolError(f"{found}; the network garbled it or somebody tampers with it") from None
        except OSError:
            return 0

    def register(self, poll: select.poll) -> None:
        """Have ``poll`` watch for what this link waits for."""
        if not self.writer.done and not self._lost:
            poll.register(self._out, self._out_events)
        if not self.reader.done:
            poll.register(self._in, self._in_events)

    def hung_up(self) -> bool:
        """Whether the peer has closed the connection that it only reads."""
        try:
            # It never writes there, so whatever can be read is the connection's end.
            socket.socket.recv(self._out, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def shut_down(self) -> None:
        """End both connections without releasing them, under a round that may be using them."""
        for sock in (self._out, self._in):
            with suppress(OSError):
                # SSLSocket.shutdown would first drop the TLS layer, and the round would go on in the clear.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Release both sockets."""
        self._out.close()
        self._in.close()
