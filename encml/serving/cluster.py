"""The cluster as its owner sees it: share models into it, say how often they may be asked, stop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from encml.config.cluster import ClusterConfig, load_cluster
from encml.errors import EncmlError, PartyError, PartyTimeout, ServingError
from encml.net.certificates import make_cluster_keys
from encml.net.transport import PARTIES
from encml.serving.bounds import Range
from encml.serving.calls import Call, Calls, same
from encml.serving.client import Client
from encml.serving.model_store import PartyModel, check_model_name, load_model_shares, share_model
from encml.serving.processes import LocalParties, local_config, write_config
from encml.serving.wire import ModelStatus, ServeRequest, Status, read_message

UPLOAD_SECONDS = 300.0
START_SECONDS = 90.0
"""How long the parties may take to start: three Python processes that import PyTorch."""
CLUSTER_FILE = "cluster.yaml"
_POLL_SECONDS = 0.05


class _Mixed(ServingError):
    """Parties hold models of different sharings under one name."""


class Cluster:
    """A cluster of three parties, as the owner of its models.

    config: a cluster file, or what was read from one.
    auto_managed: start the three parties as processes on this machine, and stop them on exit; keys are made if there
        are none. Without it, the parties run already (``encml party``).
    owner: whose keys to use.

    ``Cluster.local()`` needs no file at all. Use it as a context manager:

        with Cluster.local() as cluster:
            cluster.share(model, example)
            cluster.serve(num_requests=3)
            with cluster.client() as client:
                print(client.query_model(images))
    """

    def __init__(self, config: ClusterConfig | str | Path, *, auto_managed: bool = False, owner: str = "owner") -> None:
        self.config = config if isinstance(config, ClusterConfig) else load_cluster(config)
        self.parties = LocalParties(self.config) if auto_managed else None
        """The processes of an auto-managed cluster."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if auto_managed and not (self.config.keys / "ca.pem").exists():
            make_cluster_keys(self.config.keys, [party.host for party in self.config.parties], owner=owner)
        self._calls = Calls(self.config, owner)

    @classmethod
    def local(
        cls,
        folder: str | Path | None = None,
        *,
        threads: int = 1,
        timeout: float = 10.0,
        connect_timeout: float = 30.0,
        fraction_bits: int = 16,
        comparison_bits: int | None = None,
    ) -> Cluster:
        """Three processes on this machine, on free ports.

        folder: where ``cluster.yaml``, keys and store lie, for clients in other processes and for the next time: a
            cluster file that is there already is used as it is. Default: a temporary folder.
        The other parameters are those of the cluster file.

        It protects nothing from this machine, where all three parties run; the protocol, TLS included, is the real one.
        """
        temporary = tempfile.TemporaryDirectory(prefix="encml-cluster-") if folder is None else None
        place = Path(temporary.name if temporary is not None else folder or ".").absolute()
        path = place / CLUSTER_FILE
        if not path.exists():
            place.mkdir(parents=True, exist_ok=True)
            config = local_config(
                place,
                threads=threads,
                timeout=timeout,
                connect_timeout=connect_timeout,
                fraction_bits=fraction_bits,
                comparison_bits=comparison_bits,
            )
            write_config(config, path)
        cluster = cls(path, auto_managed=True)
        cluster._folder = temporary
        return cluster

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the parties, if they are auto-managed, and wait until all three are in session."""
        if self.parties is not None:
            for rank in range(PARTIES):
                if not self.parties.running(rank):
                    self.parties.start(rank)
        self.wait_ready()

    def close(self) -> None:
        """Close connections; stop auto-managed parties; idempotent."""
        self._calls.close()
        if self.parties is not None:
            self.parties.stop()
        if self._folder is not None:
            self._folder.cleanup()

    def client(self, name: str = "client") -> Client:
        """A client of this cluster, with the keys of ``name``."""
        return Client(self.config, name)

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait until all parties are in session with each other.

        Raises PartyTimeout that names one which is not, PartyError with the end of its log if a process of ours ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            statuses = self.status()
            if all(isinstance(status, Status) and status.state != "connecting" for status in statuses):
                return
            if self.parties is not None:
                self.parties.check()
            if time.monotonic() > deadline:
                raise self._late(statuses, timeout)
            time.sleep(_POLL_SECONDS)

    def share(
        self, model: nn.Module, example: Tensor, name: str = "model", *, input_range: Range | None = None
    ) -> ModelStatus:
        """Share a model into the cluster under ``name``, in place of what had that name; ``serve`` comes next.

        example: an input (batch, ...) of the kind to be asked about; see ``export_model`` for what is tried with it.
        input_range: the lowest and highest value of all inputs, (0, 1) for images: fewer bytes; see ``export_model``.
        No party learns a weight; all learn the architecture. Raises UnsupportedOperation or InvalidTensor for a model
        that cannot be served, before anything is sent.
        """
        return self.upload(share_model(model, example, name, self.config.fraction_bits, input_range))

    def share_saved(self, folder: str | Path) -> ModelStatus:
        """As ``share``, for a model that ``save_model_shares`` put into ``folder``."""
        return self.upload(load_model_shares(folder))

    def upload(self, parts: Sequence[PartyModel]) -> ModelStatus:
        """Hand every party its file."""
        calls = [Call("PUT", f"/models/{part.name}", part.to_bytes()) for part in parts]
        return self._same_status(calls, UPLOAD_SECONDS)

    def serve(self, num_requests: int | None = None, name: str = "model") -> ModelStatus:
        """Let clients ask ``name``: so many requests, of any batch size, or without a limit.

        The model is one that was shared into the cluster, or that each party installed (``install_file``). Raises
        ServingError, and has it not served, where the parties hold models of different sharings.
        """
        if num_requests is not None and num_requests < 1:
            raise ServingError(f"num_requests={num_requests}: expected at least 1, or None for no limit")
        check_model_name(name)
        body = ServeRequest(num_requests=num_requests).model_dump_json().encode()
        try:
            return self._same_status(same(Call("POST", f"/models/{name}/serve", body)), self._patience)
        except _Mixed:
            self.stop(name)
            raise

    def stop(self, name: str | None = None) -> None:
        """Let nobody ask ``name``, or any model, any more. Its shares stay at the parties."""
        names = [name] if name is not None else self._names()
        for each in names:
            check_model_name(each)
            self._calls.all(same(Call("POST", f"/models/{each}/stop")), self._patience)

    def delete(self, name: str) -> None:
        """Have all parties delete their shares of a model."""
        check_model_name(name)
        self._calls.all(same(Call("DELETE", f"/models/{name}")), self._patience)

    def status(self) -> list[Status | EncmlError]:
        """How each party is; for one that does not answer, the error."""
        replies = self._calls.each(same(Call("GET", "/status")), self._patience)
        return [
            reply if isinstance(reply, EncmlError) else read_message(Status, reply.body, f"the status of party {rank}")
            for rank, reply in enumerate(replies)
        ]

    def wait_served(self, name: str = "model", timeout: float | None = None) -> None:
        """Wait until ``name`` has answered all the requests it was allowed.

        Raises PartyError for a party that is gone meanwhile, PartyTimeout after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            statuses = self.status()
            for status in statuses:
                if isinstance(status, EncmlError):
                    raise status
            found = [m for s in statuses if isinstance(s, Status) for m in s.models if m.name == name]
            if len(found) < PARTIES:
                raise ServingError(f"not every party has the model {name!r}")
            idle = all(isinstance(status, Status) and status.queued == 0 for status in statuses)
            if idle and all(model.remaining == 0 for model in found):
                return
            if deadline is not None and time.monotonic() > deadline:
                raise PartyTimeout(f"{name!r} has not answered all its requests within {timeout:g} s")
            time.sleep(_POLL_SECONDS)

    @property
    def _patience(self) -> float:
        return max(self.config.timeout, 5.0)

    def _names(self) -> list[str]:
        statuses = self.status()
        return sorted({model.name for status in statuses if isinstance(status, Status) for model in status.models})

    def _same_status(self, calls: Sequence[Call], timeout: float) -> ModelStatus:
        replies = self._calls.all(calls, timeout)
        found = [read_message(ModelStatus, reply.body, "the model's status") for reply in replies]
        for rank, status in enumerate(found):
            if status.model_id != found[0].model_id:
                raise _Mixed(
                    f"the files of {status.name!r} that the parties 0 and {rank} hold come from different sharings; "
                    "install the three files of one sharing, or of one training"
                )
        return found[0]

    @staticmethod
    def _late(statuses: Sequence[Status | EncmlError], timeout: float) -> PartyError:
        for rank, status in enumerate(statuses):
            if isinstance(status, EncmlError):
                return PartyTimeout(f"party {rank} is not up after {timeout:g} s: {status}", rank=rank)
        for rank, status in enumerate(statuses):
            if isinstance(status, Status) and status.problem is not None:
                return PartyTimeout(f"party {rank} is not ready after {timeout:g} s: {status.problem.error}", rank=rank)
        return PartyTimeout(f"the parties did not meet within {timeout:g} s")
