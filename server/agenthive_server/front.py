"""Where the server listens, with which certificates, and whether what protects it is enough for that."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from agenthive_server.kernel.clock import Clock
from agenthive_server.lifecycle import StartError
from agenthive_server.rpc.adapter import Adapter
from agenthive_server.rpc.exposure import Unprotected, is_loopback, require_protected
from agenthive_server.rpc.server import Listening, Server
from agenthive_server.rpc.tls import BadCertificate, ServerTls, TlsFiles
from agenthive_server.settings import Settings

EVERYWHERE: Final = ("", "0.0.0.0", "[::]", "::")


class Front:
    """The addresses of a server. Methods raise `StartError`."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._server = settings.server
        self._clock = clock
        self.tls: ServerTls | None = None

    def load(self) -> None:
        """Read certificate and key, where there are any."""
        files = self._server.tls
        if files.certificate:
            client_ca = Path(files.client_ca) if files.client_ca else None
            paths = TlsFiles(certificate=Path(files.certificate), key=Path(files.key), client_ca=client_ca)
            try:
                self.tls = ServerTls(paths, self._clock)
            except BadCertificate as error:
                raise StartError(str(error)) from None

    def addresses(self) -> list[str]:
        """Return all addresses, as HOST:PORT."""
        return [listen for listen in (self._server.listen, self._server.tls.mutual_listen) if listen]

    def shown(self, port: int) -> str:
        """Return where callers of other machines would look for it, as HOST:PORT."""
        host = self._server.listen.rpartition(":")[0]
        return f"{socket.gethostname() if host in EVERYWHERE else host}:{port}"

    def require_protected(self, *, authenticated: bool) -> None:
        """Refuse an address that needs more protection than there is."""
        insecure = self._server.insecure
        try:
            for listen in self.addresses():
                require_protected(listen, tls=self.tls is not None, authenticated=authenticated, insecure=insecure)
        except Unprotected as error:
            raise StartError(str(error)) from None

    def require_tls(self) -> None:
        """Refuse an address that needs TLS where there is none, whatever plugins will do about authentication."""
        if self.tls is None and not self._server.insecure:
            self.require_protected(authenticated=False)

    def exposed(self) -> bool:
        """Whether others can reach the server, and nobody said that this is fine without protection."""
        hosts = [listen.rpartition(":")[0] for listen in self.addresses()]
        return not self._server.insecure and not all(map(is_loopback, hosts))

    def listen(self, adapter: Adapter) -> Server:
        """Return a server that is bound; raises `CannotListen`."""
        server = self._server
        return Server(
            adapter,
            Listening(
                addresses=(server.listen,),
                tls=self.tls,
                client_certificates=server.tls.required,
                mutual_addresses=(server.tls.mutual_listen,) if server.tls.mutual_listen else (),
                message_limit=server.message_limit_bytes,
                max_connection_age=server.maximum_connection_age_seconds or None,
            ),
        )
