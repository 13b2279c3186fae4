"""Real handshakes with certificates of our own authority: who gets in, who does not, and what a swap of files does."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive import Client
from agenthive.access import AccessOptions
from agenthive.errors import DeadlineExceeded
from agenthive.transport_errors import why_unreachable
from agenthive.v1.orchestrator_service_pb2 import HealthStatus
from agenthive_server.app import App
from agenthive_server.authority import Authority, Pair
from agenthive_server.kernel.clock import ManualClock, SystemClock, settle
from agenthive_server.kernel.health import Status
from agenthive_server.lifecycle import StartError
from agenthive_server.rpc.tls import EVERY, BadCertificate, ServerTls, TlsFiles, readable_by_others
from agenthive_server.rpc.x509 import Certificate, read_certificates
from agenthive_server.settings import SettingsError
from agenthive_server.testing.harness import free_port, open_app
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

DAY = 86_400.0
WAIT = 2.0
"""Seconds a call that cannot be made goes on trying."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.new(tmp_path / "tls", SystemClock())


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """An authority nobody here trusts."""
    return Authority.new(tmp_path / "other", SystemClock())


def ca(authority: Authority) -> Path:
    return authority.folder / "ca.pem"


def shown(pair: Pair) -> AccessOptions:
    return {"cert": pair.certificate, "key": pair.key}


def serving(pair: Pair, **more: object) -> dict[str, Any]:
    """Settings of a server with this certificate."""
    files = {"server__tls__certificate": str(pair.certificate), "server__tls__key": str(pair.key)}
    return {**files, **{f"server__tls__{name}": str(value) for name, value in more.items()}}


async def look(port: int, context: ssl.SSLContext | None = None) -> Certificate:
    """Shake hands as a stranger would, and return what the server shows."""
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return read_certificates(ssl.DER_cert_to_PEM_cert(der).encode())[0]


async def refused(port: int, **options: Any) -> str:
    """Connect as a client that must not get in; returns why it did not."""
    async with Client(f"127.0.0.1:{port}", **options) as client:
        state = client._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            assert state is not grpc.ChannelConnectivity.READY
            await client._channel.wait_for_state_change(state)
            state = client._channel.get_state(try_to_connect=True)
        return await why_unreachable(client._channel, tls=client._access.tls)


async def accepted(port: int, **options: Any) -> None:
    async with Client(f"127.0.0.1:{port}", timeout=20, **options) as client:
        assert (await client.health()).status == HealthStatus.HEALTH_STATUS_OK


def swap(old: Pair, new: Pair) -> None:
    """Put other files in the place of a pair, as a tool that renews certificates does."""
    for one, other in ((new.key, old.key), (new.certificate, old.certificate)):
        beside = other.with_suffix(".swap")
        beside.write_bytes(one.read_bytes())
        beside.chmod(0o600)
        beside.replace(other)


# Who gets in ------------------------------------------------------------------------------------------------------


async def test_a_client_that_trusts_the_authority_gets_in_and_no_other(authority: Authority, other: Authority) -> None:
    async with open_app(**serving(authority.issue_server([]))) as app:
        await accepted(app.port, ca=ca(authority))
        assert "not of an authority trusted here" in await refused(app.port, ca=ca(other))
        assert "not of an authority trusted here" in await refused(app.port, tls=True)
        assert "it may speak TLS" in await refused(app.port)
        async with Client(f"127.0.0.1:{app.port}", ca=ca(other), timeout=WAIT) as client:
            with pytest.raises(
                DeadlineExceeded, match=r"no connection to 127\.0\.0\.1:.* not of an authority trusted here"
            ):
                await client.health()


async def test_a_server_is_known_by_its_name(authority: Authority) -> None:
    pair = authority.issue_server(["hive.example"])
    async with open_app(**serving(pair)) as app:
        assert "for another name" in await refused(app.port, ca=ca(authority), server_name="other.example")
        await accepted(app.port, ca=ca(authority), server_name="hive.example")
        # Whoever has the certificate itself needs no authority: the local runner trusts it so.
        await accepted(app.port, ca=pair.certificate, server_name="hive.example")


async def test_where_a_certificate_is_required_only_clients_of_the_authority_get_in(
    authority: Authority, other: Authority
) -> None:
    server, ana, stranger = authority.issue_server([]), authority.issue_client("ana"), other.issue_client("ana")
    async with open_app(**serving(server, client_ca=ca(authority))) as app:
        await accepted(app.port, ca=ca(authority), **shown(ana))
        assert "client certificate" in await refused(app.port, ca=ca(authority))
        assert "client certificate" in await refused(app.port, ca=ca(authority), **shown(stranger))
        # A certificate of the same authority, but made for servers.
        assert "client certificate" in await refused(app.port, ca=ca(authority), **shown(server))


async def test_what_has_ended_convinces_nobody(authority: Authority, tmp_path: Path) -> None:
    past = Authority.open(authority.folder, ManualClock(SystemClock().now() - 3 * DAY))
    ended_server, ended_client = past.issue_server([], days=2), past.issue_client("late", days=2)
    async with open_app(**serving(ended_server)) as app:
        assert "has expired" in await refused(app.port, ca=ca(authority))
        assert "has expired" in dict(readings(app))["tls"]
    server = authority.issue_server([], replace=True)
    async with open_app(**serving(server, client_ca=ca(authority))) as app:
        assert "client certificate" in await refused(app.port, ca=ca(authority), **shown(ended_client))


async def test_optional_means_a_port_of_their_own_for_clients_with_certificates(
    authority: Authority,
) -> None:
    server, ana, port = authority.issue_server([]), authority.issue_client("ana"), free_port()
    settings = serving(
        server, client_ca=ca(authority), require_client_certificate="optional", mutual_listen=f"127.0.0.1:{port}"
    )
    async with open_app(**settings) as app:
        await accepted(app.port, ca=ca(authority))
        assert "client certificate" in await refused(port, ca=ca(authority))
        await accepted(port, ca=ca(authority), **shown(ana))


async def test_a_method_learns_from_the_handshake_who_calls(authority: Authority) -> None:
    server, ana = authority.issue_server([]), authority.issue_client("ana")
    seen: list[Any] = []

    class Witness(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            async def answer(request: bytes, context: Any) -> bytes:
                seen.append(context.auth_context())
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    tls = ServerTls(TlsFiles(certificate=server.certificate, key=server.key, client_ca=ca(authority)), SystemClock())
    listener = grpc.aio.server()
    listener.add_generic_rpc_handlers((Witness(),))
    port = listener.add_secure_port("127.0.0.1:0", tls.credentials(require_client_certificate=True))
    await listener.start()
    async with Client(f"127.0.0.1:{port}", ca=ca(authority), cert=ana.certificate, key=ana.key) as client:
        call: Any = client._channel.unary_unary("/any/Method")
        await call(b"")
    await listener.stop(0)
    assert [context["x509_common_name"] for context in seen] == [[b"ana"]]


# Renewing while it serves -----------------------------------------------------------------------------------------


def readings(app: App) -> list[tuple[str, str]]:
    return [(each.name, each.reason) for each in app.vitals.report().components]


async def test_a_new_certificate_is_shown_to_new_handshakes_while_open_streams_go_on(
    authority: Authority, other: Authority
) -> None:
    server = authority.issue_server([])
    async with open_app(**serving(server)) as app, Client(f"127.0.0.1:{app.port}", ca=ca(authority)) as client:
        assert app.tls is not None
        first = await look(app.port)
        async with client.events() as events:
            batches = events.batches()
            await anext(batches)  # the opening cursor: the stream is there
            swap(server, other.issue_server([]))
            app.tls.check()
            second = await look(app.port)
            assert second.serial != first.serial
            await accepted(app.port, ca=ca(other))
            assert "not of an authority trusted here" in await refused(app.port, ca=ca(authority))
            # The old connection lives: a call on it, and the event it makes on the stream.
            await client.delegate("work", task_id="t-1")
            arrived, _ = await anext(batches)
            assert arrived[0].task_id == "t-1"
        assert dict(readings(app))["tls"].startswith("until ")
        (samples,) = [s.value for s in app.tls.metrics() if s.name == "agenthive_tls_renewals_total"]
        assert samples == 1


async def test_files_that_cannot_be_used_change_nothing_and_show_in_health_until_they_can(
    authority: Authority, other: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    server, new = authority.issue_server([]), other.issue_server([])
    async with open_app(**serving(server)) as app, Client(f"127.0.0.1:{app.port}", ca=ca(authority)) as client:
        assert app.tls is not None
        first = await look(app.port)
        # The certificate comes before its key: it is a while until they fit.
        server.certificate.write_bytes(new.certificate.read_bytes())
        app.tls.check()
        app.tls.check()
        assert (await look(app.port)).serial == first.serial
        await accepted_degraded(client, "is not that of the certificate")
        assert [r.levelname for r in caplog.records if "cannot be used" in r.message] == ["ERROR"]
        server.certificate.write_text("not a certificate")
        app.tls.check()
        await accepted_degraded(client, "no certificate in PEM form")
        server.certificate.unlink()
        app.tls.check()
        await accepted_degraded(client, "No such file")
        assert (await look(app.port)).serial == first.serial
        swap(server, new)
        app.tls.check()
        assert (await look(app.port)).serial == read_certificates(new.certificate.read_bytes())[0].serial
        assert (await client.health()).status == HealthStatus.HEALTH_STATUS_OK


async def accepted_degraded(client: Client, why: str) -> None:
    answer = await client.health()
    assert answer.status == HealthStatus.HEALTH_STATUS_DEGRADED
    (component,) = [each for each in answer.components if each.name == "tls"]
    assert component.status == HealthStatus.HEALTH_STATUS_DEGRADED
    assert why in component.reason


async def test_another_authority_of_clients_counts_from_the_next_handshake_on(
    authority: Authority, other: Authority, tmp_path: Path
) -> None:
    server, stranger = authority.issue_server([]), other.issue_client("bob")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(ca(authority).read_bytes())
    async with open_app(**serving(server, client_ca=trusted)) as app:
        assert app.tls is not None
        assert "client certificate" in await refused(app.port, ca=ca(authority), **shown(stranger))
        trusted.write_bytes(ca(authority).read_bytes() + ca(other).read_bytes())
        app.tls.check()
        await accepted(app.port, ca=ca(authority), **shown(stranger))


async def test_two_hundred_swaps_under_load_fail_no_call(authority: Authority) -> None:
    server = authority.issue_server([])
    async with open_app(**serving(server)) as app:
        assert app.tls is not None
        calls = 0
        done = asyncio.Event()

        async def call() -> None:
            nonlocal calls
            while not done.is_set():
                await accepted(app.port, ca=ca(authority))
                calls += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(call())
            for number in range(200):
                authority.renew("server", new_key=number % 2 == 0)
                app.tls.check()
                await look(app.port)
            done.set()
        assert app.tls.renewals == 200
        assert calls > 20


# The files, without a server --------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def young(tmp_path: Path, clock: ManualClock) -> Authority:
    """An authority whose time is moved by hand."""
    return Authority.new(tmp_path / "young", clock)


def tls_of(pair: Pair, clock: ManualClock, client_ca: Path | None = None) -> ServerTls:
    return ServerTls(TlsFiles(certificate=pair.certificate, key=pair.key, client_ca=client_ca), clock)


def reading(tls: ServerTls) -> tuple[Status, str]:
    ((name, found),) = tls.probe()
    assert name == "tls"
    return found.status, found.reason


async def test_the_files_are_looked_at_every_few_seconds(young: Authority, clock: ManualClock) -> None:
    pair = young.issue_server([])
    tls = tls_of(pair, clock)
    first = tls.identity.certificates[0].serial
    running = asyncio.create_task(tls.run())
    await settle()
    young.renew("server")
    assert tls.identity.certificates[0].serial == first
    await clock.advance(EVERY)
    await settle()
    assert tls.identity.certificates[0].serial != first
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_file_that_is_only_touched_is_no_renewal(young: Authority, clock: ManualClock) -> None:
    pair = young.issue_server([])
    tls = tls_of(pair, clock)
    pair.certificate.write_bytes(pair.certificate.read_bytes())
    tls.check()
    assert tls.renewals == 0


async def test_an_end_that_comes_near_shows_and_is_logged_once(
    young: Authority, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    tls = tls_of(young.issue_server([], days=365), clock)
    assert reading(tls)[0] is Status.OK
    await clock.advance(352 * DAY)
    for _ in range(3):
        tls.check()
    status, why = reading(tls)
    assert status is Status.DEGRADED
    assert "server.pem expires on" in why
    await clock.advance(14 * DAY)
    tls.check()
    assert "server.pem has expired on" in reading(tls)[1]
    assert [each.levelname for each in caplog.records] == ["WARNING"] * 2
    young.renew("server")
    tls.check()
    assert reading(tls)[0] is Status.OK


async def test_a_short_life_is_not_near_its_end_from_the_start(young: Authority, clock: ManualClock) -> None:
    tls = tls_of(young.issue_server([], days=1), clock)
    assert reading(tls)[0] is Status.OK
    await clock.advance(0.9 * DAY)
    assert reading(tls)[0] is Status.DEGRADED


async def test_the_end_of_the_authority_of_clients_shows_too(
    young: Authority, tmp_path: Path, clock: ManualClock
) -> None:
    clients = Authority.new(tmp_path / "clients", clock, days=20)
    tls = tls_of(young.issue_server([]), clock, ca(clients))
    assert reading(tls)[0] is Status.OK
    await clock.advance(18 * DAY)
    assert "clients/ca.pem expires on" in reading(tls)[1]


async def test_a_new_certificate_that_has_ended_or_not_begun_does_not_replace_a_good_one(
    young: Authority, clock: ManualClock
) -> None:
    pair = young.issue_server([])
    tls = tls_of(pair, clock)
    serial = tls.identity.certificates[0].serial
    for days, told in ((-10, "has expired"), (10, "is not valid before")):
        at = ManualClock(clock.now() + days * DAY)
        Authority.open(young.folder, at).issue_server([], days=5, replace=True)
        tls.check()
        assert told in reading(tls)[1]
        assert tls.identity.certificates[0].serial == serial
    # Its time comes without another change of the file.
    await clock.advance(10 * DAY)
    tls.check()
    assert tls.identity.certificates[0].serial != serial


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda pair: pair.certificate.unlink(), r"server\.pem: No such file"),
        (lambda pair: pair.key.unlink(), r"server-key\.pem: No such file"),
        (lambda pair: pair.certificate.write_text("junk"), r"server\.pem: no certificate in PEM form"),
        (lambda pair: pair.key.write_text("junk"), r"server-key\.pem: no private key in PEM form"),
        (lambda pair: pair.key.write_bytes(pair.certificate.read_bytes()), r"server-key\.pem: no private key"),
        (lambda pair: pair.certificate.write_bytes(b"x" * 2**21), r"server\.pem: too large"),
        (lambda pair: (pair.key.unlink(), pair.key.mkdir()), r"server-key\.pem is not a file"),
    ],
)
def test_files_that_cannot_be_used_are_a_sentence(
    young: Authority, clock: ManualClock, spoil: Callable[[Pair], object], told: str
) -> None:
    pair = young.issue_server([])
    spoil(pair)
    with pytest.raises(BadCertificate, match=told):
        tls_of(pair, clock)


def test_a_key_that_is_not_that_of_the_certificate_is_a_sentence(young: Authority, clock: ManualClock) -> None:
    server, client = young.issue_server([]), young.issue_client("ana")
    with pytest.raises(BadCertificate, match=r"client-ana-key\.pem is not that of the certificate in .*server\.pem"):
        tls_of(Pair(server.certificate, client.key), clock)


def test_an_encrypted_key_is_a_sentence_and_asks_nobody(young: Authority, clock: ManualClock) -> None:
    pair = young.issue_server([])
    key = load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(BadCertificate, match="the key is encrypted"):
        tls_of(pair, clock)


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())])
def test_a_kind_of_key_no_client_accepts_is_a_sentence(tmp_path: Path, clock: ManualClock, key: Any) -> None:
    name = x509.Name([])
    begin, end = (datetime.fromtimestamp(int(clock.now() + s), UTC) for s in (-60, DAY))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, end)
    made = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())
    pair = Pair(tmp_path / "c.pem", tmp_path / "k.pem")
    pair.certificate.write_bytes(made.public_bytes(Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(BadCertificate, match="which clients refuse"):
        tls_of(pair, clock)


async def test_a_server_does_not_start_with_files_it_cannot_use(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue_server([])
    for settings in (
        serving(Pair(tmp_path / "none.pem", pair.key)),
        serving(pair, client_ca=tmp_path / "none.pem"),
        serving(Pair(pair.certificate, authority.issue_client("ana").key)),
    ):
        with pytest.raises(StartError, match=r"No such file|is not that of the certificate"):
            async with open_app(**settings):
                pass


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"certificate": "c"}, "belong together"),
        ({"client_ca": "c"}, "without `certificate` and `key` there is no TLS"),
        ({"certificate": "c", "key": "k", "require_client_certificate": "required"}, "needs the authority"),
        ({"certificate": "c", "key": "k", "client_ca": "a", "require_client_certificate": "none"}, "of no use"),
        (
            {"certificate": "c", "key": "k", "client_ca": "a", "require_client_certificate": "optional"},
            "belong together",
        ),
        ({"certificate": "c", "key": "k", "client_ca": "a", "mutual_listen": "127.0.0.1:1"}, "belong together"),
    ],
)
async def test_settings_that_do_not_fit_together_are_a_sentence(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        async with open_app(**{f"server__tls__{name}": value for name, value in settings.items()}):
            pass


def test_a_key_others_can_read_is_warned_of(
    young: Authority, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    pair = young.issue_server([])
    tls_of(pair, clock)
    assert not caplog.records
    for mode, others in ((0o640, True), (0o604, True), (0o600, False), (0o400, False)):
        pair.key.chmod(mode)
        assert readable_by_others(pair.key) is others
    pair.key.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        tls_of(pair, clock)
    assert "can be read by other users" in caplog.text


def test_what_is_served_is_published_for_clients_of_this_machine(
    young: Authority, tmp_path: Path, clock: ManualClock
) -> None:
    pair = young.issue_server(["hive.example"])
    tls, trusted = tls_of(pair, clock), tmp_path / "data" / "server.pem"
    tls.publish(trusted)
    assert trusted.read_bytes() == pair.certificate.read_bytes()
    young.renew("server")
    tls.check()
    assert trusted.read_bytes() == pair.certificate.read_bytes()
    good = trusted.read_bytes()
    pair.certificate.write_text("junk")
    tls.check()
    assert trusted.read_bytes() == good
    assert tls.name_for_local_clients() == "localhost"
