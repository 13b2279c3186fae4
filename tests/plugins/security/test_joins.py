"""Who may open a session, as which agents, with what: on a served server, with workers that say anything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from agenthive import Client, Worker
from agenthive.v1 import agent_pb2, error_pb2, messaging_service_pb2, orchestrator_service_pb2, task_pb2
from agenthive.v1 import security_service_pb2 as pb
from agenthive.v1 import worker_service_pb2 as worker
from agenthive_server.testing.harness import open_sdk_workers
from agenthive_server.testing.raw_worker import accept, hello_of, result
from agenthive_server.testing.waiting import eventually

DENIED = [pb.AUDIT_OUTCOME_DENIED]


def hello(*agent_ids: str, spec: bool = True, **fields: Any) -> worker.Hello:
    agents = [
        worker.HostedAgent(agent_id=agent_id, spec=agent_pb2.AgentSpec() if spec else None) for agent_id in agent_ids
    ]
    return worker.Hello(agents=agents, **fields)


async def joins(secured: Any, said: worker.Hello, token: str | None = None, **named: Any) -> worker.Welcome:
    answer = await secured.join(said, token, **named)
    assert isinstance(answer, worker.Welcome), answer
    return answer


async def credential(secured: Any, *agent_ids: str, **scope: Any) -> str:
    join_token = await secured.join_token(**(scope or {"agent_id": agent_ids[0]}))
    return (await joins(secured, hello(*agent_ids, join_token=join_token))).credential


async def recorded(secured: Any, why: str) -> Sequence[Any]:
    return [record for record in await secured.trail(methods=["Connect"], outcomes=DENIED) if record.reason == why]


async def test_without_anything_nobody_joins(secured: Any) -> None:
    failed = await secured.join(hello("a-1"))
    assert (failed.code, failed.reason, failed.metadata["why"]) == ("UNAUTHENTICATED", "UNAUTHENTICATED", "missing")
    assert len(await recorded(secured, "missing")) == 1
    assert not (await secured.call("OrchestratorService/ListAgents")).agents


async def test_a_join_token_lets_in_once_and_earns_a_credential_for_ever_after(secured: Any) -> None:
    join_token = await secured.join_token(agent_id="a-1")
    welcome = await joins(secured, hello("a-1", join_token=join_token))
    assert welcome.credential.startswith("ahvc_")
    for _ in range(2):
        again = await joins(secured, hello("a-1", credential=welcome.credential))
        assert again.credential == ""
    failed = await secured.join(hello("a-1", join_token=join_token))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "used")
    assert join_token not in failed.text
    (record,) = await recorded(secured, "used")
    listed = (await secured.call("SecurityService/ListTokens")).tokens
    kinds = {token.kind: token for token in listed}
    assert kinds[pb.TOKEN_KIND_JOIN].state == pb.TOKEN_STATE_USED
    assert kinds[pb.TOKEN_KIND_JOIN].token_id == record.token_id
    earned = kinds[pb.TOKEN_KIND_CREDENTIAL]
    assert (earned.principal, earned.join_token_id) == ("agent:default/a-1", record.token_id)
    assert not earned.HasField("expire_time")


async def test_of_many_who_try_a_join_token_at_once_one_gets_in(secured: Any) -> None:
    join_token = await secured.join_token(agent_id_prefix="pool-")
    tries = (secured.join(hello(f"pool-{n}", join_token=join_token)) for n in range(20))
    answers = await asyncio.gather(*tries)
    welcomed = [answer for answer in answers if isinstance(answer, worker.Welcome)]
    assert len(welcomed) == 1
    assert {answer.metadata["why"] for answer in answers if answer not in welcomed} == {"used"}
    assert len((await secured.call("OrchestratorService/ListAgents")).agents) == 1


async def test_an_expired_or_revoked_join_token_lets_nobody_in(secured: Any) -> None:
    request = pb.IssueJoinTokenRequest(scope=pb.JoinScope(agent_id="a-1"), ttl={"seconds": 5})  # type: ignore[arg-type]
    made = await secured.call("SecurityService/IssueJoinToken", request)
    secured.clock.ahead += 6.0
    failed = await secured.join(hello("a-1", join_token=made.secret))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "expired")
    made = await secured.call("SecurityService/IssueJoinToken", request)
    await secured.call("SecurityService/RevokeToken", pb.RevokeTokenRequest(token_id=made.token.token_id))
    failed = await secured.join(hello("a-1", join_token=made.secret))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "revoked")
    assert len(await recorded(secured, "expired")) == len(await recorded(secured, "revoked")) == 1


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ({"agent_id": "a-1"}, hello("a-2")),
        ({"agent_id": "a-1"}, hello("a-1", "a-2")),
        ({"agent_id": "a-1"}, hello()),
        ({"agent_id": "a-1"}, hello("a-1", runner=worker.RunnerCapacity(drivers=["process"]))),
        ({"agent_id_prefix": "pool-"}, hello("other-1")),
        ({"agent_id_prefix": "pool-"}, hello("pool-1", "other-1")),
        ({"agent_id_prefix": "pool-"}, hello(*(f"pool-{n}" for n in range(300)))),
        ({"agent_id": "a-1", "labels": {"zone": "a"}}, hello("a-1", labels={"zone": "b"})),
        ({"agent_id": "a-1", "labels": {"zone": "a"}}, hello("a-1")),
        ({"runner": True}, hello()),
        ({"runner": True}, hello("a-1", runner=worker.RunnerCapacity(drivers=["process"]))),
    ],
)
async def test_a_join_token_lets_in_whom_it_is_for_and_is_not_used_up_by_others(
    secured: Any, scope: dict[str, Any], said: worker.Hello
) -> None:
    said.join_token = await secured.join_token(**scope)
    failed = await secured.join(said)
    assert (failed.code, failed.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    tokens = (await secured.call("SecurityService/ListTokens", pb.ListTokensRequest(kinds=[pb.TOKEN_KIND_JOIN]))).tokens
    assert [token.state for token in tokens] == [pb.TOKEN_STATE_ACTIVE]
    assert not (await secured.call("OrchestratorService/ListAgents")).agents
    assert len(await secured.trail(methods=["Connect"], outcomes=DENIED)) == 1


async def test_a_join_token_counts_in_its_namespace(secured: Any) -> None:
    join_token = await secured.join_token(agent_id="a-1", namespace="a")
    failed = await secured.join(hello("a-1", join_token=join_token))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "unknown")
    await joins(secured, hello("a-1", join_token=join_token), namespace="a")


@pytest.mark.parametrize(
    "scope", [{}, {"runner": False}, {"agent_id": ""}, {"agent_id_prefix": ""}, {"agent_id": "a b"}]
)
async def test_a_join_token_for_nobody_is_not_made(secured: Any, scope: dict[str, Any]) -> None:
    request = pb.IssueJoinTokenRequest(scope=pb.JoinScope(**scope))
    failed = await secured.refused("SecurityService/IssueJoinToken", request)
    assert failed.code == "INVALID_ARGUMENT"
    assert failed.text.startswith("scope")


async def test_a_credential_speaks_for_its_agents_only(secured: Any) -> None:
    mine = await credential(secured, "a-1")
    await credential(secured, "b-1")
    for said in (
        hello("b-1", credential=mine),
        hello("a-1", "b-1", credential=mine),
        hello("new", credential=mine),
        hello("a-1", credential=mine, runner=worker.RunnerCapacity(drivers=["process"])),
    ):
        failed = await secured.join(said)
        assert (failed.code, failed.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert len(await secured.trail(methods=["Connect"], outcomes=DENIED, principal="")) >= 1


async def test_the_session_of_another_agent_is_neither_resumed_nor_ended(secured: Any) -> None:
    mine, others = await credential(secured, "a-1"), await credential(secured, "b-1")
    async with secured.stream() as there:
        session = (await there.hello(hello("b-1", credential=others))).session_id
        failed = await secured.join(hello("a-1", credential=mine, session_id=session))
        assert (failed.code, failed.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
        await joins(secured, hello("a-1", credential=mine, replaces_session_id=session))
        # It goes on as if nothing had been tried.
        request = orchestrator_service_pb2.DelegateTaskRequest(
            task_id="t",
            spec={"type": "work", "agent_id": "b-1"},  # type: ignore[arg-type]
        )
        await secured.call("OrchestratorService/DelegateTask", request)
        assignment = await there.assignment()
        assert await there.say(accept(assignment), result(assignment)) == []
        # Its own it may take up again.
    resumed = await joins(secured, hello("b-1", credential=others, session_id=session))
    assert resumed.resumed


async def test_a_session_brings_no_agents_along_that_are_not_its_own(secured: Any) -> None:
    mine = await credential(secured, "a-1")
    await credential(secured, "b-1")
    async with secured.stream() as worker_stream:
        await worker_stream.hello(hello("a-1", credential=mine))
        for agent_id in ("b-1", "brand-new"):
            report = worker.AgentReport(agent_id=agent_id, state=agent_pb2.AGENT_STATE_IDLE, spec=agent_pb2.AgentSpec())
            (refused,) = await worker_stream.say(worker.WorkerItem(agent_report=report))
            assert worker_name(refused) == "PERMISSION_DENIED"
        own = worker.AgentReport(agent_id="a-1", state=agent_pb2.AGENT_STATE_IDLE)
        assert await worker_stream.say(worker.WorkerItem(agent_report=own)) == []


def worker_name(refused: worker.ItemRefused) -> str:
    return error_pb2.ErrorReason.Name(refused.reason).removeprefix("ERROR_REASON_")


async def test_a_session_sends_messages_in_the_name_of_its_own_agents_only(secured: Any) -> None:
    mine = await credential(secured, "a-1")
    await credential(secured, "b-1")
    async with secured.stream() as worker_stream:
        await worker_stream.hello(hello("a-1", credential=mine))
        message = worker.OutgoingMessage(request_id="1", sender_agent_id="b-1", agent_id="a-1")
        message.payload.data = b"lies"
        (refused,) = await worker_stream.say(worker.WorkerItem(message=message))
        assert refused.reason


async def test_a_token_for_a_pool_takes_over_no_agent_that_has_a_credential(secured: Any) -> None:
    held = await credential(secured, "pool-1", agent_id_prefix="pool-")
    join_token = await secured.join_token(agent_id_prefix="pool-")
    failed = await secured.join(hello("pool-1", join_token=join_token))
    assert failed.code == "PERMISSION_DENIED"
    # It is still good for another one.
    await joins(secured, hello("pool-2", "pool-3", join_token=join_token))
    await joins(secured, hello("pool-1", credential=held))


async def test_a_token_for_that_very_agent_replaces_a_credential_that_was_lost(secured: Any) -> None:
    lost = await credential(secured, "a-1")
    found = await credential(secured, "a-1")
    failed = await secured.join(hello("a-1", credential=lost))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "revoked")
    await joins(secured, hello("a-1", credential=found))
    # Also for calls beside the session, once that has come round.
    request = orchestrator_service_pb2.GetAgentRequest(agent_id="a-1")
    await eventually(lambda: is_refused(secured, request, lost), what="the old credential is refused everywhere")
    await secured.call("OrchestratorService/GetAgent", request, found)


async def is_refused(secured: Any, request: Any, token: str) -> bool:
    try:
        await secured.call("OrchestratorService/GetAgent", request, token)
    except Exception:  # noqa: BLE001 - refused in whatever way
        return True
    return False


async def test_a_revoked_credential_opens_no_session_and_makes_no_call(secured: Any) -> None:
    held = await credential(secured, "a-1")
    (token,) = (
        await secured.call("SecurityService/ListTokens", pb.ListTokensRequest(kinds=[pb.TOKEN_KIND_CREDENTIAL]))
    ).tokens
    await secured.call("SecurityService/RevokeToken", pb.RevokeTokenRequest(token_id=token.token_id))
    failed = await secured.join(hello("a-1", credential=held))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "revoked")
    assert (await secured.refused("OrchestratorService/HealthCheck", token=held)).metadata["why"] == "revoked"


async def test_a_credential_is_valid_as_long_as_its_agent(secured: Any) -> None:
    held = await credential(secured, "a-1")
    async with secured.stream() as worker_stream:
        await worker_stream.hello(hello("a-1", credential=held))
        # A worker that leaves and comes back is the same agent.
        await worker_stream.send(worker.WorkerItem(goodbye=worker.Goodbye()))
        await worker_stream.end()
    async with secured.stream() as worker_stream:
        await worker_stream.hello(hello("a-1", credential=held))
        request = orchestrator_service_pb2.ShutdownAgentRequest(agent_id="a-1")
        await secured.call("OrchestratorService/ShutdownAgent", request)
        report = worker.AgentReport(agent_id="a-1", state=agent_pb2.AGENT_STATE_STOPPED)
        await worker_stream.say(worker.WorkerItem(agent_report=report))

    async def ended() -> bool:
        answer = await secured.join(hello("a-1", credential=held))
        return not isinstance(answer, worker.Welcome) and answer.metadata.get("why") == "revoked"

    await eventually(ended, what="the credential ends with its agent")


async def test_a_principal_with_the_role_of_an_agent_joins_as_agents_that_are_nobody_elses(secured: Any) -> None:
    mine = await secured.issue("fleet-1", pb.ROLE_AGENT)
    others = await secured.issue("fleet-2", pb.ROLE_AGENT)
    await joins(secured, hello("f-1", "f-2"), mine)
    await joins(secured, hello("f-1"), mine)
    failed = await secured.join(hello("f-2", "f-3"), others)
    assert failed.code == "PERMISSION_DENIED"
    held = await credential(secured, "a-1")
    assert (await secured.join(hello("a-1"), mine)).code == "PERMISSION_DENIED"
    await joins(secured, hello("a-1", credential=held), mine)
    # Elsewhere it has no role.
    elsewhere = await secured.issue("fleet-3", pb.ROLE_AGENT, namespaces=("a",))
    assert (await secured.join(hello("g-1"), elsewhere)).code == "PERMISSION_DENIED"
    await joins(secured, hello("g-1"), elsewhere, namespace="a")


async def test_an_agent_acts_on_its_own_tasks_and_sees_no_others(secured: Any) -> None:
    mine = await credential(secured, "a-1")
    await credential(secured, "b-1")
    for task_id, agent_id in (("mine", "a-1"), ("theirs", "b-1")):
        request = orchestrator_service_pb2.DelegateTaskRequest(
            task_id=task_id,
            spec={"type": "work", "agent_id": agent_id},  # type: ignore[arg-type]
        )
        await secured.call("OrchestratorService/DelegateTask", request)
    look = orchestrator_service_pb2.GetTaskRequest
    assert (await secured.call("OrchestratorService/GetTask", look(task_id="mine"), mine)).task.task_id == "mine"
    # What is there and what is not look the same.
    texts = {
        (await secured.refused("OrchestratorService/GetTask", look(task_id=task_id), mine)).text
        for task_id in ("theirs", "not-there")
    }
    assert len(texts) == 1
    spoof = messaging_service_pb2.SendMessageRequest(sender_agent_id="b-1", agent_id="a-1")
    spoof.payload.data = b"lies"
    assert (await secured.refused("MessagingService/SendMessage", spoof, mine)).code == "PERMISSION_DENIED"
    spoof.sender_agent_id = "a-1"
    await secured.call("MessagingService/SendMessage", spoof, mine)
    assert (
        await secured.refused("OrchestratorService/HealthCheck", None, mine, namespace="b")
    ).code == "PERMISSION_DENIED"


async def test_joining_is_in_the_trail_while_the_session_is_open(secured: Any) -> None:
    join_token = await secured.join_token(agent_id="a-1")
    async with secured.stream() as worker_stream:
        await worker_stream.hello(hello_with("a-1", join_token))

        async def there() -> bool:
            return bool(await secured.trail(methods=["Connect"]))

        await eventually(there, what="the join is recorded")
    (record,) = await secured.trail(methods=["Connect"])
    assert (record.principal, record.outcome) == ("agent:default/a-1", pb.AUDIT_OUTCOME_OK)
    assert [(each.field, each.id) for each in record.resources] == [("agent_id", "a-1")]
    assert record.token_id


def hello_with(agent_id: str, join_token: str) -> worker.Hello:
    said = hello_of(agent_id)
    said.join_token = join_token
    return said


async def test_a_worker_of_the_sdk_joins_works_and_comes_back_after_a_restart(secured: Any, tmp_path: Any) -> None:
    kept = tmp_path / "credential"

    def made(**options: Any) -> Worker:
        worker_ = Worker(secured.target, agent_id="sdk-1", capabilities=["echo"], credential_file=kept, **options)

        @worker_.task("echo")
        async def echo(task: Any) -> Any:
            return task.input

        return worker_

    async with Client(secured.target, token=secured.admin) as client:
        async with open_sdk_workers(client, made(join_token=await secured.join_token(agent_id="sdk-1"))):
            done = await client.delegate("echo", input={"n": 1}, wait=True)
            assert done.state == task_pb2.TASK_STATE_SUCCEEDED
        assert kept.stat().st_mode & 0o777 == 0o600
        async with open_sdk_workers(client, made()):
            done = await client.delegate("echo", input={"n": 2}, wait=True)
            assert done.state == task_pb2.TASK_STATE_SUCCEEDED
