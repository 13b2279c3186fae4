"""Who can reach the server, and whether what protects it is enough for that."""

from __future__ import annotations

import ipaddress
import logging

_log = logging.getLogger(__name__)


class Unprotected(Exception):
    """The server would be open to others, or its address is none: a sentence for the operator."""


def require_protected(listen: str, *, tls: bool, authenticated: bool, insecure: bool) -> None:
    """Raise `Unprotected` unless only this machine reaches the address, or TLS and authentication protect it.

    `authenticated`: somebody asks every caller who it is. `insecure`: the operator takes it as it is; that is logged.
    """
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise Unprotected(f"listen {listen!r}: expected HOST:PORT")
    if is_loopback(host) or (tls and authenticated):
        return
    missing = " and ".join(name for name, there in (("TLS", tls), ("authentication", authenticated)) if not there)
    if not insecure:
        raise Unprotected(
            f"listen {listen!r} is reachable from other machines and has no {missing}: {_advice(tls, authenticated)},"
            " choose 127.0.0.1, or say --insecure if something else protects it"
        )
    _log.warning("listening on %s without %s, as told by --insecure", listen, missing)


def _advice(tls: bool, authenticated: bool) -> str:
    steps = [] if tls else ["give --tls-cert and --tls-key (`agenthived certs` makes some)"]
    if not authenticated:
        steps.append("enable a plugin that authenticates callers, for example `security`")
    return ", ".join(steps)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a host. A name counts only if it is `localhost`: others may change."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def local_address(host: str) -> str:
    """Return the host under which this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
