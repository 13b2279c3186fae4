"""How a program gets in: whom it trusts, who it says it is. The only module of the client that reads the environment.

`AGENTHIVE_TOKEN` or `AGENTHIVE_TOKEN_FILE`, `AGENTHIVE_CA`, `AGENTHIVE_CERT` and `AGENTHIVE_KEY` count where the
arguments of the same names say nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from agenthive.service_config import CHANNEL_OPTIONS, call_metadata, open_channel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias, Unpack

    import grpc

    StrPath: TypeAlias = str | os.PathLike[str]
    Metadata: TypeAlias = tuple[tuple[str, str], ...]

DEFAULT_TARGET: Final = "127.0.0.1:50051"
VARIABLES: Final = {name: f"AGENTHIVE_{name.upper()}" for name in ("token", "token_file", "ca", "cert", "key")}
"""The environment variable of each option that has one."""

_TOKEN: Final = re.compile(r"[!-~]{1,8192}")
_LARGEST: Final = 2**20


class AccessOptions(TypedDict, total=False):
    """Keyword arguments of Client, Worker and Access. Files are PEM."""

    token: str | None
    """Bearer token of every call."""
    token_file: StrPath | None
    """File with that token; read again when it changes."""
    ca: StrPath | None
    """File with the authorities trusted to vouch for the server; with it, or a certificate, the client speaks TLS."""
    cert: StrPath | None
    """File with a certificate that says who we are; needs `key`."""
    key: StrPath | None
    """File with the private key of that certificate."""
    tls: bool | None
    """True: TLS, without `ca` trusting the authorities gRPC knows. False: plain text, whatever the environment."""
    server_name: str | None
    """Name to expect in the server's certificate, instead of the target's."""
    insecure: bool
    """Send the token also in plain text to another machine."""
    credentials: grpc.ChannelCredentials | None
    """gRPC's own, instead of `ca`, `cert` and `key`."""


class AccessError(ValueError):
    """The options make no sense, or a file of theirs cannot be read: a sentence. It shows no secret."""


class Access:
    """The way to one server: opens channels, and says what goes with every call.

    Files are read again for each channel, and the token's for each call when it has changed; one that cannot be read
    any more counts as it was. A token is sent in plain text to this machine only, unless `insecure` says otherwise.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        namespace: str = "default",
        *,
        environ: Mapping[str, str] | None = None,
        **options: Unpack[AccessOptions],
    ) -> None:
        """Read the files once; raises `AccessError`. Nothing is connected."""
        self.target = target
        self.namespace = namespace
        chosen = _with_environment(options, os.environ if environ is None else environ)
        self._server_name = chosen.get("server_name")
        self._insecure = bool(chosen.get("insecure"))
        self._credentials = chosen.get("credentials")
        self._ca, self._cert, self._key = (_file(chosen, name) for name in ("ca", "cert", "key"))
        self._token_file = _file(chosen, "token_file")
        self.tls = _speaks_tls(chosen)
        self.local = is_local(target)
        if self.tls:
            self._check_files()
        token = _checked_token(chosen.get("token"), "the token")
        self._metadata = call_metadata(namespace, token)
        self._token = token
        if self._token_file is not None:
            self.metadata()
        if self._token is not None:
            self.require_private("a token")

    def require_private(self, what: str) -> None:
        """Raise `AccessError` if a secret would travel in plain text to another machine."""
        if not (self.tls or self.local or self._insecure):
            raise AccessError(
                f"{what} would travel in plain text to {self.target}: speak TLS (`ca`), or say `insecure` if something"
                " else protects the way"
            )

    def metadata(self) -> Metadata:
        """Return what goes with a call: the namespace, and the bearer token if there is one."""
        if self._token_file is not None and self._token_file.changed():
            text = self._token_file.read().decode("utf-8", "replace").strip()
            try:
                self._token = _checked_token(text, str(self._token_file))
            except AccessError:
                if self._token is None:
                    raise
                return self._metadata  # it is being written
            self._metadata = call_metadata(self.namespace, self._token)
        return self._metadata

    def open_channel(self, options: Sequence[tuple[str, str | int]] = CHANNEL_OPTIONS) -> grpc.aio.Channel:
        """Return a channel with a connection of its own, not connected yet. Call it in the event loop that uses it."""
        more: list[tuple[str, str | int]] = []
        if self._server_name:
            more.append(("grpc.ssl_target_name_override", self._server_name))
        if self.local:
            # A proxy is another machine, and would see the token.
            more.append(("grpc.enable_http_proxy", 0))
        return open_channel(self.target, self._channel_credentials(), [*options, *more])

    def _channel_credentials(self) -> grpc.ChannelCredentials | None:
        if not self.tls:
            return None
        if self._credentials is not None:
            return self._credentials
        import grpc

        ca, key, cert = (file.read() if file else None for file in (self._ca, self._key, self._cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def _check_files(self) -> None:
        """Say now what a handshake would only hint at."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._ca is not None:
            try:
                context.load_verify_locations(cadata=self._ca.read().decode("ascii", "ignore"))
            except ssl.SSLError:
                raise AccessError(f"{self._ca}: no certificate in PEM form") from None
        if self._cert is None or self._key is None:
            return
        for file in (self._cert, self._key):
            file.read()
        try:
            context.load_cert_chain(self._cert.path, self._key.path, password=lambda: "")
        except (ssl.SSLError, OSError):
            raise AccessError(
                f"{self._cert} and {self._key} are no certificate and its key, in PEM form and not encrypted"
            ) from None


class _File:
    """A file of an option, and what was in it when it could last be read."""

    def __init__(self, path: Path, option: str) -> None:
        self.path = path
        self._option = option
        self._seen: object = None
        self._text: bytes | None = None

    def __str__(self) -> str:
        return f"{self._option} {self.path}"

    def changed(self) -> bool:
        """Whether it is another file than the one last read. A pipe is read only once."""
        return self._text is None or self._look() not in (self._seen, None)

    def read(self) -> bytes:
        """Return what is in it, or was; raises `AccessError` if it could never be read."""
        try:
            seen = self._look()
            if self._text is None or seen is not None:
                with self.path.open("rb") as file:
                    self._text, self._seen = file.read(_LARGEST), seen
        except OSError as error:
            if self._text is None:
                raise AccessError(f"{self}: {error.strerror or error}") from None
        return self._text

    def _look(self) -> object:
        """Return what tells one version of a regular file from the next; None for all else."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _with_environment(options: AccessOptions, environ: Mapping[str, str]) -> AccessOptions:
    """Return the options, and those of the environment where nothing was said of the same thing."""
    chosen = AccessOptions(**options)
    groups: tuple[tuple[str, ...], ...] = (("token", "token_file"), ("ca",), ("cert", "key"))
    for group in groups:
        about_tls = "token" not in group
        if about_tls and (options.get("credentials") is not None or options.get("tls") is False):
            continue
        if all(options.get(name) is None for name in group):
            for name in group:
                if value := environ.get(VARIABLES[name]):
                    chosen[name] = value  # type: ignore[literal-required]  # a key of AccessOptions
    if chosen.get("token") is not None:
        chosen.pop("token_file", None)
    return chosen


def _file(chosen: AccessOptions, name: str) -> _File | None:
    path = chosen.get(name)
    return None if path is None else _File(Path(os.fspath(path)), name)  # type: ignore[call-overload]


def _speaks_tls(chosen: AccessOptions) -> bool:
    files = [name for name in ("ca", "cert", "key") if chosen.get(name) is not None]
    if chosen.get("credentials") is not None and files:
        raise AccessError(f"credentials of gRPC and `{files[0]}` at once")
    if ("cert" in files) != ("key" in files):
        raise AccessError("`cert` and `key` belong together: a certificate is worth nothing without its key")
    wanted = chosen.get("tls")
    if wanted is False and (files or chosen.get("credentials") is not None):
        raise AccessError("no TLS, and files for it at once")
    return bool(wanted or files or chosen.get("credentials") is not None)


def _checked_token(token: str | None, where: str) -> str | None:
    if token is not None and not _TOKEN.fullmatch(token):
        raise AccessError(f"{where}: expected one token of letters, digits and signs, at most 8192")
    return token


def is_local(target: str) -> bool:
    """Whether what is sent to a gRPC target stays on this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("ipv4", "ipv6"):
        return all(_is_loopback(address) for address in rest.split(","))
    return _is_loopback(rest.rpartition("/")[2] if scheme == "dns" else target)


def _is_loopback(address: str) -> bool:
    host = address[1:].partition("]")[0] if address.startswith("[") else address
    if host.count(":") == 1:
        host = host.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
