"""Two servers of one hive: what one of them issues, revokes, binds, blocks or records is so on the other as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import orchestrator_service_pb2_grpc as orchestrator_rpc
from agenthive.v1 import security_service_pb2 as pb
from agenthive.v1 import worker_service_pb2 as worker
from agenthive_plugins.security import bindings, upkeep
from agenthive_plugins.security.admin import provide
from agenthive_plugins.security.audit import Trail
from agenthive_plugins.security.bindings import Bindings
from agenthive_plugins.security.callers import Book
from agenthive_plugins.security.incidents import Incidents
from agenthive_plugins.security.issuing import Issuing
from agenthive_plugins.security.threats import Blocks, Detector, Finding, ThreatKind, ThreatSeverity
from agenthive_plugins.security.tokens import TokenState, digest_of, id_of
from agenthive_server.kernel.decide import Caller
from agenthive_server.plugin.state import PluginState
from agenthive_server.testing.hive import Hive
from agenthive_server.testing.raw_worker import hello_of
from agenthive_server.testing.waiting import eventually

LOOK = "OrchestratorService/ListAgents"
LIMIT = 1.0
"""Seconds within which a revocation counts everywhere."""


async def revoke(secured: Any, token_id: str) -> None:
    await secured.call("SecurityService/RevokeToken", pb.RevokeTokenRequest(token_id=token_id))


async def token_id(secured: Any, principal: str) -> str:
    request = pb.ListTokensRequest(principal=principal)
    (token,) = (await secured.call("SecurityService/ListTokens", request)).tokens
    return str(token.token_id)


async def within(condition: Callable[[], Awaitable[bool]], seconds: float = LIMIT) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await eventually(condition)
    assert loop.time() - began < seconds


async def test_a_token_counts_everywhere_at_once_and_so_does_its_end(replicas: Any) -> None:
    one, two = replicas
    for number in range(3):
        token = await one.issue(f"ann{number}", pb.ROLE_VIEWER)
        await two.call(LOOK, token=token)
        await revoke(one, await token_id(two, f"ann{number}"))
        assert (await one.refused(LOOK, token=token)).metadata["why"] == "revoked"

        async def refused(token: str = token) -> bool:
            try:
                await two.call(LOOK, token=token)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False

        await within(refused)


async def ends(stream: Any) -> tuple[grpc.StatusCode, float]:
    """Read a stream to its end; returns its code and how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError:
        pass
    return await stream.code(), loop.time() - began


async def waiting(secured: Any, *tokens: str) -> list[Any]:
    """Open a stream of events and a wait for a task with each token, alternately."""
    request = orchestrator.DelegateTaskRequest()
    request.spec.type, request.spec.role = "any", "nobody"
    task = (await secured.call("OrchestratorService/DelegateTask", request)).task
    wait, stub = (
        orchestrator.WaitTaskRequest(task_id=task.task_id),
        orchestrator_rpc.OrchestratorServiceStub(secured.channel),
    )
    calls: list[Any] = []
    for token in tokens:
        metadata = (("authorization", f"Bearer {token}"),)
        calls.append(stub.StreamEvents(orchestrator.StreamEventsRequest(), metadata=metadata))
        await calls[-1].read()
        calls.append(stub.WaitTask(wait, metadata=metadata, timeout=20))
    await eventually(lambda: len(secured.app.adapter.open) == len(calls))
    return calls


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
async def test_streams_and_waits_of_a_revoked_token_end_everywhere(
    replicas: Any, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    if not told:
        monkeypatch.setattr("agenthive_server.plugin.bell.Bells.heard", lambda *_: None)
    one, two = replicas
    tokens = [await one.issue(name, pb.ROLE_OPERATOR) for name in ("ann", "bob")]
    events, wait, *others = await waiting(two, *tokens)
    await revoke(one, await token_id(one, "ann"))
    code, seconds = await ends(events)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert seconds < LIMIT
    with pytest.raises(grpc.aio.AioRpcError, match="revoked"):
        await wait
    # Nobody else's end.
    assert not any(call.done() for call in others)
    for call in others:
        call.cancel()


async def test_the_session_of_a_revoked_credential_ends_wherever_it_is(replicas: Any) -> None:
    one, two = replicas
    async with two.stream() as session:
        hello = hello_of("w")
        hello.join_token = await one.join_token(agent_id="w")
        welcome = await session.hello(hello)
        loop = asyncio.get_running_loop()
        await revoke(one, await _id_of(one, welcome.credential))
        began = loop.time()
        assert await session.end() is grpc.StatusCode.UNAUTHENTICATED
        assert loop.time() - began < LIMIT
        again = hello_of("w", session_id=welcome.session_id)
        again.credential = welcome.credential
        failed = await two.join(again)
        assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "revoked")


async def _id_of(secured: Any, credential: str) -> str:
    stored = await secured.app.kernel.state.get("security", "meta/key")
    return id_of(digest_of(credential, stored.value))


async def test_what_was_open_before_the_plugin_was_configured_ends_with_its_token_too(replicas: Any) -> None:
    one, two = replicas
    token = await one.issue("ann", pb.ROLE_OPERATOR)
    stream, wait = await waiting(one, token)
    settings = {"limits": {"per_principal": 0, "per_method": 0}, "audit": {"reads": True}}
    await two.app.plugins.configure(Caller(namespace="default"), "security", settings)
    revision = two.app.plugins.report("security").revision
    await eventually(lambda: one.app.plugins.report("security").revision == revision)
    await revoke(two, await token_id(two, "ann"))
    assert (await ends(stream))[0] is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError, match="revoked"):
        await wait


async def test_of_two_workers_with_one_join_token_at_two_servers_one_is_let_in(replicas: Any) -> None:
    one, two = replicas
    for number in range(5):
        token = await one.join_token(agent_id_prefix=f"w{number}")

        async def join(secured: Any, name: str, token: str = token) -> Any:
            hello = hello_of(name)
            hello.join_token = token
            return await secured.join(hello)

        answers = await asyncio.gather(join(one, f"w{number}-a"), join(two, f"w{number}-b"))
        welcomed = [answer for answer in answers if isinstance(answer, worker.Welcome)]
        (refused,) = [answer for answer in answers if not isinstance(answer, worker.Welcome)]
        assert len(welcomed) == 1
        assert (refused.code, refused.metadata["why"]) == ("UNAUTHENTICATED", "used")


async def test_roles_are_given_and_taken_everywhere(replicas: Any) -> None:
    one, two = replicas
    token = await one.issue("ann", pb.ROLE_VIEWER)
    stop = orchestrator.CancelTaskRequest(task_id="none")
    assert (await two.refused("OrchestratorService/CancelTask", stop, token=token)).code == "PERMISSION_DENIED"
    binding = pb.RoleBinding(principal="ann", namespace="default", roles=[pb.ROLE_OPERATOR])
    await one.call("SecurityService/SetRoleBinding", pb.SetRoleBindingRequest(binding=binding))

    async def is_code(code: str) -> bool:
        return bool((await two.refused("OrchestratorService/CancelTask", stop, token=token)).code == code)

    await within(lambda: is_code("NOT_FOUND"))
    taken = pb.DeleteRoleBindingRequest(principal="ann", namespace="default")
    await one.call("SecurityService/DeleteRoleBinding", taken)
    await within(lambda: is_code("PERMISSION_DENIED"))


async def test_who_is_blocked_by_one_is_blocked_by_all_until_that_is_resolved_anywhere(replicas: Any) -> None:
    one, two = replicas
    token = await one.issue("eve", pb.ROLE_VIEWER)
    await two.call(LOOK, token=token)
    for name in ("SpawnAgent", "ShutdownAgent", "CancelTask", "DelegateTask", "RetryTask"):
        await one.refused(f"OrchestratorService/{name}", token=token)
    assert (await one.refused(LOOK, token=token)).metadata["why"] == "blocked"

    async def blocked() -> bool:
        try:
            await two.call(LOOK, token=token)
        except grpc.aio.AioRpcError:
            return True
        return False

    await within(blocked)
    (threat,) = await two.threats()
    await two.call("SecurityService/ResolveThreat", pb.ResolveThreatRequest(threat_id=threat.threat_id))

    async def free() -> bool:
        try:
            await one.call(LOOK, token=token)
        except grpc.aio.AioRpcError:
            return False
        return True

    await within(free)


async def test_the_same_threat_found_by_two_servers_at_once_is_one_threat(replicas: Any) -> None:
    async def publish(kind: str, text: str, **more: Any) -> None: ...

    def incidents(secured: Any) -> Incidents:
        state, clock, app = PluginState(secured.app.kernel.state, "security"), secured.clock, secured.app
        trail = Trail(state, clock, "none")
        return Incidents(state, clock, app.new_id, Detector(), Blocks(clock.now), trail, publish)

    one, two = replicas
    finding = Finding(
        kind=ThreatKind.REPLAY,
        severity=ThreatSeverity.HIGH,
        principal="eve",
        peer="",
        token_id="",
        count=5,
        evidence=(),
        block=60.0,
    )
    await asyncio.gather(*(incidents(each).keep(finding) for each in (one, two, one, two)))
    (threat,) = await two.threats()
    assert threat.signal_count == 20
    # One that was resolved and comes again is another one.
    await one.call("SecurityService/ResolveThreat", pb.ResolveThreatRequest(threat_id=threat.threat_id))
    await incidents(two).keep(finding)
    assert len(await one.threats()) == 2


async def test_each_server_has_a_chain_of_its_own_and_any_of_them_verifies_all(replicas: Any) -> None:
    one, two = replicas
    for secured in replicas:
        await secured.issue("ann", pb.ROLE_VIEWER)
    report = await two.verify()
    assert len(report.chains) == 2
    assert report.intact
    records = await one.trail(methods=["IssueToken"])
    assert len({record.chain for record in records}) == 2


async def test_of_two_servers_that_start_a_hive_together_one_makes_the_administrator(
    state: PluginState, hive: Hive, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    key = b"k" * 32
    book = Book(state, Bindings(state), key)
    issuing = Issuing(state, book, key, hive.clock.now, maximum=100)
    paths = await asyncio.gather(*(provide(state, issuing, folder) for folder in folders))
    (path,) = [path for path in paths if path is not None]
    assert [folder / "admin.token" for folder in folders if (folder / "admin.token").exists()] == [path]
    (active,) = await issuing.list_tokens("admin", states=(TokenState.ACTIVE,))
    assert active.token.id == id_of(digest_of(path.read_text().strip(), key))


def test_of_more_changes_than_are_named_all_is_read() -> None:
    class Rows(dict[str, bytes]):
        def put(self, key: str, value: bytes) -> None:
            self[key] = value

    rows: Any = Rows()
    for number in range(bindings.LATEST + 5):
        bindings.bump(rows, f"token/{number}")
    number, latest = bindings.generation(rows[bindings.GENERATION])
    assert (number, len(latest), latest[0]) == (bindings.LATEST + 5, bindings.LATEST, f"token/{number - 1}")
    # As it was written before changes were named.
    assert bindings.generation(b"17") == (17, [])
    assert bindings.generation(None) == (0, [])
    assert upkeep.EVERY < LIMIT
