"""How parties meet: in any order, after restarts, among strangers, and who is refused."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from loopback import Parties, free_ports, spin

from encml.config.cluster import ClusterConfig
from encml.errors import AuthenticationError, ConfigError, PartyTimeout
from encml.net import mesh
from encml.net.certificates import client_context, party_hostname
from encml.net.tls import TlsTransport


def test_parties_start_in_any_order(cluster: ClusterConfig, parties: Parties) -> None:
    def late(rank: int, seconds: float) -> TlsTransport:
        time.sleep(seconds)
        return TlsTransport.connect(cluster, rank)

    found = parties.run(lambda: late(0, 0.8), lambda: late(1, 0.0), lambda: late(2, 0.4))
    parties.opened += [t for t in found if isinstance(t, TlsTransport)]
    assert len(parties.opened) == 3, found
    assert len({t.session for t in found}) == 1


def test_party_that_restarts_while_meeting_is_met_again(cluster: ClusterConfig, parties: Parties) -> None:
    """Party 1 comes, gives up before party 2 is there, and comes again with a fresh nonce."""

    def restarting() -> TlsTransport:
        with pytest.raises(PartyTimeout):
            TlsTransport.connect(cluster.model_copy(update={"connect_timeout": 0.7}), 1)
        return TlsTransport.connect(cluster, 1)

    def late() -> TlsTransport:
        time.sleep(1.2)
        return TlsTransport.connect(cluster, 2)

    found = parties.run(lambda: TlsTransport.connect(cluster, 0), restarting, late)
    parties.opened += [t for t in found if isinstance(t, TlsTransport)]
    assert len(parties.opened) == 3, found
    assert not any(isinstance(r, BaseException) for r in parties.run(*(lambda t=t: spin(t) for t in found)))


def test_absent_party_is_named(cluster: ClusterConfig, parties: Parties) -> None:
    hasty = cluster.model_copy(update={"connect_timeout": 1.0})
    found = parties.run(lambda: TlsTransport.connect(hasty, 0), lambda: TlsTransport.connect(hasty, 1))
    for error in found:
        assert isinstance(error, PartyTimeout)
        assert error.rank == 2
        assert cluster.parties[2].mesh_address in str(error)
        assert "refused" in str(error)


def test_port_in_use_and_wrong_rank_are_config_errors(cluster: ClusterConfig) -> None:
    occupied = socket.create_server(("127.0.0.1", cluster.parties[0].mesh_port))
    with occupied, pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        TlsTransport.connect(cluster, 0)
    with pytest.raises(ConfigError, match="rank 3"):
        TlsTransport.connect(cluster, 3)


def test_fraction_bits_that_differ_are_found_at_once(cluster: ClusterConfig, parties: Parties) -> None:
    other = cluster.model_copy(update={"fraction_bits": 12, "connect_timeout": 2.0})
    brief = cluster.model_copy(update={"connect_timeout": 2.0})
    found = parties.run(*(lambda c=c, r=r: TlsTransport.connect(c, r) for r, c in enumerate([brief, other, brief])))
    assert isinstance(found[1], ConfigError)
    assert "fraction_bits is 12" in str(found[1])


def test_fraction_bits_that_differ_are_named_by_who_only_hears_of_them(
    cluster: ClusterConfig, parties: Parties
) -> None:
    other = cluster.model_copy(update={"fraction_bits": 12, "connect_timeout": 4.0})
    brief = cluster.model_copy(update={"connect_timeout": 1.0})
    # Party 2 has no listener that party 0 could reach, so only its hello tells party 0 what is wrong.
    deaf = other.model_copy(
        update={"parties": (*other.parties[:2], other.parties[2].model_copy(update={"mesh_port": free_ports(1)[0]}))}
    )
    found = parties.run(lambda: TlsTransport.connect(brief, 0), lambda: None, lambda: TlsTransport.connect(deaf, 2))
    assert isinstance(found[0], ConfigError)
    assert "fraction_bits is 16 here and 12 there" in str(found[0])


@pytest.mark.parametrize("declared", [32, None])
def test_ranges_of_comparisons_that_differ_are_found_at_once(
    declared: int | None, cluster: ClusterConfig, parties: Parties
) -> None:
    brief = cluster.model_copy(update={"comparison_bits": declared, "connect_timeout": 2.0})
    other = brief.model_copy(update={"comparison_bits": 40})
    found = parties.run(*(lambda c=c, r=r: TlsTransport.connect(c, r) for r, c in enumerate([brief, other, brief])))
    assert isinstance(found[1], ConfigError)
    assert "comparison_bits is 40 here" in str(found[1])


def with_keys(
    config: ClusterConfig, folder: Path, tmp_path: Path, replaced: dict[str, tuple[Path, str]]
) -> ClusterConfig:
    """``config`` with a copy of ``folder`` in which some keys are others: {"party-2": (folder, "client")}."""
    copy = tmp_path / "keys"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    for name, (source, other) in replaced.items():
        for suffix in (".pem", ".key"):
            (copy / f"{name}{suffix}").write_bytes((source / f"{other}{suffix}").read_bytes())
    return config.model_copy(update={"keys": copy})


@pytest.mark.parametrize("pretender", ["client", "owner", "party-1", "stranger", "stranger with our ca"])
def test_wrong_certificate_is_refused_by_both_and_named(
    cluster: ClusterConfig,
    cluster_keys: Path,
    stranger_keys: Path,
    parties: Parties,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretender: str,
) -> None:
    monkeypatch.setattr(mesh, "DISTRUST_SECONDS", 0.5)
    brief = cluster.model_copy(update={"connect_timeout": 2.0})
    if pretender == "stranger":
        wrong = brief.model_copy(update={"keys": stranger_keys})
    elif pretender == "stranger with our ca":
        wrong = with_keys(brief, cluster_keys, tmp_path, {"party-2": (stranger_keys, "party-2")})
    else:
        wrong = with_keys(brief, cluster_keys, tmp_path, {"party-2": (cluster_keys, pretender)})
    found = parties.run(
        lambda: TlsTransport.connect(brief, 0),
        lambda: TlsTransport.connect(brief, 1),
        lambda: TlsTransport.connect(wrong, 2),
    )
    for error in found:
        assert isinstance(error, AuthenticationError)
    for error in found[:2]:
        assert error.rank == 2
        assert error.address == cluster.parties[2].mesh_address


def test_pretender_does_not_keep_the_real_party_out(
    cluster: ClusterConfig, cluster_keys: Path, parties: Parties, tmp_path: Path
) -> None:
    """A client stands in party 2's place for a while; the real party 2 comes later."""
    wrong = with_keys(cluster, cluster_keys, tmp_path, {"party-2": (cluster_keys, "client")})

    def late() -> TlsTransport:
        with pytest.raises(AuthenticationError):
            TlsTransport.connect(wrong.model_copy(update={"connect_timeout": 0.7}), 2)
        return TlsTransport.connect(cluster, 2)

    found = parties.run(lambda: TlsTransport.connect(cluster, 0), lambda: TlsTransport.connect(cluster, 1), late)
    parties.opened += [t for t in found if isinstance(t, TlsTransport)]
    assert len(parties.opened) == 3, found


def test_strangers_hold_nobody_up(cluster: ClusterConfig, stranger_keys: Path, parties: Parties) -> None:
    """Silent, babbling and unknown connections, more than are kept, before and while the parties meet."""
    stop = threading.Event()
    silent: list[Any] = []

    def pester() -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        while not stop.is_set():
            for party in cluster.parties:
                try:
                    sock = socket.create_connection(("127.0.0.1", party.mesh_port), timeout=1)
                    silent.append(sock)
                    babbler = socket.create_connection(("127.0.0.1", party.mesh_port), timeout=1)
                    babbler.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    silent.append(babbler)
                    with socket.create_connection(("127.0.0.1", party.mesh_port), timeout=0.05) as other:
                        context.wrap_socket(other).close()
                except OSError:
                    time.sleep(0.01)

    thread = threading.Thread(target=pester)
    thread.start()

    def late() -> TlsTransport:
        time.sleep(1.5)
        return TlsTransport.connect(cluster, 2)

    try:
        start = time.monotonic()
        found = parties.run(lambda: TlsTransport.connect(cluster, 0), lambda: TlsTransport.connect(cluster, 1), late)
    finally:
        stop.set()
        thread.join()
        for sock in silent:
            sock.close()
    parties.opened += [t for t in found if isinstance(t, TlsTransport)]
    assert len(parties.opened) == 3, found
    assert time.monotonic() - start < 6
    assert len(silent) > 6
    assert not any(isinstance(r, BaseException) for r in parties.run(*(lambda t=t: spin(t) for t in found)))


def test_hundreds_of_garbled_hellos_hold_nobody_up(
    cluster: ClusterConfig, cluster_keys: Path, parties: Parties
) -> None:
    """Noise on the open port, and noise from a holder of party 2's own certificate, while the parties meet."""
    pieces = random.Random(7)
    hello = bytes.fromhex("454e434d01021000") + bytes(24)

    def noise() -> bytes:
        bad = bytearray(hello + pieces.randbytes(48))
        for _ in range(pieces.randint(1, 6)):
            bad[pieces.randrange(len(bad))] ^= 1 << pieces.randrange(8)
        return bytes(bad[: pieces.randrange(len(bad))]) if pieces.random() < 0.5 else bytes(bad)

    def pester(rank: int) -> None:
        address = ("127.0.0.1", cluster.parties[rank].mesh_port)
        context = client_context(cluster_keys, "party-2")
        for number in range(150):
            try:
                with socket.create_connection(address, timeout=2) as sock:
                    if number % 3:
                        sock.sendall(pieces.randbytes(pieces.randint(1, 600)))
                    else:
                        with context.wrap_socket(sock, server_hostname=party_hostname(rank)) as secure:
                            secure.sendall(noise())
            except OSError:
                continue

    def late() -> TlsTransport:
        threads = [threading.Thread(target=pester, args=(rank,)) for rank in (0, 1)]
        time.sleep(0.3)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return TlsTransport.connect(cluster, 2)

    found = parties.run(lambda: TlsTransport.connect(cluster, 0), lambda: TlsTransport.connect(cluster, 1), late)
    parties.opened += [t for t in found if isinstance(t, TlsTransport)]
    assert len(parties.opened) == 3, found
    assert not any(isinstance(r, BaseException) for r in parties.run(*(lambda t=t: spin(t) for t in found)))
