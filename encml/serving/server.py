"""One party as a server: owners and clients over HTTPS, the other parties over the mesh.

| request | by | does |
|---|---|---|
| GET /v1/status | owner, clients | how this party is, and its models |
| PUT /v1/models/NAME | owner | takes this party's file of a model |
| POST /v1/models/NAME/serve | owner | lets clients ask, ``{"num_requests": 3}`` times or without a limit |
| POST /v1/models/NAME/stop | owner | lets nobody ask any more |
| DELETE /v1/models/NAME | owner | forgets the model |
| POST /v1/models/NAME/queries/ID?shape=N,1,28,28 | clients | this party's part of a request; answered with its share |

A query also says ``&range=0.0,1.0`` where the model's owner declared a range of inputs: the client has kept to it.

Everybody shows a certificate of this cluster; the role stands in it. Errors are JSON (``wire.Problem``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from encml.config.cluster import ClusterConfig
from encml.errors import (
    AuthenticationError,
    ConfigError,
    EncmlError,
    InvalidTensor,
    PartyError,
    ProtocolError,
    ServingError,
    UnsupportedOperation,
)
from encml.net.certificates import Identity, peer_identity, server_context
from encml.net.transport import PARTIES
from encml.serving.engine import Engine
from encml.serving.jobs import Busy, CapReached, Job
from encml.serving.registry import Model, Registry, UnknownModel
from encml.serving.wire import (
    API,
    RESULT_HEADER,
    Problem,
    ServeRequest,
    Status,
    pack_share,
    parcel_bytes,
    range_text,
    read_message,
    unpack_parcel,
)

HANDSHAKE_SECONDS = 5.0
GRACE_SECONDS = 5.0
"""How long answers under way may take when the party stops."""
MAX_JSON_BYTES = 4096
HELD_REQUESTS = 4
"""Queries that wait may be so many times ``max_request_bytes`` together; shares take up to twice that in memory."""
_CHUNK = 2**20
_AT_ONCE = 2**13
"""Inputs of so many elements are unpacked within 0.1 ms: handing them to another thread would take longer."""
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")

_STATUS: tuple[tuple[type[EncmlError], int], ...] = (
    (AuthenticationError, 403),
    (PartyError, 503),
    (ProtocolError, 503),
    (UnknownModel, 404),
    (CapReached, 429),
    (Busy, 429),
    (InvalidTensor, 400),
    (UnsupportedOperation, 400),
    (ServingError, 409),
)

_log = logging.getLogger(__name__)


def _without_payload(record: logging.LogRecord) -> bool:
    """A refused HTTP message is quoted by its error: what a client sent, shares included, is not for the log."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.msg, record.args, record.exc_info = "refused a malformed HTTP message", (), None
    return True


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_without_payload)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Malformed(ServingError):
    """What was sent cannot be understood."""


class _TooLarge(ServingError):
    """A body beyond the limit."""


class Server:
    """The HTTPS side of party ``rank``. ``ended`` is called when its engine has ended."""

    def __init__(self, config: ClusterConfig, rank: int, ended: Callable[[], None]) -> None:
        self._config = config
        self._rank = rank
        self._registry = Registry(config.store, rank, config.fraction_bits)
        self._held = 0
        """Bytes of queries that wait, as counted by ``_room``."""
        self.engine = Engine(config, rank, self._registry, ended)

    def application(self) -> web.Application:
        """The routes of this party."""
        app = web.Application(middlewares=[self._answer_errors], client_max_size=self._config.max_request_bytes)
        app.add_routes(
            [
                web.get(f"{API}/status", self._status),
                web.put(f"{API}/models/{{name}}", self._put_model),
                web.delete(f"{API}/models/{{name}}", self._delete_model),
                web.post(f"{API}/models/{{name}}/serve", self._serve),
                web.post(f"{API}/models/{{name}}/stop", self._stop),
                web.post(f"{API}/models/{{name}}/queries/{{id}}", self._query),
            ]
        )
        return app

    async def _status(self, request: web.Request) -> web.Response:
        _require(request, "owner", "client")
        await asyncio.to_thread(self._registry.refresh)
        state, problem, queued = self.engine.state
        models = tuple(model.status() for model in self._registry.models())
        status = Status(rank=self._rank, state=state, problem=problem, queued=queued, models=models)
        return _json(status.model_dump_json())

    async def _put_model(self, request: web.Request) -> web.Response:
        _require(request, "owner")
        self._check_length(request, self._config.max_request_bytes)
        handle, path = self._registry.incoming()
        try:
            with os.fdopen(handle, "wb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK):
                    if file.tell() + len(chunk) > self._config.max_request_bytes:
                        raise self._too_large(self._config.max_request_bytes)
                    file.write(chunk)
            model = await asyncio.to_thread(self._registry.install, path, request.match_info["name"])
        finally:
            path.unlink(missing_ok=True)
        return _model_json(model)

    async def _delete_model(self, request: web.Request) -> web.Response:
        _require(request, "owner")
        self._registry.remove(request.match_info["name"])
        return _json("{}")

    async def _serve(self, request: web.Request) -> web.Response:
        _require(request, "owner")
        asked = read_message(ServeRequest, await self._body(request, MAX_JSON_BYTES) or b"{}", "the request to serve")
        await asyncio.to_thread(self._registry.refresh)
        return _model_json(self._registry.allow(request.match_info["name"], asked.num_requests))

    async def _stop(self, request: web.Request) -> web.Response:
        _require(request, "owner")
        return _model_json(self._registry.allow(request.match_info["name"], 0))

    async def _query(self, request: web.Request) -> web.Response:
        _require(request, "client")
        model = self._registry.get(request.match_info["name"])
        if model.remaining == 0:
            raise CapReached(f"{model.part.name!r} takes no requests: its cap is reached, or it is not served")
        self.engine.check_open()
        request_id, shape = request.match_info["id"], model.part.graph.input_shape
        if not _REQUEST_ID.fullmatch(request_id):
            raise _Malformed("a request's id is 32 hexadecimal digits")
        batch = _batch(request.query.get("shape", ""), model)
        _check_range(request.query.get("range", ""), model)
        with self._room(batch, shape):
            body = await self._body(request, parcel_bytes(self._rank, batch, shape))

            def unpack() -> Job:
                return Job(bytes.fromhex(request_id), model, unpack_parcel(body, self._rank, batch, shape))

            try:
                small = batch * math.prod(shape) <= _AT_ONCE
                job = unpack() if small else await asyncio.to_thread(unpack)
            except ServingError as error:
                raise _Malformed(str(error)) from None
            self.engine.submit(job)
            share, result = await asyncio.wrap_future(job.result)
        headers = {RESULT_HEADER: result.model_dump_json()}
        return web.Response(body=pack_share(share), headers=headers, content_type="application/octet-stream")

    @contextmanager
    def _room(self, batch: int, shape: tuple[int, ...]) -> Iterator[None]:
        """Keep memory for a query while it waits. Raises _TooLarge or Busy, at all parties alike.

        The party that gets two seeds must expand as much as the others are sent: 32 bytes may stand for a gigabyte.
        """
        size = max(parcel_bytes(rank, batch, shape) for rank in range(PARTIES))
        if size > self._config.max_request_bytes:
            raise self._too_large(self._config.max_request_bytes)
        if self._held + size > HELD_REQUESTS * self._config.max_request_bytes:
            raise Busy(f"the requests that wait at party {self._rank} take all its memory for them; ask again later")
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def _body(self, request: web.Request, limit: int) -> bytes:
        """The body, which must come within the cluster's time-out. Raises _TooLarge or _Malformed."""
        self._check_length(request, limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.timeout):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise self._too_large(limit)
        except TimeoutError:
            raise _Malformed(f"only {len(body):,} bytes of the request came in {self._config.timeout:g} s") from None
        return bytes(body)

    def _check_length(self, request: web.Request, limit: int) -> None:
        if request.content_length is not None and request.content_length > limit:
            raise self._too_large(limit)

    def _too_large(self, limit: int) -> _TooLarge:
        return _TooLarge(
            f"party {self._rank} takes at most {limit:,} bytes here; max_request_bytes in the cluster file"
        )

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error as JSON; what nobody thought of as 500, with its trace in this party's log only."""
        try:
            return await handler(request)
        except EncmlError as error:
            return _json(Problem.of(error, self._rank).model_dump_json(), _status_of(error))
        except web.HTTPException as error:
            problem = Problem(error=f"party {self._rank}: {error.reason}", kind="ServingError", rank=self._rank)
            return _json(problem.model_dump_json(), error.status)


def run_party(config: ClusterConfig, rank: int, *, stop_with_stdin: bool = False) -> None:
    """Be party ``rank`` until SIGTERM or SIGINT, or, with ``stop_with_stdin``, until standard input ends.

    The latter ties the party to the process that started it, however that one ends. Raises ConfigError for missing
    keys or a port that is in use.
    """
    torch.set_num_threads(config.threads)
    asyncio.run(_run(config, rank, stop_with_stdin))


async def _run(config: ClusterConfig, rank: int, stop_with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_note)
    stopping = asyncio.Event()

    def stop() -> None:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(stopping.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if stop_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _end_with, sys.stdin.fileno(), stop)
    server = Server(config, rank, ended=stop)
    runner = web.AppRunner(
        server.application(), access_log=None, shutdown_timeout=GRACE_SECONDS, logger=_http_log, lingering_time=1.0
    )
    await runner.setup()
    assert runner.server is not None
    party = config.parties[rank]
    try:
        listener = await loop.create_server(
            runner.server,
            party.listen_host,
            party.api_port,
            ssl=server_context(config.keys, rank),
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )
    except OSError as error:
        await runner.cleanup()
        where = f"party {rank} cannot listen on {party.listen_host}:{party.api_port}"
        raise ConfigError(f"{where}: {error.strerror or error}; see host, bind and api_port") from None
    _log.info("party %d: listens on %s:%d for owners and clients", rank, party.listen_host, party.api_port)
    try:
        server.engine.start()
        await stopping.wait()
    finally:
        listener.close()
        await asyncio.to_thread(server.engine.stop)
        await runner.cleanup()
    _log.info("party %d: stopped", rank)
    if server.engine.failure is not None:
        raise server.engine.failure


def _end_with(descriptor: int, stop: Callable[[], None]) -> None:
    """Standard input has something to say: whatever it is, its end is what counts."""
    if not os.read(descriptor, _CHUNK):
        asyncio.get_running_loop().remove_reader(descriptor)
        stop()


def _note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Failed handshakes and broken connections are the other side's affair: a line in the log, no trace."""
    error = context.get("exception")
    _log.info("%s: %s", context.get("message"), type(error).__name__ if error is not None else "no exception")


def _require(request: web.Request, *roles: str) -> Identity:
    """The identity of whoever asks, who must have one of these roles. Raises AuthenticationError."""
    certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
    identity = peer_identity(certificate, request.remote)
    if identity.role not in roles:
        expected = " or ".join(roles)
        raise AuthenticationError(f"the certificate is of the role {identity.role}, expected {expected} here")
    return identity


def _batch(text: str, model: Model) -> int:
    """The batch size in ``shape=64,1,28,28``. Raises InvalidTensor unless the model takes that shape."""
    expected, largest = model.part.graph.input_shape, model.part.graph.largest_batch
    sizes = text.split(",")
    if not all(size.isascii() and size.isdigit() and len(size) <= 9 for size in sizes) or len(sizes) > 16:
        raise _Malformed(f"shape={text[:80]!r}: expected sizes with commas between them")
    shape = tuple(int(size) for size in sizes)
    if shape[1:] != expected or shape[0] < 1:
        raise InvalidTensor(f"the model {model.part.name!r} takes (batch, {str(expected)[1:]}, found {shape}")
    if shape[0] > largest:
        raise InvalidTensor(f"a batch of {shape[0]} is too large for {model.part.name!r}: ask for {largest} at a time")
    return shape[0]


def _check_range(text: str, model: Model) -> None:
    """Raise InvalidTensor unless the client has checked its input against the model's range: nobody else can."""
    expected = model.part.graph.input_range
    if text != range_text(expected):
        limits = "inputs of any size" if expected is None else f"inputs from {expected[0]:g} to {expected[1]:g}"
        raise InvalidTensor(f"the model {model.part.name!r} takes {limits}; the client checked another range")


def _status_of(error: EncmlError) -> int:
    if isinstance(error, _Malformed):
        return 400
    if isinstance(error, _TooLarge):
        return 413
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def _json(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="application/json")


def _model_json(model: Model) -> web.Response:
    return _json(model.status().model_dump_json())
