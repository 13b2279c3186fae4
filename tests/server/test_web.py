"""The web endpoint: right answers to probes and scrapers, and nobody occupies it by being slow."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from agenthive.client import Client
from agenthive_server import web as module
from agenthive_server.__main__ import main
from agenthive_server.app import App
from agenthive_server.exposition import CATALOGUE
from agenthive_server.lifecycle import StartError
from agenthive_server.plugin.registry import Registry
from agenthive_server.rpc.health import Board
from agenthive_server.settings import load
from agenthive_server.telemetry import Sample
from agenthive_server.testing.harness import open_app, open_served
from agenthive_server.testing.waiting import eventually
from agenthive_server.web import CannotServe, Web, require_private
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

Answer = tuple[int, dict[str, str], str]


async def ask(port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """Ask with a client that knows HTTP."""

    def call() -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def say(port: int, *pieces: bytes) -> bytes:
    """Say these bytes and return all that is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await reader.read()
    finally:
        writer.close()


@pytest.fixture
async def served() -> AsyncIterator[tuple[App, int]]:
    async with open_app(server__web="127.0.0.1:0") as app:
        assert app.web is not None
        yield app, app.web.port


@pytest.fixture
def samples() -> list[Sample]:
    return [Sample("x", (), 1)]


@pytest.fixture
async def bare(samples: list[Sample]) -> AsyncIterator[Web]:
    web = Web(Board(), lambda: samples)
    await web.open("127.0.0.1", 0)
    yield web
    await web.close()


# What is answered


async def test_probes_are_answered(served: tuple[App, int]) -> None:
    app, port = served
    assert (await ask(port, "/healthz"))[::2] == (200, "ok\n")
    assert (await ask(port, "/readyz"))[::2] == (200, "ready\n")
    app.board.serve(serving=False)
    assert (await ask(port, "/readyz"))[0] == 503
    app.board.drain()
    assert (await ask(port, "/readyz"))[::2] == (503, "draining\n")
    # A server that drains is alive.
    assert (await ask(port, "/healthz?verbose"))[0] == 200
    assert (await ask(port, "/metrics"))[0] == 200


async def test_a_scrape_is_what_the_server_did(served: tuple[App, int]) -> None:
    app, port = served
    async with Client(f"127.0.0.1:{app.port}") as client:
        for name in ("a", "b"):
            await client.delegate("work", task_id=name, required_capabilities=["none"])
    _, headers, text = await ask(port, "/metrics")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in parse_plain(text)}
    found = {(s.name, *sorted(s.labels.items())): s.value for family in families.values() for s in family.samples}
    method = ("method", "/agenthive.v1.OrchestratorService/DelegateTask")
    assert found["agenthive_rpc_calls_total", ("code", "OK"), method] == 2
    assert found["agenthive_rpc_duration_seconds_count", method] == 2
    assert found["agenthive_tasks", ("state", "QUEUED")] == found["agenthive_tasks_queued",] == 2
    assert found["agenthive_events_total", ("type", "TASK_DELEGATED")] == 2
    assert found["agenthive_event_log_head",] == app.log.head
    assert found["agenthive_ready",] == 1
    assert found["process_resident_memory_bytes",] > 0
    assert families["agenthive_rpc_duration_seconds"].type == "histogram"


async def test_everything_the_server_measures_itself_is_explained(served: tuple[App, int]) -> None:
    app, port = served
    _, _, text = await ask(port, "/metrics")
    names = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert names <= CATALOGUE.keys()
    assert names > {"agenthive_info", "agenthive_commit_duration_seconds", "process_cpu_seconds_total"}
    assert {sample.name for sample in app.metrics.samples()} > {"agenthive_event_log_head"}


async def test_openmetrics_is_spoken_to_those_who_ask(served: tuple[App, int]) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    _, headers, text = await ask(served[1], "/metrics", headers={"Accept": accept})
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert {family.name for family in parse_open(text)} > {"agenthive_rpc_in_flight", "process_cpu_seconds"}  # type: ignore[no-untyped-call]  # ships half typed


async def test_metrics_of_plugins_come_along(samples: list[Sample], bare: Web) -> None:
    samples.append(Sample("agenthive_my_plugin_total", (("what", 'a "quoted" \\ thing\n'),), 3))
    _, _, text = await ask(bare.port, "/metrics")
    found = {s.name: (s.labels, s.value) for family in parse_plain(text) for s in family.samples}
    assert found["agenthive_my_plugin_total"] == ({"what": 'a "quoted" \\ thing\n'}, 3)


async def test_head_has_no_body_and_other_paths_are_named(bare: Web) -> None:
    status, headers, text = await ask(bare.port, "/metrics", "HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 0
    status, headers, text = await ask(bare.port, "/")
    assert (status, text) == (404, "there are /healthz, /readyz, /metrics\n")
    assert headers["Connection"] == "close"
    assert headers["Cache-Control"] == "no-store"


async def test_a_source_that_fails_is_an_answer(bare: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Sample]:
        yield Sample("x", (), 1)
        raise ZeroDivisionError

    monkeypatch.setattr(bare, "_samples", broken)
    assert (await ask(bare.port, "/metrics"))[0] == 503
    assert (await ask(bare.port, "/healthz"))[0] == 200


# Bad requests


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"DELETE / HTTP/1.1\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
        (b"\xff\xfe /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET " + b"/" * 5_000 + b" HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 1_000 + b"\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 2_000 + b"\r\n", 431),
        (b"G" * 100_000, 431),
    ],
)
async def test_garbage_is_refused_with_a_status(bare: Web, request_: bytes, status: int) -> None:
    answer = await say(bare.port, request_)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (await ask(bare.port, "/healthz"))[0] == 200


async def test_a_request_that_is_cut_off_is_no_trouble(bare: Web) -> None:
    for piece in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", bare.port)
        writer.write(piece)
        writer.write_eof()
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ") == bool(piece)
        writer.close()
    assert (await ask(bare.port, "/healthz"))[0] == 200


async def test_a_request_in_pieces_is_answered(bare: Web) -> None:
    assert (await say(bare.port, b"GET /he", b"althz HTTP/1.1\r", b"\nA: b\r\n\r", b"\n")).startswith(b"HTTP/1.1 200 ")


# Slow ones


async def test_a_request_that_does_not_come_is_not_waited_for(bare: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.05)
    assert (await say(bare.port, b"GET /healthz HTTP/1.1\r\nX: 1\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_an_answer_that_is_not_taken_is_not_waited_for(
    bare: Web, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)
    samples += [Sample("x", (("n", f"{n:0500}"),), n) for n in range(19_000)]
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.to_thread(lazy.connect, ("127.0.0.1", bare.port))
    lazy.send(b"GET /metrics HTTP/1.1\r\n\r\n")
    await eventually(lambda: bare._serving)
    (task,) = bare._serving
    await asyncio.wait([task], timeout=20)
    assert not bare._serving
    lazy.close()


async def test_too_many_at_once_are_sent_away_and_the_rest_is_answered(
    bare: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 3)
    held = [await asyncio.open_connection("127.0.0.1", bare.port) for _ in range(3)]
    await eventually(lambda: len(bare._serving) == 3)
    assert (await say(bare.port, b"")).startswith(b"HTTP/1.1 503 ")
    held[0][1].close()
    await eventually(lambda: len(bare._serving) == 2)
    assert (await ask(bare.port, "/healthz"))[0] == 200
    for _, writer in held:
        writer.close()


async def test_closing_ends_what_is_open(samples: list[Sample]) -> None:
    web = Web(Board(), lambda: samples)
    await web.open("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    await eventually(lambda: web._serving)
    await web.close()
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(OSError, match="refused"):
        await ask(web.port, "/healthz")


# Where it listens


@pytest.mark.parametrize("address", ["", "off ", "127.0.0.1", ":80", "127.0.0.1:http", "127.0.0.1:99999", "0:-1"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(CannotServe, match="expected HOST:PORT, or off"):
        require_private(address, insecure=True)


def test_others_reach_it_only_when_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for address in ("0.0.0.0:9090", "[::]:9090", "hive.example:9090", "192.0.2.1:9090"):
        with pytest.raises(CannotServe, match="reachable from other machines"):
            require_private(address, insecure=False)
    assert require_private("[::1]:9090", insecure=False) == ("::1", 9090)
    assert require_private("localhost:9090", insecure=False) == ("localhost", 9090)
    assert not caplog.records
    assert require_private("0.0.0.0:9090", insecure=True) == ("0.0.0.0", 9090)
    assert "without TLS or authentication" in caplog.text


async def test_a_port_in_use_and_a_public_address_stop_the_start(bare: Web) -> None:
    for address, told in ((f"127.0.0.1:{bare.port}", "in use"), ("0.0.0.0:0", "reachable from other machines")):
        flags = {"server.store": "memory:", "server.listen": "127.0.0.1:0", "server.web": address}
        app = App(load(flags=flags, environ={}), registry=Registry(()))
        with pytest.raises(StartError, match=told):
            await app.open()


async def test_it_is_off_unless_asked_for() -> None:
    async with open_served() as (app, _):
        assert app.web is None


def test_the_command_line_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "--web HOST:PORT|off" in capsys.readouterr().out
