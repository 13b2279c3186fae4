"""Where the server may send something: hosts on a list, at public addresses, over TLS; no redirects, no surprises.

What a name stands for is looked up once, every address is checked, and the connection goes to one of those addresses: a
name that changes its mind between the check and the connection (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

HEAD_LIMIT: Final = 16 * 1024
_PORTS: Final = {"https": 443, "http": 80}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks a name up; returns addresses."""


class EgressRefused(Exception):
    """Nothing may be sent there: a sentence that says why."""


class Unreachable(Exception):
    """The other side did not answer as it should; a later attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side answered: its status and, of its headers, when to come back (seconds; None: not said)."""

    status: int
    retry_after: float | None = None


async def look_up(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name by the machine's resolver. Raises `Unreachable`."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"{host} cannot be looked up: {error.strerror or error}") from None
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True, slots=True)
class Egress:
    """What may be sent where. `hosts` are names, or `*.name` for all below a name; none means nowhere."""

    hosts: tuple[str, ...] = ()
    private: bool = False
    """Whether addresses of this machine and of private networks are allowed, and there also plain HTTP."""
    timeout: float = 10.0
    resolve: Resolve = field(default=look_up)
    trust: ssl.SSLContext | None = None
    """Certificates to trust; None for those of the machine."""

    def check(self, url: str) -> SplitResult:
        """Return the parts of a URL that is allowed; raises `EgressRefused`."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise EgressRefused("not a URL") from None
        if parts.scheme not in _PORTS or not host or port == 0:
            raise EgressRefused("not a URL of https, or of http where private addresses are allowed")
        if parts.scheme == "http" and not self.private:
            raise EgressRefused("plain http is only for private addresses, and these are not allowed")
        if parts.username is not None or parts.password is not None:
            raise EgressRefused("a URL must not hold credentials")
        if not any(_fits(host, pattern.lower()) for pattern in self.hosts):
            raise EgressRefused(f"the host {host} is not on the list egress_hosts")
        return parts

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send something. Raises `EgressRefused` when that is not allowed, `Unreachable` when it did not arrive."""
        parts = self.check(url)
        host = parts.hostname or ""
        port = parts.port or _PORTS[parts.scheme]
        try:
            async with asyncio.timeout(self.timeout):
                address = await self._address(parts.scheme, host, port)
                return await self._exchange(parts, address, port, body, headers)
        except TimeoutError:
            raise Unreachable(f"{host} did not answer within {self.timeout:g} s") from None
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise Unreachable(f"{host}: {type(error).__name__}: {error}") from None

    async def _address(self, scheme: str, host: str, port: int) -> str:
        addresses = await self.resolve(host, port)
        if not addresses:
            raise Unreachable(f"{host} has no address")
        public = [ipaddress.ip_address(address.partition("%")[0]).is_global for address in addresses]
        if not all(public) and not self.private:
            raise EgressRefused(f"the host {host} has an address that is not public")
        if scheme == "http" and any(public):
            raise EgressRefused(f"the host {host} is public: it needs https")
        return addresses[0]

    async def _exchange(
        self, parts: SplitResult, address: str, port: int, body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        host = parts.hostname or ""
        tls = (self.trust or ssl.create_default_context()) if parts.scheme == "https" else None
        reader, writer = await asyncio.open_connection(
            address, port, ssl=tls, server_hostname=host if tls else None, limit=HEAD_LIMIT
        )
        try:
            writer.write(_request(parts, host, port, body, headers) + body)
            await writer.drain()
            return _answer(await reader.readuntil(b"\r\n\r\n"))
        finally:
            writer.transport.abort()


def _fits(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


def _request(parts: SplitResult, host: str, port: int, body: bytes, headers: Mapping[str, str]) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    named = f"[{host}]" if ":" in host else host
    usual = port == _PORTS[parts.scheme]
    lines = [f"POST {target} HTTP/1.1", f"Host: {named}" if usual else f"Host: {named}:{port}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise EgressRefused("a line break in a header")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _answer(head: bytes) -> Answer:
    """Return status and wait of an answer's head; raises `ValueError` for what is none of HTTP/1."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("not an answer of HTTP/1")
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "retry-after" and value.strip().isdigit():
            return Answer(int(rest[:3]), float(value.strip()))
    return Answer(int(rest[:3]))
