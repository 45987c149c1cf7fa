"""Three real parties over mutual TLS on loopback: they answer what the model answers, and refuse the rest by name."""

from __future__ import annotations

import json
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from serving_support import Long, alive, connect, http, network, request_id, send_raw, state, status_of, until
from torch import Tensor, nn

from encml.errors import AuthenticationError, EncmlError, InvalidTensor, PartyError, ServingError, UnsupportedOperation
from encml.mpc.dealing import deal
from encml.net.certificates import add_client, client_context, make_cluster_keys
from encml.ring.fixed import encode
from encml.serving import Client, Cluster, Graph, PartyModel, Status, save_model_shares
from encml.serving.calls import Call, Calls, same
from encml.serving.server import HELD_REQUESTS
from encml.serving.wire import pack_parcel

MODEL = network()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster.local(timeout=3.0) as found:
        assert found.parties is not None
        pids = [found.parties.pid(rank) for rank in range(3)]
        add_client(found.config.keys, "second")
        yield found
        assert [found.parties.pid(rank) for rank in range(3)] == pids, "a party was restarted"
        found.parties.check()
    assert not any(alive(pid) for pid in pids)


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.client() as found:
        yield found


@pytest.fixture
def served(cluster: Cluster) -> Iterator[str]:
    """The name of a small model that is served without a limit."""
    cluster.share(MODEL, torch.randn(1, 6), "small")
    cluster.serve(name="small")
    yield "small"
    cluster.stop("small")


def expected(x: Tensor, model: nn.Module = MODEL) -> Tensor:
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


def test_a_convolutional_network_agrees_with_plaintext(cluster: Cluster, client: Client) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    status = cluster.share(model, torch.randn(1, 1, 8, 8), "conv")
    assert (status.remaining, status.input_shape, status.output_shape) == (0, (1, 8, 8), (5,))
    cluster.serve(name="conv")
    x = torch.randn(7, 1, 8, 8)
    assert torch.allclose(client.query_model(x, model="conv"), expected(x, model), atol=1e-3)
    cost = client.last_cost
    assert cost is not None
    assert cost.rounds == 10 + 3
    assert all(sent > 0 for sent in cost.sent_bytes)
    assert cost.remaining is None
    cluster.delete("conv")
    with pytest.raises(ServingError, match="no model 'conv'"):
        client.query_model(x, model="conv")


def test_every_output_share_is_uniform_whatever_the_model(cluster: Cluster) -> None:
    """A model that ends in nothing masked of its own: the weight's shares must not shine through."""

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b

    cluster.share(Adds(), torch.zeros(1, 4), "adds")
    cluster.serve(name="adds")
    parcels = deal(encode(torch.zeros(1, 4), 16))
    bodies = [pack_parcel(parcel) for parcel in parcels]
    with Calls(cluster.config, "client") as calls:
        answers = []
        for _ in range(2):
            path = f"/models/adds/queries/{request_id()}"
            answers.append(calls.all([Call("POST", path, body, {"shape": "1,4"}) for body in bodies], 10))
    for rank in range(3):
        assert answers[0][rank].body != answers[1][rank].body
    cluster.delete("adds")


def test_a_saved_model_is_served_too(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    save_model_shares(MODEL, torch.randn(1, 6), tmp_path / "shares", "saved")
    assert cluster.share_saved(tmp_path / "shares").name == "saved"
    cluster.serve(2, "saved")
    x = torch.randn(2, 6)
    assert torch.allclose(client.query_model(x, "saved"), expected(x), atol=1e-3)
    cluster.delete("saved")


def test_the_request_cap_and_stop(cluster: Cluster, client: Client) -> None:
    cluster.share(MODEL, torch.randn(1, 6), "capped")
    x = torch.randn(1, 6)
    with pytest.raises(ServingError, match="takes no requests"):
        client.query_model(x, "capped")
    assert cluster.serve(num_requests=3, name="capped").remaining == 3
    for left in (2, 1, 0):
        client.query_model(x, "capped")
        assert client.last_cost is not None
        assert client.last_cost.remaining == left
    cluster.wait_served("capped", timeout=5)
    with pytest.raises(ServingError, match="cap"):
        client.query_model(x, "capped")
    cluster.serve(name="capped")
    client.query_model(x, "capped")
    cluster.stop("capped")
    with pytest.raises(ServingError, match="takes no requests"):
        client.query_model(x, "capped")
    with pytest.raises(ServingError, match="at least 1"):
        cluster.serve(0, "capped")
    with pytest.raises(ServingError, match="no model 'nothing'"):
        cluster.serve(1, "nothing")
    cluster.delete("capped")


def test_concurrent_clients_never_exceed_the_cap(cluster: Cluster) -> None:
    cluster.share(MODEL, torch.randn(1, 6), "few")
    cluster.serve(num_requests=4, name="few")
    inputs = [torch.randn(2, 6) for _ in range(8)]
    with cluster.client() as one, cluster.client("second") as two, ThreadPoolExecutor(8) as pool:

        def ask(place: int) -> Tensor | ServingError:
            try:
                return (one, two)[place % 2].query_model(inputs[place], "few")
            except ServingError as error:
                return error

        answers = list(pool.map(ask, range(8)))
    right = [a for a, x in zip(answers, inputs, strict=True) if isinstance(a, Tensor) and close(a, expected(x))]
    refused = [a for a in answers if isinstance(a, ServingError)]
    assert (len(right), len(refused)) == (4, 4)
    assert all("cap" in str(error) for error in refused)
    cluster.delete("few")


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-3)


class AcrossTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(("model", "merged"), [(MODEL, True), (AcrossTheBatch(), False)])
def test_waiting_requests_are_computed_together_only_where_rows_stay_apart(
    cluster: Cluster, model: nn.Module, merged: bool
) -> None:
    cluster.share(Long(), torch.randn(1, 6), "long")
    cluster.share(model, torch.randn(1, 6), "waiting")
    cluster.serve(name="long")
    cluster.serve(name="waiting")
    inputs = [torch.randn(3, 6) for _ in range(4)]
    answers: dict[int, tuple[Tensor, tuple[int, ...]]] = {}
    with cluster.client() as long, ThreadPoolExecutor(5) as pool:
        first = pool.submit(long.query_model, torch.randn(400, 6), "long")
        until(lambda: state(cluster, 0).state == "busy")

        def ask(place: int) -> None:
            with cluster.client(("client", "second")[place % 2]) as client:
                answer = client.query_model(inputs[place], "waiting")
                assert client.last_cost is not None
                answers[place] = answer, client.last_cost.sent_bytes

        list(pool.map(ask, range(4)))
        assert first.result().shape == (400, 6)
    assert all(close(answers[place][0], expected(inputs[place], model)) for place in range(4))
    if merged:
        with cluster.client() as client:
            client.query_model(inputs[0], "waiting")
            assert client.last_cost is not None
            alone = client.last_cost.sent_bytes
        assert any(sum(sent) > 2.5 * sum(alone) for _, sent in answers.values())
    cluster.delete("long")
    cluster.delete("waiting")


def test_a_model_can_be_replaced(cluster: Cluster, client: Client, served: str) -> None:
    other = nn.Linear(6, 3)
    cluster.share(other, torch.randn(1, 6), served)
    with pytest.raises(ServingError, match="takes no requests"):
        client.query_model(torch.randn(1, 6), served)
    cluster.serve(name=served)
    x = torch.randn(2, 6)
    assert close(client.query_model(x, served), expected(x, other))


def test_a_client_may_send_to_some_parties_only(cluster: Cluster, client: Client, served: str) -> None:
    """It gets an error that says who lacks a part; nobody else waits for it."""
    body = [pack_parcel(parcel) for parcel in deal(encode(torch.randn(1, 6), 16))]
    answers: dict[tuple[int, ...], list[bytes]] = {}

    def send(ranks: tuple[int, ...]) -> None:
        path = f"/v1/models/{served}/queries/{request_id()}?shape=1,6"
        answers[ranks] = [send_raw(cluster.config, rank, http("POST", path, body[rank])) for rank in ranks]

    threads = [threading.Thread(target=send, args=(ranks,)) for ranks in ((0,), (1,), (2,))]
    for thread in threads:
        thread.start()
    x = torch.randn(2, 6)
    for _ in range(3):
        assert close(client.query_model(x, served), expected(x))
    assert any(thread.is_alive() for thread in threads), "the partial requests were to wait meanwhile"
    for thread in threads:
        thread.join()
    for ranks, missing in (((0,), "party 1"), ((1,), "party 0"), ((2,), "party 0")):
        (answer,) = answers[ranks]
        assert status_of(answer) == 409
        assert f"{missing} did not get its part" in answer.decode()


def test_parts_of_different_sizes_are_refused(cluster: Cluster, client: Client, served: str) -> None:
    path = f"/models/{served}/queries/{request_id()}"
    parcels = [deal(encode(torch.randn(1 + (rank == 2), 6), 16))[rank] for rank in range(3)]
    with Calls(cluster.config, "client") as calls:
        found = calls.each(
            [Call("POST", path, pack_parcel(p), {"shape": ",".join(map(str, p.shape))}) for p in parcels], 10
        )
    assert all(isinstance(reply, ServingError) and "party 2" in str(reply) for reply in found)
    x = torch.randn(2, 6)
    assert close(client.query_model(x, served), expected(x))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_different_shares_at_two_parties_are_refused(cluster: Cluster, client: Client, served: str, rank: int) -> None:
    """One seed or one element that differs: the answer would not be the model's for any input."""
    bodies = [bytearray(pack_parcel(parcel)) for parcel in deal(encode(torch.ones(2, 6), 16))]
    bodies[rank][-1 if rank == 1 else 0] ^= 1
    calls = [
        Call("POST", f"/models/{served}/queries/{'%032x' % (rank + 1)}", bytes(b), {"shape": "2,6"}) for b in bodies
    ]
    with Calls(cluster.config, "client") as asking:
        replies = asking.each(calls, 10)
    assert all(isinstance(reply, ServingError) and "different shares" in str(reply) for reply in replies), replies
    assert torch.allclose(client.query_model(torch.ones(2, 6), served), expected(torch.ones(2, 6)), atol=1e-3)


def test_what_is_no_input_is_refused_before_it_is_sent(client: Client, served: str) -> None:
    for bad in (torch.full((1, 6), torch.nan), torch.full((1, 6), torch.inf), torch.full((1, 6), 2.0**31)):
        with pytest.raises(InvalidTensor, match=r"shape \(1, 6\)"):
            client.query_model(bad, served)
    for wrong in (torch.randn(0, 6), torch.tensor(1.0), "text"):
        with pytest.raises(InvalidTensor, match="at least one example"):
            client.query_model(wrong, served)  # type: ignore[arg-type]
    with pytest.raises(ServingError, match="cannot name a model"):
        client.query_model(torch.randn(1, 6), "../small")


def test_inputs_of_another_shape_are_refused(client: Client, served: str) -> None:
    for shape in ((6,), (1, 7), (2, 3, 2), (1, 6, 1)):
        with pytest.raises(InvalidTensor, match=r"takes \(batch, 6,\), found"):
            client.query_model(torch.randn(*shape), served)


def test_roles_are_kept_apart(cluster: Cluster) -> None:
    with Calls(cluster.config, "client") as calls:
        for call in (
            Call("PUT", "/models/x", b""),
            Call("POST", "/models/x/serve"),
            Call("POST", "/models/x/stop"),
            Call("DELETE", "/models/x"),
        ):
            found = calls.each(same(call), 10)
            assert all(isinstance(reply, AuthenticationError) for reply in found), found
    with Calls(cluster.config, "owner") as calls:
        found = calls.each(same(Call("POST", f"/models/x/queries/{request_id()}")), 10)
        assert all(isinstance(reply, AuthenticationError) for reply in found)
    with Calls(cluster.config, "party-1") as calls:
        found = calls.each(same(Call("GET", "/status")), 10)
        assert all(isinstance(reply, AuthenticationError) for reply in found)


def test_strangers_are_refused(cluster: Cluster, tmp_path: Path, served: str) -> None:
    make_cluster_keys(tmp_path / "keys", ["127.0.0.1"] * 3)
    stranger = cluster.config.model_copy(update={"keys": tmp_path / "keys"})
    with Client(stranger) as client, pytest.raises(AuthenticationError, match="is not party"):
        client.query_model(torch.randn(1, 6), served)
    # One that trusts this cluster, but whose own certificate is of another; and one without any.
    other = client_context(tmp_path / "keys", "client")
    naked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (other, naked):
        context.load_verify_locations(cluster.config.keys / "ca.pem")
        try:
            with connect(cluster.config, 0, context) as sock:
                sock.sendall(http("GET", "/v1/status"))
                answer = sock.recv(100)
        except (ssl.SSLError, ConnectionError):
            answer = b""
        assert answer == b""


def test_what_cannot_be_served_never_leaves_the_owner(cluster: Cluster) -> None:
    with pytest.raises(UnsupportedOperation, match=r"1 \(RReLU\)"):
        cluster.share(nn.Sequential(nn.Linear(2, 2), nn.RReLU()), torch.randn(1, 2), "bad")
    assert all(isinstance(s, Status) and "bad" not in [m.name for m in s.models] for s in cluster.status())


def test_wrong_model_files_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    paths = save_model_shares(MODEL, torch.randn(1, 6), tmp_path / "a", "model")
    files = [path.read_bytes() for path in paths]
    coarse = save_model_shares(MODEL, torch.randn(1, 6), tmp_path / "b", "model", fraction_bits=12)
    with Calls(cluster.config, "owner") as calls:
        for bodies, name, named in (
            (files[1:] + files[:1], "model", "shares of party"),
            (files, "other", "expected 'other'"),
            ([path.read_bytes() for path in coarse], "model", "12 fraction bits"),
            ([data[:-8] for data in files], "model", "not a whole safetensors file"),
            ([b""] * 3, "model", "not a whole safetensors file"),
        ):
            found = calls.each([Call("PUT", f"/models/{name}", body) for body in bodies], 10)
            assert all(isinstance(reply, ServingError) and named in str(reply) for reply in found), found
    folders = [cluster.config.store / f"party-{rank}" for rank in range(3)]
    assert not any(path.name.startswith(".") for folder in folders for path in folder.iterdir())


def test_bodies_beyond_the_limit_are_refused(cluster: Cluster, served: str) -> None:
    limit = cluster.config.max_request_bytes
    for path, length, name in (
        (f"/v1/models/{served}/queries/{request_id()}?shape=1,6", 10**6, "client"),
        ("/v1/models/big", limit + 1, "owner"),
        (f"/v1/models/{served}/serve", 10**6, "owner"),
    ):
        method = "PUT" if path.endswith("big") else "POST"
        answer = send_raw(cluster.config, 0, http(method, path, length=length), name)
        assert status_of(answer) == 413, answer


def test_few_bytes_do_not_stand_for_much_memory(cluster: Cluster, client: Client) -> None:
    """Party 0 gets two seeds, 32 bytes whatever the batch, and expands them."""
    cluster.share(nn.Linear(2, 2).eval(), torch.randn(1, 2), "narrow")
    cluster.serve(name="narrow")
    limit = cluster.config.max_request_bytes
    assert cluster.parties is not None
    before = peak_memory(cluster.parties.pid(0))
    path = f"/v1/models/narrow/queries/{{}}?shape={limit // 16 + 1},2"
    for length in (32, 10**6):
        answer = send_raw(cluster.config, 0, http("POST", path.format(request_id()), bytes(32), length))
        assert status_of(answer) == 413, answer
    assert peak_memory(cluster.parties.pid(0)) < before + limit // 2
    assert client.query_model(torch.ones(1, 2), "narrow").shape == (1, 2)
    cluster.delete("narrow")


def test_many_waiting_requests_do_not_stand_for_much_memory(cluster: Cluster, client: Client) -> None:
    cluster.share(nn.Linear(2, 2).eval(), torch.randn(1, 2), "narrow")
    cluster.serve(name="narrow")
    batch = cluster.config.max_request_bytes // 16 - 8
    path = f"/v1/models/narrow/queries/{{}}?shape={batch},2"
    # The head of a request alone takes its room; its body is what the party waits for.
    waiting = [
        connect(cluster.config, 1, client_context(cluster.config.keys, "client")) for _ in range(HELD_REQUESTS + 1)
    ]
    for sock in waiting:
        sock.sendall(http("POST", path.format(request_id()), length=16 * batch + 16))
    answers = [status_of(sock.recv(65536)) for sock in waiting]  # after the time-out, which is short here
    for sock in waiting:
        sock.close()
    assert sorted(answers) == [400] * HELD_REQUESTS + [429]
    assert client.query_model(torch.ones(1, 2), "narrow").shape == (1, 2)
    cluster.delete("narrow")


def peak_memory(pid: int) -> int:
    """The most memory, in bytes, that a process has had."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


ODD = ["", "0", "-1", "1", "6", "1,6", "999999999,6", "1,6,", "²,6", "1e9,6", "9" * 40, "1," * 40, "%00", "1,7", "a"]


def test_fuzzed_requests_never_harm_a_party(cluster: Cluster, client: Client, served: str) -> None:
    rng = random.Random(9)
    for count in range(200):
        rank = rng.randrange(3)
        name = rng.choice([served, served, served, "none", "..%2f..%2fetc", "%ff", "a" * 300])
        identity = rng.choice([request_id(), request_id(), "", "x", "0" * 31, request_id().upper()])
        tail = rng.choice([f"queries/{identity}?shape={rng.choice(ODD)}", f"queries/{identity}", "serve", "stop", ""])
        body = rng.randbytes(rng.choice([0, 1, 16, 32, 63, 64, 65, 1000]))
        data = http(rng.choice(["POST", "PUT", "GET", "DELETE"]), f"/v1/models/{name}/{tail}", body)
        if count % 5 == 0:
            place = rng.randrange(len(data))
            data = data[:place] + rng.randbytes(rng.randrange(1, 8)) + data[place:]
        with connect(cluster.config, rank, client_context(cluster.config.keys, "client")) as sock:
            sock.sendall(data)
            # Half of them do not wait for an answer; a request whole by chance would wait for its other parts.
            sock.settimeout(0.2)
            if count % 2:
                try:
                    answer = sock.recv(4096)
                except TimeoutError:
                    continue
                if answer and not data.startswith(b"POST"):
                    assert 400 <= status_of(answer) < 500, (data, answer)
    x = torch.randn(2, 6)
    until(lambda: all(isinstance(s, Status) and s.queued == 0 for s in cluster.status()))
    assert close(client.query_model(x, served), expected(x))


def test_garbage_instead_of_tls_never_harms_a_party(cluster: Cluster, client: Client, served: str) -> None:
    rng = random.Random(10)
    for rank in range(3):
        for _ in range(10):
            party = cluster.config.parties[rank]
            with socket.create_connection((party.host, party.api_port), timeout=5) as sock:
                sock.sendall(rng.randbytes(rng.randrange(1, 500)))
    x = torch.randn(2, 6)
    assert close(client.query_model(x, served), expected(x))


def test_malformed_json_is_refused(cluster: Cluster, served: str) -> None:
    for body in (b"[]", b"{", b'{"num_requests": 0}', b'{"num_requests": "3"}', b'{"other": 1}', b"\xff"):
        answer = send_raw(cluster.config, 0, http("POST", f"/v1/models/{served}/serve", body), "owner")
        assert status_of(answer) == 409
        problem = json.loads(answer.split(b"\r\n\r\n", 1)[1])
        assert problem["kind"] == "ServingError"
        assert "malformed" in problem["error"]
        assert problem["rank"] == 0


def test_a_party_that_is_not_there_is_named(cluster: Cluster, served: str) -> None:
    gone = cluster.config.parties[1].model_copy(update={"api_port": 14_999})
    parties = (cluster.config.parties[0], gone, cluster.config.parties[2])
    config = cluster.config.model_copy(update={"parties": parties})
    with Client(config) as client, pytest.raises(PartyError, match=r"party 1 .*14999.* cannot be reached") as caught:
        client.query_model(torch.randn(1, 6), served)
    assert caught.value.rank == 1
    assert isinstance(caught.value, EncmlError)


def test_logs_hold_no_numbers_of_the_computation(cluster: Cluster, client: Client, served: str) -> None:
    client.query_model(torch.full((1, 6), 12345.678), served)
    assert cluster.parties is not None
    for rank in range(3):
        text = cluster.parties.tail(rank, lines=10_000)
        assert "in session with the others" in text
        assert "12345" not in text
        assert "\\x" not in text, "what a client sent is quoted"


def test_a_graph_that_fails_while_it_is_computed_harms_nobody_else(
    cluster: Cluster, client: Client, served: str
) -> None:
    """An owner may go round the checks at export: the client gets the error, the parties form a new session."""
    text = {
        "input_shape": [2],
        "output_shape": [2],
        "parameters": [],
        "nodes": [
            {"name": "gt", "op": "aten.gt.Scalar", "args": [{"value": "input"}, 0]},
            {"name": "softmax", "op": "aten.softmax.int", "args": [{"value": "gt"}, 1]},
        ],
        "output": "softmax",
    }
    graph = Graph.from_json(json.dumps(text))
    cluster.upload([PartyModel("hostile", "0" * 32, rank, 16, graph, {}) for rank in range(3)])
    cluster.serve(name="hostile")
    with pytest.raises(UnsupportedOperation, match=r"softmax: aten\.softmax\.int"):
        client.query_model(torch.ones(1, 2), "hostile")
    cluster.wait_ready()
    x = torch.randn(2, 6)
    assert close(client.query_model(x, served), expected(x))
    cluster.delete("hostile")
