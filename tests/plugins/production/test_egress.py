"""Egress: only hosts on the list, only public addresses unless told, no redirects; against real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from agenthive_plugins.production.egress import Answer, Egress, EgressRefused, Unreachable

ALLOWED = Egress(hosts=("localhost", "hooks.example.org", "*.example.com"), private=True, timeout=5.0)


@asynccontextmanager
async def serving(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """A server on a free port; its connections are closed at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
            writer.close()

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def server(answer: bytes, seen: list[bytes] | None = None) -> AsyncIterator[int]:
    """A server that reads one request whole and answers with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        body = await reader.readexactly(length)
        if seen is not None:
            seen.append(head + body)
        writer.write(answer)
        await writer.drain()

    async with serving(serve) as port:
        yield port


async def test_what_is_sent_arrives_as_http() -> None:
    seen: list[bytes] = []
    async with server(b"HTTP/1.1 204 No Content\r\n\r\n", seen) as port:
        answer = await ALLOWED.post(f"http://localhost:{port}/a/b?c=d", b'{"x":1}', {"webhook-id": "1"})
    assert answer == Answer(204)
    assert seen[0].startswith(b"POST /a/b?c=d HTTP/1.1\r\nHost: localhost:%d\r\n" % port)
    assert b"\r\nwebhook-id: 1\r\n" in seen[0]
    assert seen[0].endswith(b'\r\n\r\n{"x":1}')


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    seen: list[bytes] = []
    async with server(b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/x\r\n\r\n", seen) as port:
        assert (await ALLOWED.post(f"http://localhost:{port}/", b"{}", {})).status == 302
    assert len(seen) == 1


async def test_when_to_come_back_is_read() -> None:
    async with server(b"HTTP/1.1 503 Busy\r\nRetry-After: 17\r\n\r\n") as port:
        assert await ALLOWED.post(f"http://localhost:{port}/", b"{}", {}) == Answer(503, 17.0)


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/2 200\r\n\r\n"])
async def test_an_answer_that_is_none_may_be_repeated(answer: bytes) -> None:
    async with server(answer) as port:
        with pytest.raises(Unreachable):
            await ALLOWED.post(f"http://localhost:{port}/", b"{}", {})


async def test_an_endless_head_is_given_up() -> None:
    async with server(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000) as port:
        with pytest.raises(Unreachable):
            await ALLOWED.post(f"http://localhost:{port}/", b"{}", {})


async def test_who_does_not_listen_or_answer_is_unreachable() -> None:
    async with server(b"") as port:
        pass
    with pytest.raises(Unreachable, match="localhost"):
        await ALLOWED.post(f"http://localhost:{port}/", b"{}", {})

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(hang) as port:
        with pytest.raises(Unreachable, match=r"within 0\.1 s"):
            await Egress(hosts=("localhost",), private=True, timeout=0.1).post(f"http://localhost:{port}/", b"{}", {})


async def test_plain_text_on_a_port_of_tls_is_unreachable() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()

    async with serving(greet) as port:
        with pytest.raises(Unreachable):
            await ALLOWED.post(f"https://localhost:{port}/", b"{}", {})


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://elsewhere.org/", "not on the list"),
        ("https://example.com/", "not on the list"),
        ("https://evilexample.com/", "not on the list"),
        ("https://hooks.example.org.evil.net/", "not on the list"),
        ("https://user:pass@hooks.example.org/", "credentials"),
        ("ftp://hooks.example.org/", "not a URL"),
        ("hooks.example.org", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://hooks.example.org:99999/", "not a URL"),
        ("", "not a URL"),
    ],
)
def test_where_nothing_may_be_sent(url: str, why: str) -> None:
    with pytest.raises(EgressRefused, match=why):
        ALLOWED.check(url)


def test_where_something_may_be_sent() -> None:
    for url in ("https://HOOKS.example.org/x", "https://a.example.com:8443/", "https://a.b.example.com/?q"):
        assert ALLOWED.check(url).scheme == "https"
    assert ALLOWED.check("http://localhost/").scheme == "http"
    with pytest.raises(EgressRefused, match="plain http"):
        Egress(hosts=("localhost",)).check("http://localhost/")
    with pytest.raises(EgressRefused, match="not on the list"):
        Egress().check("https://hooks.example.org/")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "100.64.0.1", "0.0.0.0"],
)
async def test_a_name_that_leads_inside_is_refused(address: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34", address]

    egress = Egress(hosts=("hooks.example.org",), resolve=resolve)
    with pytest.raises(EgressRefused, match="not public"):
        await egress.post("https://hooks.example.org/", b"{}", {})


async def test_plain_http_to_a_public_address_is_refused() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34"]

    egress = Egress(hosts=("hooks.example.org",), private=True, resolve=resolve)
    with pytest.raises(EgressRefused, match="needs https"):
        await egress.post("http://hooks.example.org/", b"{}", {})


async def test_a_name_that_stands_for_nothing() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return []

    with pytest.raises(Unreachable, match="no address"):
        await Egress(hosts=("hooks.example.org",), resolve=resolve).post("https://hooks.example.org/", b"{}", {})


async def test_a_line_break_cannot_be_smuggled_into_a_header() -> None:
    async with server(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        with pytest.raises(EgressRefused, match="line break"):
            await ALLOWED.post(f"http://localhost:{port}/", b"{}", {"x": "a\r\nEvil: b"})
