"""TLS for the server: its certificate, read again whenever the files change, without a restart.

New handshakes show the new certificate within `EVERY` seconds; connections that are open go on. Files that cannot be
used change nothing: what was served before is served on, and health says why.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import grpc

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.health import Reading, Status
from agenthive_server.telemetry import TLS_END, TLS_RENEWALS, Sample

from .x509 import Certificate, read_certificates

EVERY: Final = 2.0
"""Seconds between two looks at the files."""

SOON: Final = 14 * 86_400.0
"""Seconds before its end at which a certificate counts as ending soon; a sixth of its life, if that is less."""

SERVABLE: Final = frozenset({"RSA", "ECDSA P-256", "ECDSA P-384"})
"""The kinds of keys that gRPC's clients accept; with others a server starts, and every handshake fails."""

_LARGEST: Final = 2**20
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_log = logging.getLogger(__name__)


class BadCertificate(Exception):
    """A certificate or key cannot be used: a sentence for the operator, with the file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the PEM files are: our certificate (intermediates after it), its key, the authority of clients."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the files said, checked: it can be served."""

    chain: bytes
    configuration: grpc.ServerCertificateConfiguration
    certificates: tuple[Certificate, ...]
    authorities: tuple[Certificate, ...]

    @property
    def first_to_end(self) -> Certificate:
        """The one of our own certificates that ends first."""
        return min(self.certificates, key=lambda each: each.not_after)


def read_identity(files: TlsFiles) -> Identity:
    """Read and check the files. Raises `BadCertificate`."""
    paths = [path for path in (files.certificate, files.key, files.client_ca) if path is not None]
    for _ in range(3):
        texts = [_read(path) for path in paths]
        # OpenSSL reads the files itself: what it has checked must be what is served.
        identity = _checked(files, *texts)
        if texts == [_read(path) for path in paths]:
            return identity
    raise BadCertificate(f"{files.certificate} or {files.key} keeps changing while it is read")


def _checked(files: TlsFiles, chain: bytes, key: bytes, client_ca: bytes | None = None) -> Identity:
    certificates = _certificates(files.certificate, chain)
    if certificates[0].key not in SERVABLE:
        raise BadCertificate(
            f"{files.certificate}: its key is {certificates[0].key}, which clients refuse: RSA, ECDSA P-256 or P-384"
        )
    _check_pair(files)
    authorities = () if files.client_ca is None else _certificates(files.client_ca, client_ca or b"")
    configuration = grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)
    return Identity(chain=chain, configuration=configuration, certificates=certificates, authorities=authorities)


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadCertificate(f"{path} is not a file")
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise BadCertificate(f"{path}: {error.strerror or error}") from None
    if len(text) > _LARGEST:
        raise BadCertificate(f"{path}: too large for a certificate or key")
    return text


def _certificates(path: Path, text: bytes) -> tuple[Certificate, ...]:
    try:
        found = read_certificates(text)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text.decode("ascii", "ignore"))
    except (ValueError, ssl.SSLError):
        found = ()
    if not found:
        raise BadCertificate(f"{path}: no certificate in PEM form in it, or one that cannot be read")
    return found


def _check_pair(files: TlsFiles) -> None:
    def refuse() -> NoReturn:
        raise BadCertificate(f"{files.key}: the key is encrypted, and nobody is here to type its password")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(
                f"the key in {files.key} is not that of the certificate in {files.certificate}"
            ) from None
        raise BadCertificate(f"{files.key}: no private key in PEM form in it, or one that cannot be read") from None
    except OSError as error:
        raise BadCertificate(f"{files.key}: {error.strerror or error}") from None


def readable_by_others(path: Path) -> bool:
    """Whether other users may read a file; a group may read root's, as packages set it up for their servers."""
    found = path.stat()
    group_is_meant = found.st_uid == 0 and os.geteuid() != 0
    return bool(found.st_mode & (stat.S_IRWXO if group_is_meant else _OTHERS))


class ServerTls:
    """The certificate of a server and what becomes of it. `run` keeps it as the files are."""

    def __init__(self, files: TlsFiles, clock: Clock) -> None:
        """Read the files; raises `BadCertificate`."""
        self._files = files
        self._clock = clock
        self._seen = self._look()
        self._failure = ""
        self._told = ""
        self._published: Path | None = None
        self.renewals = 0
        self.identity = read_identity(files)
        if readable_by_others(files.key):
            _log.warning("the private key can be read by other users: chmod 600", extra={"path": str(files.key)})
        self._tell()

    def credentials(self, *, require_client_certificate: bool) -> grpc.ServerCredentials:
        """Return credentials for one listening address: every handshake asks them for the newest certificate."""
        given = self.identity

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # Called in a thread of gRPC, one handshake of an address at a time.
            nonlocal given
            if given is self.identity:
                return None
            given = self.identity
            return given.configuration

        return grpc.dynamic_ssl_server_credentials(given.configuration, fetch, require_client_certificate)  # type: ignore[arg-type]  # None: no change

    def publish(self, path: Path) -> None:
        """Keep a file that says what is served, for a client on this machine that is to trust exactly that."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._published = path
        self._write()

    def name_for_local_clients(self) -> str:
        """Return a name that a client on this machine can expect in the certificate."""
        first = self.identity.certificates[0]
        known = [name for name in ("localhost", "127.0.0.1", "::1") if name in first.names]
        name = next(iter([*known, *first.names]), first.subject)
        return name.replace("*", "local", 1)

    async def run(self) -> None:
        """Look at the files now and then, until cancelled."""
        while True:
            await self._clock.sleep(EVERY)
            self.check()

    def check(self) -> None:
        """Look at the files, and take what they say if it has changed and can be used."""
        seen = self._look()
        if seen != self._seen or self._failure:
            self._seen = seen
            self._reload()
        self._tell()

    def _look(self) -> tuple[object, ...]:
        return tuple(_signature(path) for path in (self._files.certificate, self._files.key, self._files.client_ca))

    def _reload(self) -> None:
        try:
            identity = read_identity(self._files)
            self._require_valid(identity)
        except BadCertificate as error:
            if str(error) != self._failure:
                _log.error("the TLS files have changed and cannot be used; the old ones are served on: %s", error)
            self._failure = str(error)
            return
        self._failure = ""
        if identity.chain == self.identity.chain and identity.authorities == self.identity.authorities:
            return
        self.identity = identity
        self.renewals += 1
        self._write()
        first = identity.certificates[0]
        _log.info("TLS files were read again", extra={"serial": f"{first.serial:x}", "until": _date(first.not_after)})

    def _require_valid(self, identity: Identity) -> None:
        now = self._clock.now()
        for each in identity.certificates:
            if now >= each.not_after:
                raise BadCertificate(f"{self._files.certificate} has expired on {_date(each.not_after)}")
            if now < each.not_before:
                raise BadCertificate(f"{self._files.certificate} is not valid before {_date(each.not_before)}")

    def _write(self) -> None:
        if self._published is None:
            return
        beside = self._published.with_suffix(".new")
        with suppress(FileNotFoundError):
            beside.unlink()
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.identity.chain)
        beside.replace(self._published)

    # What is said of it ---------------------------------------------------------------------------------------------

    def _trouble(self) -> str:
        if self._failure:
            until = _date(self.identity.first_to_end.not_after)
            return (
                f"the files have changed and cannot be used: {self._failure}; what was served before is, until {until}"
            )
        return next(self._ends(), "")

    def _ends(self) -> Iterator[str]:
        now = self._clock.now()
        for path, certificates in (
            (self._files.certificate, self.identity.certificates),
            (self._files.client_ca, self.identity.authorities),
        ):
            for each in certificates:
                left, life = each.not_after - now, each.not_after - each.not_before
                if now < each.not_before:
                    yield f"{path} is not valid before {_date(each.not_before)}"
                elif left <= min(SOON, life / 6):
                    yield f"{path} {'has expired' if left <= 0 else 'expires'} on {_date(each.not_after)}"

    def _tell(self) -> None:
        """Log an end that comes near, once; what is wrong with new files is logged where it is found."""
        trouble = "" if self._failure else self._trouble()
        if trouble and trouble != self._told:
            _log.warning("TLS: %s", trouble)
        self._told = trouble

    def probe(self) -> list[tuple[str, Reading]]:
        """Return how it is: DEGRADED when new files cannot be used, or a certificate ends soon or has ended."""
        trouble = self._trouble()
        if trouble:
            return [("tls", Reading(Status.DEGRADED, trouble))]
        return [("tls", Reading(Status.OK, f"until {_date(self.identity.first_to_end.not_after)}"))]

    def metrics(self) -> Iterator[Sample]:
        """Yield when the certificate ends, and how often it was renewed."""
        yield Sample(TLS_END, (), self.identity.first_to_end.not_after)
        yield Sample(TLS_RENEWALS, (), self.renewals)


def _signature(path: Path | None) -> object:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns


def _date(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
