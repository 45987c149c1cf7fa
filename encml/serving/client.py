"""The client: asks three parties about an input that none of them sees, and alone learns the answer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from encml.config.cluster import ClusterConfig, load_cluster
from encml.errors import EncmlError, InvalidTensor, ProtocolError, ServingError
from encml.mpc.dealing import deal
from encml.ring.fixed import decode, encode
from encml.serving.calls import Call, Calls, Reply, same
from encml.serving.model_store import check_model_name
from encml.serving.wire import RESULT_HEADER, QueryResult, Status, pack_parcel, range_text, read_message, unpack_share

PATIENCE = 60.0
"""Seconds to wait for the first answer, unless the cluster's time-out is long: other requests may be before us."""


@dataclass(frozen=True, slots=True)
class QueryCost:
    """What a query cost the parties.

    rounds: of communication among them. sent_bytes: by each party to the others. seconds: of the slowest party, from
    the start of the computation to its end. Where the parties computed several waiting requests together, these are of
    all of them. remaining: requests that the model still answers, None without a limit.
    """

    rounds: int
    sent_bytes: tuple[int, int, int]
    seconds: float
    remaining: int | None


class Client:
    """Asks a cluster's models.

    config: a cluster file, or what was read from one; its ``keys`` folder holds the keys of ``name``.
    timeout: seconds to wait for a first answer; default 60, or three times the cluster's time-out if that is more.
    Connections stay open from query to query; use it as a context manager, or ``close`` it.
    """

    def __init__(
        self, config: ClusterConfig | str | Path, name: str = "client", *, timeout: float | None = None
    ) -> None:
        self._config = config if isinstance(config, ClusterConfig) else load_cluster(config)
        self._timeout = timeout if timeout is not None else max(PATIENCE, 3 * self._config.timeout)
        self._calls = Calls(self._config, name)
        self._last_cost: QueryCost | None = None
        self._ranges: dict[str, tuple[float, float] | None] = {}
        """The declared range of inputs of every model that was asked."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; idempotent."""
        self._calls.close()

    @property
    def last_cost(self) -> QueryCost | None:
        """What the last successful query cost."""
        return self._last_cost

    def query_model(self, x: Tensor, model: str = "model") -> Tensor:
        """The model's output for a batch of inputs.

        x: floats (batch, *input shape of the model), |v| < 2^(62 - 2f). Returns float32 (batch, *output shape), to the
        precision of fixed point: about 2^-f times the depth of the model.

        Every party gets shares of x that are independent of it; the shares of the output that come back say nothing
        beyond the output. Parties see the shapes. Sends 8 bytes an element to each of two parties. The first query of a
        model asks for the range of its inputs before.

        Raises InvalidTensor, before anything is sent, for NaN, infinity, a value out of range or out of the range that
        the model's owner declared for its inputs: only the client sees them, and they would give a wrong result without
        a sign; ServingError where the parties refuse (unknown
        model, wrong shape, request cap); PartyError or PartyTimeout, naming the party that is gone or silent;
        AuthenticationError for a certificate of another cluster or role.
        """
        check_model_name(model)
        if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InvalidTensor(f"a query takes a tensor (batch, ...) of at least one example, found {found}")
        limits = self._range(model)
        if limits is not None and not (x.min() >= limits[0] and x.max() <= limits[1]):
            raise InvalidTensor(
                f"the input goes from {float(x.min()):.6g} to {float(x.max()):.6g}; the model {model!r} takes values "
                f"from {limits[0]:.6g} to {limits[1]:.6g}, as its owner declared"
            )
        parcels = deal(encode(x, self._config.fraction_bits))
        path = f"/models/{model}/queries/{secrets.token_hex(16)}"
        query = {"shape": ",".join(map(str, x.shape)), "range": range_text(limits)}
        try:
            replies = self._calls.all([Call("POST", path, pack_parcel(p), query) for p in parcels], self._timeout)
        except EncmlError:
            # Perhaps the owner has put another model in its place.
            self._ranges.pop(model, None)
            raise
        results = [_result(reply, rank) for rank, reply in enumerate(replies)]
        facts = {(result.model_id, result.shape, result.fraction_bits) for result in results}
        if len(facts) != 1:
            raise ProtocolError(f"the parties disagree about what they computed for {model!r}: share the model anew")
        shares = [unpack_share(reply.body, results[0].shape, rank) for rank, reply in enumerate(replies)]
        zero, one, two = results
        self._last_cost = QueryCost(
            rounds=zero.rounds,
            sent_bytes=(zero.sent_bytes, one.sent_bytes, two.sent_bytes),
            seconds=max(result.seconds for result in results),
            remaining=zero.remaining,
        )
        return decode(torch.stack(shares).sum(0), zero.fraction_bits, torch.float32)

    def _range(self, model: str) -> tuple[float, float] | None:
        """The declared range of a model's inputs; None without one, or where there is no such model."""
        if model not in self._ranges:
            replies = self._calls.all(same(Call("GET", "/status")), self._timeout)
            found = set()
            for rank, reply in enumerate(replies):
                status = read_message(Status, reply.body, f"the status of party {rank}")
                found |= {known.input_range for known in status.models if known.name == model}
            if len(found) > 1:
                raise ServingError(f"the parties serve different models as {model!r}; the owner may be replacing it")
            self._ranges[model] = found.pop() if found else None
        return self._ranges[model]


def _result(reply: Reply, rank: int) -> QueryResult:
    return read_message(QueryResult, reply.headers.get(RESULT_HEADER, ""), f"the answer of party {rank}")
