"""Requests to the three parties at the same time, from owners and clients.

One background thread with its own event loop, so that it works in scripts, threads and notebooks alike, connections
stay open between requests, and whoever waits can be interrupted.
"""

from __future__ import annotations

import asyncio
import atexit
import io
import socket
import ssl
import threading
import weakref
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from encml.config.cluster import ClusterConfig
from encml.errors import AuthenticationError, EncmlError, PartyError, PartyTimeout, ServingError
from encml.net.certificates import client_context, party_hostname
from encml.net.transport import PARTIES
from encml.serving.wire import API, Problem, read_message

T = TypeVar("T")

IDLE_SECONDS = 600.0
"""How long an unused connection is kept."""
CLOSE_SECONDS = 1.0
_LARGE = 2**20
"""From here on aiohttp sends a body piece by piece, so that it does not hold up the other calls."""


@dataclass(frozen=True, slots=True, repr=False)
class Call:
    """One request to one party; ``path`` is what follows ``/v1``."""

    method: str
    path: str
    body: bytes = b""
    query: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """A party's answer: its body, and one header where the call names it."""

    body: bytes
    headers: dict[str, str]


class Calls:
    """Connections of ``name`` (a client's or the owner's keys) with the three parties of a cluster."""

    def __init__(self, config: ClusterConfig, name: str) -> None:
        self._config = config
        self._context = client_context(config.keys, name)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"encml-{name}", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self._wait(self._open())
        _unclosed.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; idempotent."""
        if self._loop.is_closed():
            return
        _unclosed.discard(self)
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def all(self, calls: Sequence[Call], timeout: float) -> list[Reply]:
        """One call to each party, at the same time; the replies by rank.

        The first error ends it and is raised: the party's own (see ``Problem``), PartyError for a party that cannot be
        reached, AuthenticationError where a certificate is refused, PartyTimeout where a party does not answer within
        ``timeout`` seconds, or within the cluster's ``timeout`` after another has.
        """
        return self._wait(self._gather(calls, timeout))

    def each(self, calls: Sequence[Call], timeout: float) -> list[Reply | EncmlError]:
        """As ``all``, but every party's reply or error, whatever the others do."""
        return self._wait(self._gather_each(calls, timeout))

    async def _gather(self, calls: Sequence[Call], timeout: float) -> list[Reply]:
        # Party 0 proposes what it has, so it comes last.
        tasks = [asyncio.create_task(self._call(rank, calls[rank], timeout)) for rank in reversed(range(len(calls)))]
        tasks.reverse()
        pending, limit = set(tasks), timeout
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise self._silent(next(rank for rank, task in enumerate(tasks) if task in pending), limit)
                for task in tasks:
                    if task in done:
                        task.result()
                limit = min(limit, self._config.timeout)
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _gather_each(self, calls: Sequence[Call], timeout: float) -> list[Reply | EncmlError]:
        async def one(rank: int, call: Call) -> Reply | EncmlError:
            try:
                return await self._call(rank, call, timeout)
            except EncmlError as error:
                return error

        return list(await asyncio.gather(*(one(rank, call) for rank, call in enumerate(calls))))

    async def _call(self, rank: int, call: Call, timeout: float) -> Reply:
        party = self._config.parties[rank]
        where = f"party {rank} ({party.api_address})"
        try:
            async with self._session.request(
                call.method,
                f"https://{_bracketed(party.host)}:{party.api_port}{API}{call.path}",
                data=call.body if len(call.body) < _LARGE else io.BytesIO(call.body),
                params=call.query,
                server_hostname=party_hostname(rank),
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=self._config.timeout),
            ) as response:
                body = await response.read()
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
            raise AuthenticationError(
                f"{where} is not party {rank} of this cluster: {reason}", rank=rank, address=party.api_address
            ) from None
        except TimeoutError:
            raise self._silent(rank, timeout) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(rank, error) from None
        if response.status != 200:
            raise _reported(response.status, body, where)
        return Reply(body, dict(response.headers))

    def _silent(self, rank: int, seconds: float) -> PartyTimeout:
        address = self._config.parties[rank].api_address
        return PartyTimeout(f"party {rank} ({address}) did not answer within {seconds:g} s", rank=rank, address=address)

    def _unreachable(self, rank: int, error: Exception) -> PartyError:
        address = self._config.parties[rank].api_address
        inner = next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, ssl.SSLError)), None)
        if inner is not None:
            return AuthenticationError(
                f"party {rank} ({address}) refused the connection: {inner.reason or inner}: is this certificate of its "
                "cluster?",
                rank=rank,
                address=address,
            )
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, aiohttp.ServerDisconnectedError):
            reason = "it closed the connection"
        return PartyError(f"party {rank} ({address}) cannot be reached: {reason}", rank=rank, address=address)

    async def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=self._context, keepalive_timeout=IDLE_SECONDS, limit=0, socket_factory=self._new_socket
        )
        return aiohttp.ClientSession(connector=connector)

    def _new_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        sock = socket.socket(family, kind, protocol)
        self._sockets.add(sock)
        return sock

    async def _close(self) -> None:
        await self._session.close()
        # A request that was cancelled leaves a connection that still waits for its peer to say goodbye.
        for sock in self._sockets:
            if sock.fileno() != -1:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        until = self._loop.time() + CLOSE_SECONDS
        while any(sock.fileno() != -1 for sock in self._sockets) and self._loop.time() < until:
            await asyncio.sleep(0.001)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the background thread and wait for it; an interrupt cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


_unclosed: weakref.WeakSet[Calls] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Whoever forgot to close, in a notebook say, is not told so in the terminal when Python ends."""
    for calls in list(_unclosed):
        calls.close()


def same(call: Call) -> list[Call]:
    """The same call to every party."""
    return [call] * PARTIES


def _reported(status: int, body: bytes, where: str) -> EncmlError:
    try:
        return read_message(Problem, body, where).exception()
    except ServingError:
        return ServingError(f"{where} answered with status {status}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
