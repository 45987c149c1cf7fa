"""How three parties find each other: one TLS 1.3 connection each way between every two of them, and one session.

Every party listens and dials both others. On a connection the dialling party says hello (rank, fixed-point bits, a
fresh nonce) and the other welcomes it with its own nonce. A party that has both nonces hashes all three, in rank
order, into the session id and announces that on its outgoing connections; it is ready when both others have
announced the same. So no frame of an earlier session can ever be taken for one of this session.

One loop serves all connections without blocking, each with a deadline of its own: a stranger that connects and stays
silent, speaks something else or has no certificate of a party of this cluster holds nobody up.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import secrets
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from enum import IntEnum

from encml.config.cluster import ClusterConfig
from encml.errors import AuthenticationError, ConfigError, EncmlError, PartyTimeout, ProtocolError
from encml.net.certificates import client_context, party_hostname, require_role, server_context
from encml.net.frames import HEADER_BYTES, MAGIC, SESSION_BYTES, VERSION, Header, Kind, agreed
from encml.net.steps import Steps, handshake, receive, send
from encml.net.transport import PARTIES

HANDSHAKE_SECONDS = 5.0
"""A connection that is not set up after this long is closed."""
MAX_GUESTS = 64
"""Incoming connections in their handshake at one time; beyond it the oldest goes."""
REDIAL_SECONDS = 0.1
DISTRUST_SECONDS = 2.0
"""How long a peer is tried again that shows a wrong certificate or refuses ours, before that ends the attempt."""

_NONCE_BYTES = 24
_HELLO = struct.Struct(f"<4sBBBB{_NONCE_BYTES}s")  # magic, version, rank, fraction and comparison bits, nonce
_WELCOME = struct.Struct(f"<4sBB2x{_NONCE_BYTES}s")  # magic, version, verdict, nonce
_HANGUP = getattr(select, "POLLRDHUP", 0)
_ASLEEP = 0

_log = logging.getLogger(__name__)


class _Verdict(IntEnum):
    WELCOME = 0
    ROLE = 1
    VERSION = 2
    FRACTION_BITS = 3
    COMPARISON_BITS = 4


@dataclass(frozen=True, slots=True)
class Mesh:
    """The connections of party ``rank``: to each peer one that it only writes and one that it only reads."""

    rank: int
    session: bytes
    outgoing: dict[int, ssl.SSLSocket]
    incoming: dict[int, ssl.SSLSocket]
    addresses: dict[int, str]


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection being set up. ``dialled`` is the rank for an outgoing one, ``nonce`` the peer's, once known."""

    sock: socket.socket
    address: str
    dialled: int | None
    deadline: float
    steps: Steps = field(init=False)
    events: int = _ASLEEP
    nonce: bytes | None = None
    announced: bytes | None = None
    """The session that we have announced (outgoing) or the peer has (incoming)."""


def meet(config: ClusterConfig, rank: int) -> Mesh:
    """Connect party ``rank`` with the two others, whichever starts first; blocks up to ``connect_timeout`` seconds.

    Raises PartyTimeout naming a party that did not come, AuthenticationError where a peer is not who it should be or
    refuses this party's certificate, ConfigError for missing keys, a port in use, or fixed-point bits that differ.
    """
    if not 0 <= rank < PARTIES:
        raise ConfigError(f"party rank {rank}: expected 0..{PARTIES - 1}")
    meeting = _Meeting(config, rank)
    try:
        return meeting.run()
    finally:
        meeting.close()


class _Meeting:
    def __init__(self, config: ClusterConfig, rank: int) -> None:
        self._config = config
        self._rank = rank
        self._peers = [peer for peer in range(PARTIES) if peer != rank]
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._server = server_context(config.keys, rank)
        self._client = client_context(config.keys, f"party-{rank}")
        self._connections: list[_Connection] = []
        self._outgoing: dict[int, _Connection] = {}
        self._incoming: dict[int, _Connection] = {}
        self._session: bytes | None = None
        self._next_dial = dict.fromkeys(self._peers, 0.0)
        self._attempts = dict.fromkeys(self._peers, 0)
        self._met: set[int] = set()
        self._problems: dict[int, str] = {}
        self._distrust: dict[int, tuple[float, AuthenticationError]] = {}
        self._last_refusal = ""
        self._mismatch: ConfigError | None = None
        self._listener = self._listen()

    def run(self) -> Mesh:
        deadline = time.monotonic() + self._config.connect_timeout
        while not self._agree():
            now = time.monotonic()
            if now >= deadline:
                raise self._too_late()
            for connection in [c for c in self._connections if now >= c.deadline]:
                self._drop(connection, TimeoutError(f"no handshake within {HANDSHAKE_SECONDS:g} s"))
            for peer in self._peers:
                if peer not in [c.dialled for c in self._connections] and now >= self._next_dial[peer]:
                    self._dial(peer)
            self._turn(deadline)
        assert self._session is not None
        outgoing, incoming = self._take(self._outgoing), self._take(self._incoming)
        addresses = {peer: self._config.parties[peer].mesh_address for peer in self._peers}
        return Mesh(self._rank, self._session, outgoing, incoming, addresses)

    def close(self) -> None:
        """Close the listener and every connection that was not taken."""
        self._listener.close()
        for connection in self._connections:
            connection.sock.close()

    def _take(self, links: dict[int, _Connection]) -> dict[int, ssl.SSLSocket]:
        taken = {}
        for peer, connection in links.items():
            assert isinstance(connection.sock, ssl.SSLSocket)
            self._connections.remove(connection)
            taken[peer] = connection.sock
        return taken

    def _listen(self) -> socket.socket:
        party = self._config.parties[self._rank]
        where = f"party {self._rank} cannot listen on {party.listen_host}:{party.mesh_port}"
        try:
            found = socket.getaddrinfo(
                party.listen_host, party.mesh_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, address = found[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise ConfigError(f"{where}: {error.strerror}; see host and bind") from None
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_GUESTS)
        except OSError as error:
            listener.close()
            raise ConfigError(f"{where}: {error.strerror}; see host, bind and mesh_port") from None
        listener.setblocking(False)
        return listener

    def _turn(self, deadline: float) -> None:
        """Wait for something to happen, then serve what happened."""
        before = [connection.announced for connection in self._connections]
        for connection in [c for c in self._connections if c.events in (_ASLEEP, _HANGUP)]:
            self._resume(connection, 0)
        if [connection.announced for connection in self._connections] != before:
            return
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        for connection in self._connections:
            if connection.events:
                poll.register(connection.sock, connection.events)
        times = [deadline, *(c.deadline for c in self._connections)]
        times += [t for peer, t in self._next_dial.items() if peer not in [c.dialled for c in self._connections]]
        seen = dict(poll.poll(max(0, math.ceil((min(times) - time.monotonic()) * 1000))))
        for connection in list(self._connections):
            events = seen.get(connection.sock.fileno(), 0)
            if events:
                self._resume(connection, events)
        if self._listener.fileno() in seen:
            self._accept()

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError as error:
            self._last_refusal = f"an incoming connection failed: {error.strerror}"
            time.sleep(REDIAL_SECONDS)  # out of file descriptors, say: do not spin on it
            return
        guests = [c for c in self._connections if c.dialled is None and c.nonce is None]
        if len(guests) >= MAX_GUESTS:
            self._drop(guests[0], TimeoutError("too many connections wait for their handshake"))
        self._start(sock, f"{address[0]}:{address[1]}", None)

    def _dial(self, peer: int) -> None:
        party = self._config.parties[peer]
        self._next_dial[peer] = time.monotonic() + REDIAL_SECONDS
        try:
            found = socket.getaddrinfo(party.host, party.mesh_port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[self._attempts[peer] % len(found)]
            self._attempts[peer] += 1
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            self._problems[peer] = _reason(error)
            return
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._problems[peer] = os.strerror(code)
            return
        self._start(sock, party.mesh_address, peer)

    def _start(self, sock: socket.socket, address: str, dialled: int | None) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock, address, dialled, time.monotonic() + HANDSHAKE_SECONDS)
        connection.steps = self._host(connection) if dialled is None else self._visit(connection, dialled)
        self._connections.append(connection)
        self._resume(connection, None)

    def _resume(self, connection: _Connection, events: int | None) -> None:
        if connection not in self._connections:
            return
        try:
            connection.events = next(connection.steps) if events is None else connection.steps.send(events)
        except (OSError, EncmlError) as error:
            self._drop(connection, error)

    def _drop(self, connection: _Connection, error: Exception) -> None:
        """Close a connection that failed; raise where trying again cannot help."""
        connection.steps.close()
        connection.sock.close()
        self._connections.remove(connection)
        for links in (self._outgoing, self._incoming):
            for peer in [peer for peer, link in links.items() if link is connection]:
                del links[peer]
        if connection.dialled is None:
            self._last_refusal = f"refused {connection.address}: {_reason(error)}"
            _log.info("party %d %s", self._rank, self._last_refusal)
            return
        peer = connection.dialled
        self._problems[peer] = _reason(error)
        if isinstance(error, ConfigError):
            raise error
        if isinstance(error, ssl.SSLCertVerificationError):
            self._note_distrust(peer, f"{connection.address} is not party {peer} of this cluster: {_reason(error)}")
        elif isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            ours = f"the certificate of party {self._rank}"
            self._note_distrust(peer, f"party {peer} ({connection.address}) refused {ours}: {error.reason}")
        elif isinstance(error, AuthenticationError):
            self._note_distrust(peer, str(error))

    def _note_distrust(self, peer: int, message: str) -> None:
        """A wrong certificate: keep trying a little (somebody else may sit on the port), then give up for good."""
        address = self._config.parties[peer].mesh_address
        error = AuthenticationError(message, rank=peer, address=address)
        since, _ = self._distrust.get(peer, (time.monotonic(), error))
        self._distrust[peer] = since, error
        if time.monotonic() - since >= DISTRUST_SECONDS:
            raise error

    def _host(self, connection: _Connection) -> Steps:
        """Serve an incoming connection: TLS, hello, welcome, then the peer's announcements of the session."""
        sock = connection.sock = self._server.wrap_socket(
            connection.sock, server_side=True, do_handshake_on_connect=False
        )
        yield from handshake(sock)
        hello = yield from receive(sock, _HELLO.size)
        try:
            identity = require_role(sock.getpeercert(), "party", address=connection.address)
        except AuthenticationError:
            yield from send(sock, _WELCOME.pack(MAGIC, VERSION, _Verdict.ROLE, bytes(_NONCE_BYTES)))
            raise
        magic, version, rank, fraction_bits, comparison_bits, nonce = _HELLO.unpack(hello)
        verdict = _Verdict.WELCOME
        if magic != MAGIC or version != VERSION:
            verdict = _Verdict.VERSION
        elif rank != identity.rank or rank == self._rank:
            verdict = _Verdict.ROLE
        elif fraction_bits != self._config.fraction_bits:
            verdict = _Verdict.FRACTION_BITS
            self._mismatch = self._bits_differ(f"party {rank} ({connection.address})", str(fraction_bits))
        elif comparison_bits != (self._config.comparison_bits or 0):
            verdict = _Verdict.COMPARISON_BITS
            found = str(comparison_bits or None)
            self._mismatch = self._bits_differ(f"party {rank} ({connection.address})", found, "comparison_bits")
        yield from send(sock, _WELCOME.pack(MAGIC, VERSION, verdict, self._nonce))
        if verdict != _Verdict.WELCOME:
            raise ProtocolError(f"{identity.name} said hello as party {rank}: {verdict.name.lower()} differs")
        if rank in self._incoming:
            self._drop(self._incoming[rank], ConnectionResetError("the party connected anew"))
        connection.nonce, connection.deadline = nonce, math.inf
        self._incoming[rank] = connection
        while True:
            announcement = Header.unpack((yield from receive(sock, HEADER_BYTES)), identity.name)
            if announcement.kind != Kind.AGREED:
                raise ProtocolError(f"{identity.name} sent a {announcement.kind.name} frame before the session began")
            connection.announced = announcement.session
            # What comes after the right announcement is the session's first frame, and not for us to read.
            while self._session is None or connection.announced == self._session:
                if (yield _HANGUP if self._session is None else _ASLEEP):
                    raise ConnectionResetError(errno.ECONNRESET, "the party closed the connection")

    def _visit(self, connection: _Connection, peer: int) -> Steps:
        """Serve an outgoing connection: TLS, hello, welcome; then only notice when the peer closes it."""
        yield select.POLLOUT
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if connection.sock.getsockname() == connection.sock.getpeername():
            # Dialling a free local port in a loop can pick that very port as its own: TCP then connects to itself.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
        sock = connection.sock = self._client.wrap_socket(
            connection.sock, do_handshake_on_connect=False, server_hostname=party_hostname(peer)
        )
        yield from handshake(sock)
        require_role(sock.getpeercert(), "party", peer, connection.address)
        bits = self._config.fraction_bits, self._config.comparison_bits or 0
        yield from send(sock, _HELLO.pack(MAGIC, VERSION, self._rank, *bits, self._nonce))
        magic, version, verdict, nonce = _WELCOME.unpack((yield from receive(sock, _WELCOME.size)))
        name = f"party {peer} ({connection.address})"
        if magic != MAGIC or version != VERSION or verdict == _Verdict.VERSION:
            raise ConfigError(f"{name} speaks another version of the wire format: run the same encml at every party")
        if verdict == _Verdict.FRACTION_BITS:
            raise self._bits_differ(name, "something else")
        if verdict == _Verdict.COMPARISON_BITS:
            raise self._bits_differ(name, "something else", "comparison_bits")
        if verdict != _Verdict.WELCOME:
            message = f"{name} refused this party as party {self._rank}"
            raise AuthenticationError(message, rank=peer, address=connection.address)
        connection.nonce, connection.deadline = nonce, math.inf
        self._outgoing[peer] = connection
        self._met.add(peer)
        self._distrust.pop(peer, None)
        yield from receive(sock, 1)
        raise ProtocolError(f"{name} wrote to a connection that it only reads")

    def _bits_differ(self, name: str, found: str, key: str = "fraction_bits") -> ConfigError:
        bits = f"{key} is {getattr(self._config, key)} here and {found} there"
        return ConfigError(f"{name}: {bits}: use the same cluster file at every party")

    def _agree(self) -> bool:
        """Work out the session, announce it, and say whether both others have announced the same."""
        nonces = {self._rank: self._nonce}
        for peer in self._peers:
            there, back = self._outgoing.get(peer), self._incoming.get(peer)
            # They differ for a moment while a restarted peer replaces its connections.
            if there is not None and back is not None and there.nonce is not None and there.nonce == back.nonce:
                nonces[peer] = there.nonce
        if len(nonces) < PARTIES:
            self._session = None
            return False
        joined = b"".join(nonces[rank] for rank in range(PARTIES))
        self._session = hashlib.blake2b(joined, digest_size=SESSION_BYTES, person=b"encml session").digest()
        for peer in self._peers:
            connection = self._outgoing[peer]
            if connection.announced != self._session:
                try:
                    connection.sock.send(agreed(self._session))
                except OSError as error:
                    self._drop(connection, error)
                    return False
                connection.announced = self._session
        return all(self._incoming[peer].announced == self._session for peer in self._peers)

    def _too_late(self) -> EncmlError:
        for _, distrusted in self._distrust.values():
            return distrusted
        if self._mismatch is not None:
            # Whoever noticed first has left, and nothing but this was wrong.
            return self._mismatch
        missing = [p for p in self._peers if p not in self._outgoing or p not in self._incoming] or self._peers
        # A peer that was here and left has most likely given up for want of the one that never came.
        peer = min(missing, key=lambda p: p in self._met)
        address = self._config.parties[peer].mesh_address
        hints = [self._problems.get(peer, ""), self._last_refusal]
        hint = "; ".join(hint for hint in hints if hint)
        message = f"party {peer} ({address}) did not join within {self._config.connect_timeout:g} s"
        return PartyTimeout(f"{message}: {hint or 'no answer'}", rank=peer, address=address)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    if isinstance(error, (EncmlError, socket.gaierror)) or not isinstance(error, OSError):
        return str(error)
    return error.strerror or str(error)
