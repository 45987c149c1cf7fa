"""A cluster's keys: one authority per cluster, certificates by role, and the parties' sealing keys.

Who someone is stands in the certificate's URI: ``encml://<cluster>/party/<rank>``, ``.../owner`` or
``.../client/<name>``. The cluster's authority signs all of them, so every check below looks at the role too: a
client's certificate is no party's. Parties also carry the DNS name ``party_hostname(rank)``; whoever dials a party
and checks that name (all of encml does) reaches that rank and no other, even where all three share one host.

Files in the folder: ``ca.pem`` and ``ca.key`` (only needed to issue further clients: keep it off the parties'
hosts), ``party-<i>.pem/.key``, ``party-<i>.seal.pub/.seal.key`` (X25519, to seal shares to a party), ``owner.pem/
.key`` and ``<client>.pem/.key``. Everyone needs ``ca.pem`` and the ``.seal.pub`` files, and their own ``.key``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import shutil
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from encml.errors import AuthenticationError, ConfigError
from encml.net.transport import PARTIES

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_RESERVED = re.compile(r"ca|party-.*")
_ROLE_URI = re.compile(r"encml://([0-9a-f]{16})/(?:party/([0-2])|(owner)|client/([a-z0-9][a-z0-9._-]{0,62}))")
_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate says its holder is: ``role`` is "party", "owner" or "client"; only a party has a rank."""

    cluster: str
    role: str
    rank: int | None
    name: str


def party_hostname(rank: int) -> str:
    """The name that party ``rank``'s certificate carries on every host; to check as the TLS server's name."""
    return f"party-{rank}.encml.internal"


def make_cluster_keys(
    folder: str | Path,
    parties: Sequence[str],
    clients: Sequence[str] = ("client",),
    owner: str = "owner",
    days: int = 365,
    overwrite: bool = False,
) -> None:
    """Make a new cluster: authority, three party certificates and sealing keys, the owner's and clients' keys.

    ``parties`` are the three hosts (names or addresses). Private keys are readable by their owner only (mode 0600,
    folder 0700). ``overwrite`` replaces all keys of the folder, after which the old cluster's certificates no
    longer work. Raises ConfigError where keys exist already, or for a wrong host, name or number of days.
    """
    folder = Path(folder)
    if len(parties) != PARTIES:
        raise ConfigError(f"a cluster has {PARTIES} parties, found {len(parties)} hosts: {', '.join(parties)}")
    if days < 1:
        raise ConfigError(f"certificates valid for {days} days: expected at least 1")
    _check_names([owner, *clients])
    existing = [name for name in ("ca", owner, *clients) if (folder / f"{name}.pem").exists()]
    if existing and not overwrite:
        raise ConfigError(f"{folder} holds keys already ({existing[0]}.pem): choose another folder, or overwrite them")
    authority = _Authority.new(days)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    # All keys are made in a folder beside the old ones and then moved, so an interruption leaves no mixture of two.
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        _write(fresh / "ca.key", _pem(authority.key), private=True)
        _write(fresh / "ca.pem", authority.certificate.public_bytes(serialization.Encoding.PEM))
        for rank, host in enumerate(parties):
            authority.issue(fresh, f"party-{rank}", f"party/{rank}", days, [*_host_names(host), party_hostname(rank)])
            seal = X25519PrivateKey.generate()
            _write(fresh / f"party-{rank}.seal.key", _pem(seal), private=True)
            _write(fresh / f"party-{rank}.seal.pub", _public_pem(seal.public_key()))
        authority.issue(fresh, owner, "owner", days)
        for client in clients:
            authority.issue(fresh, client, f"client/{client}", days)
        for path in _files_of_cluster(folder):
            path.unlink(missing_ok=True)
        for path in sorted(fresh.iterdir()):
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(fresh)


def add_client(folder: str | Path, name: str, days: int = 365) -> None:
    """Issue keys for one more client with the folder's ``ca.key``. Raises ConfigError where the name is taken."""
    folder = Path(folder)
    _check_names([name])
    if (folder / f"{name}.pem").exists() or (folder / f"{name}.key").exists():
        raise ConfigError(f"{folder} holds keys for {name!r} already: choose another name")
    _Authority.load(folder).issue(folder, name, f"client/{name}", days)


def server_context(folder: str | Path, rank: int) -> ssl.SSLContext:
    """TLS 1.3 for party ``rank`` as a server: only certificates of this cluster may connect.

    Check the peer's role after the handshake with ``require_role``. Raises ConfigError for missing or broken keys.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(context, Path(folder), f"party-{rank}")
    # No session tickets: a ticket that the other side never reads would turn its orderly close into a reset.
    context.num_tickets = 0
    return context


def client_context(folder: str | Path, name: str) -> ssl.SSLContext:
    """TLS 1.3 for ``name`` ("party-0", "owner", a client) towards a party of this cluster.

    Pass ``server_hostname=party_hostname(rank)``, so that only that party is accepted. Raises ConfigError for
    missing or broken keys.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _configure(context, Path(folder), name)
    return context


def load_seal_key(folder: str | Path, rank: int) -> X25519PrivateKey:
    """Party ``rank``'s private sealing key. Raises ConfigError for a missing or broken file."""
    path = Path(folder) / f"party-{rank}.seal.key"
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not a private key in PEM") from None
    if not isinstance(key, X25519PrivateKey):
        raise ConfigError(f"{path}: expected an X25519 key")
    return key


def load_seal_public(folder: str | Path, rank: int) -> X25519PublicKey:
    """Party ``rank``'s public sealing key. Raises ConfigError for a missing or broken file."""
    path = Path(folder) / f"party-{rank}.seal.pub"
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: not a public key in PEM") from None
    if not isinstance(key, X25519PublicKey):
        raise ConfigError(f"{path}: expected an X25519 key")
    return key


def peer_identity(certificate: Mapping[str, Any] | None, address: str | None = None) -> Identity:
    """Read the identity from ``getpeercert()``'s result. Raises AuthenticationError where there is not just one."""
    names = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    match = _ROLE_URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None:
        found = ", ".join(uris) or "no role"
        raise AuthenticationError(f"{address or 'peer'}: the certificate names {found}, expected one role of encml")
    cluster, rank, owner, client = match.groups()
    if rank is not None:
        return Identity(cluster, "party", int(rank), f"party-{rank}")
    return Identity(cluster, "owner", None, "owner") if owner else Identity(cluster, "client", None, client)


def require_role(
    certificate: Mapping[str, Any] | None, role: str, rank: int | None = None, address: str | None = None
) -> Identity:
    """The identity, if it has ``role`` and, where one is given, ``rank``; otherwise raises AuthenticationError."""
    identity = peer_identity(certificate, address)
    if identity.role != role or (rank is not None and identity.rank != rank):
        expected = role if rank is None else f"{role} {rank}"
        message = f"{address or 'peer'}: the certificate is {identity.name}'s, expected {expected}'s"
        raise AuthenticationError(message, rank=rank, address=address)
    return identity


class _Authority:
    """The cluster's certificate authority: its key, its certificate, the cluster's id."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.key = key
        self.certificate = certificate
        self.cluster = str(certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value)

    @classmethod
    def new(cls, days: int) -> _Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject("encml cluster", secrets.token_hex(8))
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, folder: Path) -> _Authority:
        key_pem, certificate_pem = _read(folder / "ca.key"), _read(folder / "ca.pem")
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError(f"{folder}: ca.key or ca.pem is damaged") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{folder}: ca.key does not belong to ca.pem")
        return cls(key, certificate)

    def issue(self, folder: Path, name: str, role: str, days: int, hosts: Sequence[str] = ()) -> None:
        """Write ``name``.key and ``name``.pem. Only parties, which have hosts, may act as TLS servers."""
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])
        uri = x509.UniformResourceIdentifier(f"encml://{self.cluster}/{role}")
        names = [uri, *(_general_name(host) for host in dict.fromkeys(hosts))]
        public = self.key.public_key()
        certificate = (
            _builder(_subject(name, self.cluster), self.certificate.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        _write(folder / f"{name}.key", _pem(key), private=True)
        _write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _subject(name: str, cluster: str) -> x509.Name:
    common, unit = NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME
    return x509.Name([x509.NameAttribute(unit, cluster), x509.NameAttribute(common, name)])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _host_names(host: str) -> list[str]:
    """The names under which a host is dialled; loopback has several."""
    return [host, "localhost", "127.0.0.1"] if host == "localhost" or host.startswith("127.") else [host]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(f"{host!r} is neither an address nor a host name in ASCII") from None


def _check_names(names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a key: use a-z, 0-9, '.', '_', '-', and neither 'ca' nor 'party-'")
        if name in names[:place]:
            raise ConfigError(f"the name {name!r} is given twice")


def _files_of_cluster(folder: Path) -> list[Path]:
    """The files of the cluster whose ``ca.pem`` lies in ``folder``; whatever else lies there is not ours to touch."""
    subject = _subject_of(folder / "ca.pem")
    if subject is None:
        return []
    issued = [path for path in folder.glob("*.pem") if _subject_of(path, issuer=True) == subject]
    return [*folder.glob("party-[0-2].seal.*"), *issued, *(path.with_suffix(".key") for path in issued)]


def _subject_of(path: Path, issuer: bool = False) -> x509.Name | None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return certificate.issuer if issuer else certificate.subject


def _configure(context: ssl.SSLContext, folder: Path, name: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    files = [folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key"]
    for path in files:
        _read(path)
    try:
        context.load_verify_locations(cafile=files[0])
        context.load_cert_chain(files[1], files[2])
    except ssl.SSLError as error:
        reason = error.reason or "not PEM"
        raise ConfigError(f"{folder}: the keys of {name} cannot be used ({reason}); make them anew") from None


def _pem(key: ec.EllipticCurvePrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: X25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; make a cluster's keys with 'encml keys init'") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
