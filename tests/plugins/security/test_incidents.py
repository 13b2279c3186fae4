"""Threats caused on purpose on a served server: found, told, answered for a while, and lifted."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from agenthive.v1 import event_pb2, orchestrator_service_pb2
from agenthive.v1 import security_service_pb2 as pb
from agenthive.v1 import worker_service_pb2 as worker
from agenthive_plugins.security.threats import Signal, ThreatKind
from agenthive_plugins.security.tokens import TokenKind, mint
from agenthive_server.testing.raw_worker import hello_of
from agenthive_server.testing.waiting import eventually

LOOK = "OrchestratorService/ListAgents"
METHODS = ("SpawnAgent", "ShutdownAgent", "CancelTask", "DelegateTask", "RetryTask")


async def probe(secured: Any, token: str, count: int = 5) -> list[str]:
    return [(await secured.refused(f"OrchestratorService/{name}", token=token)).code for name in METHODS[:count]]


async def found(secured: Any, kind: int) -> pb.Threat:
    async def there() -> Any:
        return [threat for threat in await secured.threats() if threat.kind == kind]

    threats: list[pb.Threat] = await eventually(there, what="the threat is listed")
    assert len(threats) == 1
    return threats[0]


async def test_who_probes_for_privileges_is_refused_for_a_while(secured: Any) -> None:
    token = await secured.issue("eve", pb.ROLE_VIEWER)
    await secured.call(LOOK, token=token)
    assert await probe(secured, token) == ["PERMISSION_DENIED"] * 5
    failed = await secured.refused(LOOK, token=token)
    assert (failed.code, failed.metadata["why"]) == ("PERMISSION_DENIED", "blocked")
    assert failed.retry_after is not None
    assert 890 < failed.retry_after <= 900
    threat = await found(secured, pb.THREAT_KIND_PRIVILEGE_PROBING)
    assert (threat.principal, threat.peer, threat.severity) == ("eve", "", pb.THREAT_SEVERITY_HIGH)
    assert [name.rpartition("/")[2] for name in threat.evidence] == list(METHODS)
    # Others go on, from the same address too.
    await secured.call(LOOK)
    # It is in the trail and in the log of events.
    (record,) = await secured.trail(categories=[pb.AUDIT_CATEGORY_SECURITY_INCIDENT])
    assert (record.method, record.principal) == ("threat.detected", "eve")
    request = orchestrator_service_pb2.StreamEventsRequest(
        no_follow=True, start=orchestrator_service_pb2.STREAM_START_EARLIEST
    )
    request.filter.types.append(event_pb2.EVENT_TYPE_PLUGIN_REPORTED)
    request.filter.all_namespaces = True
    answers = await secured.call("OrchestratorService/StreamEvents", request)
    (event,) = [event for answer in answers for event in answer.events]
    assert event.plugin_reported.kind == "threat_detected"
    assert event.plugin_reported.subject == "eve"
    # The time is over.
    secured.clock.ahead += 901.0
    await secured.call(LOOK, token=token)
    assert (await found(secured, pb.THREAT_KIND_PRIVILEGE_PROBING)).state == pb.THREAT_STATE_OPEN


async def test_an_administrator_lifts_a_block_by_resolving_the_threat(secured: Any) -> None:
    token = await secured.issue("eve", pb.ROLE_VIEWER)
    await probe(secured, token)
    threat = await found(secured, pb.THREAT_KIND_PRIVILEGE_PROBING)
    request = pb.ResolveThreatRequest(threat_id=threat.threat_id, comment="a script gone wrong", request_id="1")
    for _ in range(2):
        resolved = (await secured.call("SecurityService/ResolveThreat", request)).threat
        assert (resolved.state, resolved.resolve_principal) == (pb.THREAT_STATE_RESOLVED, "admin")
        assert resolved.comment == "a script gone wrong"
        assert not resolved.HasField("block_expire_time")
    await secured.call(LOOK, token=token)
    listed = await secured.call("SecurityService/ListThreats", pb.ListThreatsRequest(states=[pb.THREAT_STATE_OPEN]))
    assert not listed.threats
    # The same again is another threat.
    await probe(secured, token)
    assert (await secured.refused(LOOK, token=token)).metadata["why"] == "blocked"
    await eventually(lambda: two_threats(secured), what="another threat")


async def two_threats(secured: Any) -> bool:
    return len(await secured.threats()) == 2


async def test_a_block_survives_a_restart(open_secured: Any, tmp_path: Any) -> None:
    async with open_secured() as secured:
        token = await secured.issue("eve", pb.ROLE_VIEWER)
        await probe(secured, token)
        await found(secured, pb.THREAT_KIND_PRIVILEGE_PROBING)
    async with open_secured(tmp_path) as secured:
        assert (await secured.refused(LOOK, token=token)).metadata["why"] == "blocked"
        secured.clock.ahead += 901.0
        await secured.call(LOOK, token=token)


async def test_an_address_that_guesses_is_blocked_and_who_is_known_there_is_not(secured: Any) -> None:
    known = await secured.issue("ann", pb.ROLE_VIEWER)
    fresh_before = await secured.issue("bob", pb.ROLE_VIEWER)
    for _ in range(20):
        await secured.refused(LOOK, token=mint(TokenKind.BEARER))
    threat = await found(secured, pb.THREAT_KIND_FAILED_LOGINS)
    assert (threat.principal, threat.peer, threat.signal_count) == ("", "127.0.0.1", 20)
    failed = await secured.refused(LOOK, token=mint(TokenKind.BEARER))
    assert (failed.code, failed.metadata["why"]) == ("PERMISSION_DENIED", "blocked")
    assert (await secured.refused(LOOK, token=None)).metadata["why"] == "blocked"
    # Nobody locks the others out by guessing from where they are; least of all the administrator.
    await secured.call(LOOK)
    await secured.call(LOOK, token=known)
    await secured.call(LOOK, token=fresh_before)
    # Workers on this machine still come in.
    said = hello_of("a-1")
    said.join_token = await secured.join_token(agent_id="a-1")
    assert isinstance(await secured.join(said), worker.Welcome)
    secured.clock.ahead += 901.0
    assert (await secured.refused(LOOK, token=None)).metadata["why"] == "missing"


async def test_an_administrator_on_this_machine_is_never_shut_out(secured: Any) -> None:
    viewer_admin = await secured.issue("boss", pb.ROLE_ADMIN, namespaces=("a",))
    # One that is administrator of a part only, and probes, is not spared.
    for name in METHODS:
        await secured.refused(f"OrchestratorService/{name}", token=viewer_admin, namespace="b")
    assert (await secured.refused(LOOK, token=viewer_admin, namespace="a")).metadata["why"] == "blocked"
    gate = secured.app.plugins._rack.standings["security"].instance.plugin.interceptors[0]
    gate._blocks.add("admin", "", secured.clock.now() + 1_000.0)
    gate._blocks.add("", "127.0.0.1", secured.clock.now() + 1_000.0)
    await secured.call(LOOK)


async def test_who_goes_on_beyond_his_rate_is_found_and_blocked(open_secured: Any) -> None:
    async with open_secured(limits__per_method=5, limits__read_cost=1, threats__excessive_rate__count=20) as secured:
        token = await secured.issue("busy", pb.ROLE_VIEWER)
        codes = [(await attempt(secured, token)) for _ in range(30)]
        assert codes[:5] == ["OK"] * 5
        assert set(codes[5:25]) == {"RESOURCE_EXHAUSTED"}
        assert set(codes[26:]) == {"PERMISSION_DENIED"}
        threat = await found(secured, pb.THREAT_KIND_EXCESSIVE_RATE)
        assert (threat.principal, threat.severity) == ("busy", pb.THREAT_SEVERITY_MEDIUM)


async def attempt(secured: Any, token: str) -> str:
    try:
        await secured.call(LOOK, token=token)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_a_join_token_shown_again_and_again_is_found(secured: Any) -> None:
    join_token = await secured.join_token(agent_id="a-1")
    said = hello_of("a-1")
    said.join_token = join_token
    await secured.join(said)
    for _ in range(3):
        assert (await secured.join(said)).metadata["why"] == "used"
    threat = await found(secured, pb.THREAT_KIND_REPLAY)
    assert (threat.peer, threat.severity) == ("127.0.0.1", pb.THREAT_SEVERITY_HIGH)


async def test_a_revoked_token_that_is_still_used_is_found(secured: Any) -> None:
    made = await secured.call(
        "SecurityService/IssueToken", pb.IssueTokenRequest(principal="ann", roles=[pb.ROLE_VIEWER])
    )
    await secured.call("SecurityService/RevokeToken", pb.RevokeTokenRequest(token_id=made.token.token_id))
    for _ in range(5):
        await secured.refused(LOOK, token=made.secret)
    threat = await found(secured, pb.THREAT_KIND_REVOKED_TOKEN)
    assert threat.severity == pb.THREAT_SEVERITY_CRITICAL
    assert list(threat.evidence) == [made.token.token_id]


async def test_threats_are_filtered_and_what_is_none_is_refused(secured: Any) -> None:
    incidents = secured.app.plugins._rack.standings["security"].instance.plugin.tasks[2].run.__self__
    for n in range(5):
        # Signals of one token from many addresses, which one machine cannot make.
        for host in range(10):
            signal = Signal(kind=ThreatKind.SHARED_TOKEN, principal=f"p{n}", token_id="t", detail=f"10.0.0.{host}")
            incidents.notice(signal)
    await eventually(lambda: counted(secured, 5), what="five threats")
    high = pb.ListThreatsRequest(minimum_severity=pb.THREAT_SEVERITY_HIGH)
    assert not (await secured.call("SecurityService/ListThreats", high)).threats
    # It is worth knowing, and blocks nobody: behind many addresses there may be many good workers.
    assert not any(threat.HasField("block_expire_time") for threat in await secured.threats())
    wrong: Any = 9
    for request in (pb.ListThreatsRequest(states=[wrong]), pb.ListThreatsRequest(minimum_severity=wrong)):
        assert (await secured.refused("SecurityService/ListThreats", request)).code == "INVALID_ARGUMENT"
    for threat_id in ("", "nothing", "x" * 500):
        failed = await secured.refused("SecurityService/ResolveThreat", pb.ResolveThreatRequest(threat_id=threat_id))
        assert (failed.code, failed.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")


async def counted(secured: Any, count: int) -> bool:
    return len(await secured.threats()) == count


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_threats_come_in_pages(secured: Any, size: int) -> None:
    incidents = secured.app.plugins._rack.standings["security"].instance.plugin.tasks[2].run.__self__
    for n in range(5):
        for host in range(10):
            incidents.notice(
                Signal(kind=ThreatKind.SHARED_TOKEN, principal=f"p{n}", token_id="t", detail=f"10.0.0.{host}")
            )
    await eventually(lambda: counted(secured, 5), what="five threats")
    names, request = [], pb.ListThreatsRequest(page_size=size)
    while True:
        page = await secured.call("SecurityService/ListThreats", request)
        names += [threat.principal for threat in page.threats]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sorted(names) == [f"p{n}" for n in range(5)]
