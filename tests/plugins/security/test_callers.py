"""Who is let in by what he shows: on a served server, refused as specified, and all of it in the trail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agenthive.v1 import orchestrator_service_pb2
from agenthive.v1 import security_service_pb2 as pb
from agenthive_plugins.security.tokens import TokenKind, mint
from agenthive_server.testing.waiting import eventually

LOOK = "OrchestratorService/ListAgents"
DENIED = [pb.AUDIT_OUTCOME_DENIED]


async def refused_for(secured: Any, why: str) -> list[Any]:
    return [record for record in await secured.trail(outcomes=DENIED) if record.reason == why]


async def test_the_operator_gets_in_by_a_private_file_and_only_the_first_time_writes_it(
    open_secured: Any, tmp_path: Any
) -> None:
    path = tmp_path / "plugins/security/admin.token"
    async with open_secured() as secured:
        assert path.stat().st_mode & 0o777 == 0o600
        first = secured.admin
        tokens = (await secured.call("SecurityService/ListTokens")).tokens
        assert [(token.principal, list(token.roles)) for token in tokens] == [("admin", [pb.ROLE_ADMIN])]
    path.unlink()
    # Once is enough: who has deleted it does not find another one lying about.
    path.write_text("kept by the operator")
    async with open_secured() as secured:
        assert path.read_text() == "kept by the operator"
        await secured.call(LOOK, token=first)
    # An empty file asks for another.
    path.write_text("")
    async with open_secured() as secured:
        assert secured.admin != first
        await secured.call(LOOK)
        assert path.stat().st_mode & 0o777 == 0o600


async def test_without_a_credential_nothing_is_answered_but_probes(secured: Any) -> None:
    failed = await secured.refused(LOOK, token=None)
    assert (failed.code, failed.reason, failed.metadata["why"]) == ("UNAUTHENTICATED", "UNAUTHENTICATED", "missing")
    (record,) = await refused_for(secured, "missing")
    assert (record.method, record.peer, record.principal) == (f"/agenthive.v1.{LOOK}", "127.0.0.1", "")
    assert record.call_id


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (mint(TokenKind.BEARER), "unknown"),
        (mint(TokenKind.JOIN), "unknown"),
        ("ahv_" + "0" * 49, "unknown"),
        ("x", "unknown"),
        ("x" * 5_000, "unknown"),
        ("eyJhbGciOiJub25lIn0.e30.", "no_issuer"),
    ],
    ids=["bearer", "join", "zeros", "short", "long", "jwt"],
)
async def test_a_credential_that_is_none_is_refused(secured: Any, shown: str, why: str) -> None:
    failed = await secured.refused(LOOK, token=shown)
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", why)
    assert shown not in failed.text or len(shown) < 5
    assert len(await refused_for(secured, why)) == 1


async def test_another_kind_of_authorization_is_refused(secured: Any) -> None:
    call = secured.channel.unary_unary(f"/agenthive.v1.{LOOK}")
    for header in ("Basic YWRtaW46YWRtaW4=", "Bearer", "", secured.admin):
        with pytest.raises(Exception, match="expected `authorization: Bearer TOKEN`"):
            await call(b"", metadata=[("authorization", header)])
    # The scheme is not case-sensitive (RFC 7235).
    await call(b"", metadata=[("authorization", f"bearer {secured.admin}")])


async def test_a_token_is_issued_shown_once_and_listed_without_its_secret(secured: Any) -> None:
    request = pb.IssueTokenRequest(
        principal="ci", roles=[pb.ROLE_OPERATOR], namespaces=["a"], description="for the pipeline", request_id="1"
    )
    request.ttl.FromSeconds(3_600)
    made = await secured.call("SecurityService/IssueToken", request)
    assert made.secret.startswith("ahv_")
    assert made.token.expire_time.seconds - made.token.create_time.seconds == 3_600
    assert made.token.issuer == "admin"
    await secured.call(LOOK, token=made.secret, namespace="a")
    again = await secured.call("SecurityService/IssueToken", request)
    assert again.secret == ""
    assert again.token.token_id == made.token.token_id
    request.principal = "another"
    assert (await secured.refused("SecurityService/IssueToken", request)).reason == "REQUEST_ID_REUSED"
    listed = await secured.call("SecurityService/ListTokens", pb.ListTokensRequest(principal="ci"))
    assert [token.description for token in listed.tokens] == ["for the pipeline"]
    assert made.secret[5:] not in str(listed)


async def test_tokens_are_listed_in_pages_newest_first(secured: Any) -> None:
    for n in range(7):
        await secured.issue(f"p{n}")
    names: list[str] = []
    request = pb.ListTokensRequest(page_size=3)
    while True:
        page = await secured.call("SecurityService/ListTokens", request)
        names += [token.principal for token in page.tokens]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert names == ["p6", "p5", "p4", "p3", "p2", "p1", "p0", "admin"]
    request.page_token = "no token"
    assert (await secured.refused("SecurityService/ListTokens", request)).reason == "INVALID_PAGE_TOKEN"
    other = pb.ListTokensRequest(page_token=page.next_page_token or "AAAA", principal="p1")
    assert (await secured.refused("SecurityService/ListTokens", other)).reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"principal": ""}, "principal"),
        ({"principal": "two words"}, "principal"),
        ({"principal": "x" * 256}, "principal"),
        ({"principal": "jwt:alice"}, "principal"),
        ({"principal": "agent:default/a"}, "principal"),
        ({"principal": "runner:default/a"}, "principal"),
        ({"principal": "p", "roles": [99]}, "roles[0]"),
        ({"principal": "p", "roles": [0]}, "roles[0]"),
        ({"principal": "p", "namespaces": ["a b"]}, "namespaces[0]"),
        ({"principal": "p", "namespaces": ["n"] * 65}, "namespaces"),
        ({"principal": "p", "ttl": {"seconds": 59}}, "ttl"),
        ({"principal": "p", "ttl": {"seconds": 367 * 86_400}}, "ttl"),
        ({"principal": "p", "ttl": {"seconds": 100, "nanos": -1}}, "ttl"),
        ({"principal": "p", "description": "x" * 1_025}, "description"),
        ({"principal": "p", "request_id": "x" * 129}, "request_id"),
    ],
)
async def test_a_malformed_wish_for_a_token_names_its_field(secured: Any, fields: dict[str, Any], field: str) -> None:
    failed = await secured.refused("SecurityService/IssueToken", pb.IssueTokenRequest(**fields))
    assert failed.code == "INVALID_ARGUMENT"
    assert failed.text.startswith(f"{field}: ")


async def test_an_expired_token_is_refused(secured: Any) -> None:
    token = await secured.issue("ann", pb.ROLE_VIEWER, ttl={"seconds": 60})
    await secured.call(LOOK, token=token)
    secured.clock.ahead += 61.0
    failed = await secured.refused(LOOK, token=token)
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "expired")
    (record,) = await refused_for(secured, "expired")
    assert (record.principal, record.token_id) == ("ann", failed.metadata["token_id"])
    listed = await secured.call("SecurityService/ListTokens", pb.ListTokensRequest(states=[pb.TOKEN_STATE_EXPIRED]))
    assert [each.principal for each in listed.tokens] == ["ann"]


async def test_a_revoked_token_is_refused_by_the_next_call_and_after_a_restart(
    open_secured: Any, tmp_path: Any
) -> None:
    async with open_secured() as secured:
        made = await secured.call(
            "SecurityService/IssueToken", pb.IssueTokenRequest(principal="ann", roles=[pb.ROLE_VIEWER])
        )
        await secured.call(LOOK, token=made.secret)
        revoke = pb.RevokeTokenRequest(token_id=made.token.token_id, request_id="r")
        first = (await secured.call("SecurityService/RevokeToken", revoke)).token
        assert first.state == pb.TOKEN_STATE_REVOKED
        failed = await secured.refused(LOOK, token=made.secret)
        assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "revoked")
        again = (await secured.call("SecurityService/RevokeToken", revoke)).token
        assert again.revoke_time == first.revoke_time
        assert len(await refused_for(secured, "revoked")) == 1
    async with open_secured(tmp_path) as secured:
        assert (await secured.refused(LOOK, token=made.secret)).metadata["why"] == "revoked"


async def test_revoking_what_is_not_there_says_so(secured: Any) -> None:
    for token_id in ("", "0" * 20, "x" * 300, secured.admin):
        failed = await secured.refused("SecurityService/RevokeToken", pb.RevokeTokenRequest(token_id=token_id))
        assert (failed.code, failed.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")
        assert secured.admin not in failed.text


async def test_tokens_survive_a_restart_and_their_number_is_bounded(open_secured: Any, tmp_path: Any) -> None:
    async with open_secured(tokens__maximum=3) as secured:
        ann = await secured.issue("ann", pb.ROLE_VIEWER)
        await secured.issue("bob")
        failed = await secured.refused("SecurityService/IssueToken", pb.IssueTokenRequest(principal="eve"))
        assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    async with open_secured(tmp_path, tokens__maximum=3) as secured:
        await secured.call(LOOK, token=ann)
        failed = await secured.refused("SecurityService/IssueToken", pb.IssueTokenRequest(principal="eve"))
        assert failed.reason == "QUOTA_EXCEEDED"


async def test_when_a_token_was_last_used_is_known_after_a_restart(open_secured: Any, tmp_path: Any) -> None:
    async with open_secured() as secured:
        token = await secured.issue("ann", pb.ROLE_VIEWER)
        await secured.issue("bob", pb.ROLE_VIEWER)
        await secured.call(LOOK, token=token)
    async with open_secured(tmp_path) as secured:
        tokens = (await secured.call("SecurityService/ListTokens")).tokens
        used = {each.principal: bool(each.last_use_time.seconds) for each in tokens}
        assert used == {"admin": True, "ann": True, "bob": False}


async def test_a_call_beyond_its_rate_is_told_when_to_come_back(open_secured: Any) -> None:
    async with open_secured(limits__per_principal=100, limits__per_method=50, limits__read_cost=1) as secured:
        token = await secured.issue("busy", pb.ROLE_VIEWER)
        results = await asyncio.gather(*(secured.call(LOOK, token=token) for _ in range(60)), return_exceptions=True)
        assert sum(isinstance(each, Exception) for each in results) in range(9, 11)
        failed = await secured.refused(LOOK, token=token)
        assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        assert failed.metadata == {"quota": "method", "subject": "busy", "plugin": "security"}
        assert failed.retry_after is not None
        assert 0 < failed.retry_after <= 60 / 50
        # Health answers whatever its rate; another principal has a bucket of its own.
        for _ in range(120):
            await secured.call("OrchestratorService/HealthCheck", token=token)
        await secured.call(LOOK)
        secured.clock.ahead += 2.0
        await secured.call(LOOK, token=token)
        (record,) = await secured.trail(principal="busy", outcomes=DENIED)
        assert (record.code, record.category) == ("RESOURCE_EXHAUSTED", pb.AUDIT_CATEGORY_AUTHORIZATION)


async def test_an_address_that_shows_many_bad_tokens_is_told_to_wait_and_who_is_known_there_is_not(
    secured: Any,
) -> None:
    for _ in range(10):
        assert (await secured.refused(LOOK, token=mint(TokenKind.BEARER))).code == "UNAUTHENTICATED"
    failed = await secured.refused(LOOK, token=mint(TokenKind.BEARER))
    assert (failed.code, failed.metadata["quota"]) == ("RESOURCE_EXHAUSTED", "failed_logins")
    assert failed.retry_after
    await secured.call(LOOK)


async def test_changing_calls_are_recorded_with_who_what_where_and_how_they_ended(secured: Any) -> None:
    token = await secured.issue("ann", pb.ROLE_OPERATOR)
    spec = {"type": "work"}
    request = orchestrator_service_pb2.DelegateTaskRequest(task_id="t-1", spec=spec)  # type: ignore[arg-type]
    await secured.call("OrchestratorService/DelegateTask", request, token, namespace="a")
    await secured.refused("OrchestratorService/DelegateTask", request, token, namespace="a")
    await secured.call(LOOK, token=token, namespace="a")
    failed, done, _ = await secured.trail(principal="ann")
    assert done.method == "/agenthive.v1.OrchestratorService/DelegateTask"
    assert (done.outcome, done.code, done.namespace) == (pb.AUDIT_OUTCOME_OK, "OK", "a")
    assert (done.principal, done.peer, done.category) == ("ann", "127.0.0.1", pb.AUDIT_CATEGORY_DATA_MODIFICATION)
    assert [(each.field, each.id) for each in done.resources] == [("task_id", "t-1")]
    assert (failed.outcome, failed.code, failed.reason) == (pb.AUDIT_OUTCOME_FAILED, "ALREADY_EXISTS", "TASK_EXISTS")
    # Reading is recorded where the settings ask for it.
    assert LOOK not in {record.method for record in await secured.trail(principal="ann")}


async def test_reading_is_recorded_where_it_is_asked_for(open_secured: Any) -> None:
    async with open_secured(audit__reads=True) as secured:
        await secured.call(LOOK)
        records = await secured.trail(methods=["ListAgents"])
        assert [record.category for record in records] == [pb.AUDIT_CATEGORY_DATA_ACCESS]


async def test_the_same_refusal_over_and_over_fills_no_trail(secured: Any) -> None:
    for _ in range(200):
        await secured.refused(LOOK, token=None)
    assert len(await refused_for(secured, "missing")) == 1
    secured.clock.ahead += 11.0

    async def twice() -> list[Any]:
        found = await refused_for(secured, "missing")
        return found if len(found) == 2 else []

    found = await eventually(twice, what="the others are recorded as one")
    assert [record.count for record in found] == [199, 1]
