"""Cluster keys: file modes, roles, and which certificates are refused by whom."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from encml.errors import AuthenticationError, ConfigError
from encml.net.certificates import (
    add_client,
    client_context,
    load_seal_key,
    load_seal_public,
    make_cluster_keys,
    party_hostname,
    peer_identity,
    require_role,
    server_context,
)

HOSTS = ["localhost", "10.0.0.2", "gamma.example"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "keys"
    make_cluster_keys(folder, HOSTS, clients=["client", "alice"])
    return folder


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "keys"
    make_cluster_keys(folder, HOSTS)
    return folder


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, hostname: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides' view of the other's certificate; raises what the server or the client raises."""
    left, right = socket.socketpair()
    left.settimeout(5)
    right.settimeout(5)
    failure: list[BaseException] = []
    seen: list[Any] = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as sock:
                seen.append(sock.getpeercert())
                sock.sendall(b"!")
        except (ssl.SSLError, OSError) as error:
            failure.append(error)
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=hostname) as sock:
            certificate = sock.getpeercert()
            sock.recv(1)
            assert sock.version() == "TLSv1.3"
    finally:
        right.close()
        thread.join()
    if failure:
        raise failure[0]
    assert certificate is not None
    return seen[0], certificate


def test_private_files_are_private(keys: Path) -> None:
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    private = [path for path in keys.iterdir() if path.suffix == ".key"]
    assert len(private) == 1 + 3 + 3 + 1 + 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert not [path for path in keys.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "role"),
    [("party-1", ("party", 1)), ("owner", ("owner", None)), ("client", ("client", None)), ("alice", ("client", None))],
)
def test_roles_are_seen_on_both_sides(keys: Path, name: str, role: tuple[str, int | None]) -> None:
    seen_by_server, seen_by_client = handshake(server_context(keys, 2), client_context(keys, name), party_hostname(2))
    server_saw, client_saw = peer_identity(seen_by_server), peer_identity(seen_by_client)
    assert (server_saw.role, server_saw.rank) == role
    assert (client_saw.role, client_saw.rank) == ("party", 2)
    assert server_saw.name == name
    assert server_saw.cluster == client_saw.cluster


@pytest.mark.parametrize(("rank", "hostname"), [(0, "localhost"), (0, "127.0.0.1"), (1, "10.0.0.2"), (2, HOSTS[2])])
def test_party_is_found_under_its_host(keys: Path, rank: int, hostname: str) -> None:
    handshake(server_context(keys, rank), client_context(keys, "client"), hostname)


def test_another_party_is_refused_even_on_the_same_host(keys: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server_context(keys, 1), client_context(keys, "client"), party_hostname(0))


def test_other_cluster_is_refused_by_the_client(keys: Path, other_keys: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_context(other_keys, 0), client_context(keys, "client"), party_hostname(0))


def test_other_cluster_is_refused_by_the_server(keys: Path, other_keys: Path) -> None:
    client = client_context(other_keys, "party-1")
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        handshake(server_context(keys, 0), client, party_hostname(0))


def test_no_certificate_is_refused(keys: Path) -> None:
    client = ssl.create_default_context(cafile=keys / "ca.pem")
    with pytest.raises(ssl.SSLError):
        handshake(server_context(keys, 0), client, party_hostname(0))


def test_tls_1_2_is_refused(keys: Path) -> None:
    client = client_context(keys, "client")
    client.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(server_context(keys, 0), client, party_hostname(0))


def test_client_certificate_serves_no_one(keys: Path) -> None:
    """A client that stands in a party's place is refused already by its certificate's purpose."""
    fake = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    fake.load_cert_chain(keys / "client.pem", keys / "client.key")
    client = client_context(keys, "alice")
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(fake, client, party_hostname(0))


def test_require_role(keys: Path) -> None:
    certificate, _ = handshake(server_context(keys, 0), client_context(keys, "party-1"), party_hostname(0))
    assert require_role(certificate, "party", 1).rank == 1
    assert require_role(certificate, "party").rank == 1
    with pytest.raises(AuthenticationError, match=r"1\.2\.3\.4:5: the certificate is party-1's, expected party 2's"):
        require_role(certificate, "party", 2, "1.2.3.4:5")
    with pytest.raises(AuthenticationError, match="expected client's"):
        require_role(certificate, "client")


@pytest.mark.parametrize(
    "names",
    [
        (),
        (("DNS", "party-0.encml.internal"),),
        (("URI", "encml://0123456789abcdef/party/3"),),
        (("URI", "encml://0123456789abcdef/party/0x"),),
        (("URI", "encml://0123456789abcdef/party/0\n"),),
        (("URI", "https://0123456789abcdef/party/0"),),
        (("URI", "encml://0123456789abcdef/owner/"),),
        (("URI", "encml://0123456789abcdef/owner"), ("URI", "encml://0123456789abcdef/party/0")),
    ],
)
def test_odd_certificates_have_no_role(names: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(AuthenticationError):
        peer_identity({"subjectAltName": names})
    with pytest.raises(AuthenticationError):
        peer_identity(None)


def test_keys_are_not_overwritten_unasked(tmp_path: Path) -> None:
    make_cluster_keys(tmp_path, HOSTS, clients=["client", "bob"])
    (tmp_path / "mine.key").write_text("not of this cluster")
    before = (tmp_path / "ca.pem").read_bytes()
    with pytest.raises(ConfigError, match="holds keys already"):
        make_cluster_keys(tmp_path, HOSTS)
    assert (tmp_path / "ca.pem").read_bytes() == before
    make_cluster_keys(tmp_path, HOSTS, overwrite=True)
    assert (tmp_path / "ca.pem").read_bytes() != before
    assert not (tmp_path / "bob.key").exists()
    assert not (tmp_path / "bob.pem").exists()
    assert (tmp_path / "mine.key").exists()
    handshake(server_context(tmp_path, 0), client_context(tmp_path, "client"), party_hostname(0))


def test_added_client_is_accepted(tmp_path: Path) -> None:
    make_cluster_keys(tmp_path, HOSTS, clients=[])
    add_client(tmp_path, "late")
    certificate, _ = handshake(server_context(tmp_path, 0), client_context(tmp_path, "late"), party_hostname(0))
    assert peer_identity(certificate).name == "late"
    with pytest.raises(ConfigError, match="already"):
        add_client(tmp_path, "late")


@pytest.mark.parametrize(
    ("parties", "clients", "days"),
    [
        (HOSTS[:2], ["client"], 1),
        (HOSTS, ["party-0"], 1),
        (HOSTS, ["ca"], 1),
        (HOSTS, ["../x"], 1),
        (HOSTS, ["a", "a"], 1),
        (HOSTS, ["owner"], 1),
        (HOSTS, ["a"], 0),
        (["höst", "b", "c"], ["a"], 1),
    ],
)
def test_wrong_arguments_leave_nothing_behind(
    tmp_path: Path, parties: list[str], clients: list[str], days: int
) -> None:
    with pytest.raises(ConfigError):
        make_cluster_keys(tmp_path, parties, clients, days=days)
    assert not list(tmp_path.iterdir())


def test_missing_and_broken_files_are_named(tmp_path: Path, keys: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem: no such file; .*encml keys init"):
        server_context(tmp_path, 0)
    with pytest.raises(ConfigError, match=r"carol\.pem: no such file"):
        client_context(keys, "carol")
    for path in keys.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "party-0.key").write_bytes((keys / "party-1.key").read_bytes())
    with pytest.raises(ConfigError, match="party-0 cannot be used"):
        server_context(tmp_path, 0)
    (tmp_path / "party-0.seal.key").write_text("x")
    (tmp_path / "party-0.seal.pub").write_text("x")
    for load in (load_seal_key, load_seal_public):
        with pytest.raises(ConfigError, match=r"party-0\.seal"):
            load(tmp_path, 0)
    (tmp_path / "party-0.seal.key").write_bytes((keys / "party-0.key").read_bytes())
    with pytest.raises(ConfigError, match="X25519"):
        load_seal_key(tmp_path, 0)
    (tmp_path / "ca.key").write_bytes((keys / "owner.key").read_bytes())
    with pytest.raises(ConfigError, match="does not belong"):
        add_client(tmp_path, "late")


def test_sealing_keys_agree(keys: Path) -> None:
    mine = X25519PrivateKey.generate()
    for rank in range(3):
        theirs = load_seal_key(keys, rank)
        assert theirs.exchange(mine.public_key()) == mine.exchange(load_seal_public(keys, rank))
