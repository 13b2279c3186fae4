"""Every RPC with every role, on a served server, against a table that people have reviewed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from agenthive.v1 import messaging_service_pb2, orchestrator_service_pb2, security_service_pb2
from agenthive.v1 import worker_service_pb2 as worker
from agenthive_plugins.security.ownership import CONCERNS
from agenthive_plugins.security.plugin import POLICIES as OWN
from agenthive_server.rpc.policy import POLICIES
from agenthive_server.testing.raw_worker import hello_of
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration

ROWS = {**POLICIES, **OWN}
CONNECT = "/agenthive.v1.WorkerService/Connect"
ROLES = {
    "viewer": security_service_pb2.ROLE_VIEWER,
    "operator": security_service_pb2.ROLE_OPERATOR,
    "admin": security_service_pb2.ROLE_ADMIN,
}


def shape_of(path: str) -> tuple[bool, bool]:
    """Whether client and server stream."""
    if path.endswith("ServerReflectionInfo"):
        return True, True
    if path.startswith("/grpc.health"):
        return False, path.endswith("Watch")
    service, _, method = path[1:].partition("/")
    found: MethodDescriptor = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
    return bool(found.client_streaming), bool(found.server_streaming)


async def ending(channel: grpc.aio.Channel, path: str, raw: bytes, token: str | None, namespace: str) -> str:
    """Make a call and return the name of its code; of a stream that begins to answer, OK."""
    metadata = [("agenthive-namespace", namespace)]
    if token is not None:
        metadata.append(("authorization", f"Bearer {token}"))
    client_streams, server_streams = shape_of(path)
    kind = f"{'stream' if client_streams else 'unary'}_{'stream' if server_streams else 'unary'}"
    argument = iter([raw] if raw or server_streams else []) if client_streams else raw
    call: Any = getattr(channel, kind)(path)(argument, metadata=metadata)
    try:
        async with asyncio.timeout(20.0):
            await (call.read() if server_streams else call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    call.cancel()
    return "OK"


def verdict(code: str) -> str:
    return {"UNAUTHENTICATED": "who?", "PERMISSION_DENIED": "no"}.get(code, "yes")


def own_requests(agent_id: str, task_id: str) -> dict[str, bytes]:
    """For what an agent may do about itself: a request that is about itself."""
    orchestrator, messages = orchestrator_service_pb2, messaging_service_pb2
    events = orchestrator.StreamEventsRequest()
    events.filter.agent_ids.append(agent_id)
    found = {
        "GetAgent": orchestrator.GetAgentRequest(agent_id=agent_id),
        "GetTask": orchestrator.GetTaskRequest(task_id=task_id),
        "WaitTask": orchestrator.WaitTaskRequest(task_id=task_id, wait_timeout=Duration(nanos=1)),
        "ListTasks": orchestrator.ListTasksRequest(agent_id=agent_id),
        "StreamEvents": events,
        "HealthCheck": orchestrator.HealthCheckRequest(),
        "SendMessage": messages.SendMessageRequest(sender_agent_id=agent_id),
        "BroadcastMessage": messages.BroadcastMessageRequest(sender_agent_id=agent_id),
        "StreamMessages": messages.StreamMessagesRequest(agent_id=agent_id, no_follow=True),
        "AcknowledgeMessages": messages.AcknowledgeMessagesRequest(agent_id=agent_id),
    }
    return {name: message.SerializeToString() for name, message in found.items()}


async def may_join(secured: Any, who: str, token: str | None) -> str:
    """Whether somebody may open a session: the agent with its credential, all others with what they have."""
    found = []
    for agent_id in ("mine", "other"):
        credential = token if who == "agent" else ""
        hello = hello_of(agent_id)
        hello.credential = credential or ""
        answer = await secured.join(hello, None if who == "agent" else token)
        found.append("yes" if isinstance(answer, worker.Welcome) else verdict(answer.code))
    return {("yes", "no"): "own"}.get((found[0], found[1]), found[0] if found[0] == found[1] else "wrong")


async def joined(secured: Any, agent_id: str) -> str:
    """Let an agent join, and return its credential."""
    hello = hello_of(agent_id)
    hello.join_token = await secured.join_token(agent_id=agent_id)
    welcome: worker.Welcome = await secured.join(hello)
    return welcome.credential


@pytest.fixture
async def secured(open_secured: Callable[..., Any]) -> AsyncIterator[Any]:
    """A server that does not take offence: here callers try what they may not on purpose."""
    async with open_secured(threats__privilege_probing__count=0) as served:
        yield served


async def test_every_rpc_with_every_role(secured: Any, golden: Callable[[str, str], None]) -> None:
    tokens: dict[str, str | None] = {"nobody": None}
    for name, role in ROLES.items():
        tokens[name] = await secured.issue(name, role)
    tokens["agent"] = await joined(secured, "mine")
    await joined(secured, "other")
    for agent_id in ("mine", "other"):
        spec = {"type": "work", "agent_id": agent_id}
        request = orchestrator_service_pb2.DelegateTaskRequest(task_id=f"of-{agent_id}", spec=spec)  # type: ignore[arg-type]
        await secured.call("OrchestratorService/DelegateTask", request)
    mine, foreign = own_requests("mine", "of-mine"), own_requests("other", "of-other")
    lines = [f"{'':<60} nobody viewer agent operator admin"]
    for path in sorted(ROWS):
        name = path.rpartition("/")[2]
        row = []
        for who in ("nobody", "viewer", "agent", "operator", "admin"):
            token = tokens[who]
            if path == CONNECT:
                row.append(await may_join(secured, who, token))
                continue
            found = verdict(await ending(secured.channel, path, b"", token, "default"))
            if who == "agent" and path in CONCERNS:
                about = [
                    verdict(await ending(secured.channel, path, requests.get(name, b""), token, "default"))
                    for requests in (mine, foreign)
                ]
                found = {("yes", "no"): "own", ("yes", "yes"): "yes"}.get((about[0], about[1]), "wrong")
            row.append(found)
        lines.append(f"{path:<60} " + " ".join(f"{found:<{len(head)}}" for found, head in zip(row, HEADS, strict=True)))
    golden("access.txt", "\n".join(line.rstrip() for line in lines) + "\n")
    # All of it is in the trail: at least one refusal for each that was refused.
    refused = {(record.method, record.principal) for record in await secured.trail(outcomes=[2])}
    for line in lines[1:]:
        path, *row = line.split()
        for who, found in zip(("", "viewer", "agent:default/mine", "operator", "admin"), row, strict=True):
            if found in ("no", "who?"):
                assert (path, who) in refused, f"{who or 'nobody'} at {path}"


HEADS = ("nobody", "viewer", "agent", "operator", "admin")


async def test_an_rpc_without_a_row_cannot_be_called(secured: Any) -> None:
    for path in ("/agenthive.v1.SecurityService/Nothing", "/agenthive.v1.NoService/Call"):
        assert await ending_of_unknown(secured, path) == "UNIMPLEMENTED"


async def ending_of_unknown(secured: Any, path: str) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await secured.channel.unary_unary(path)(b"", metadata=[("authorization", f"Bearer {secured.admin}")])
    return caught.value.code().name


async def test_a_role_in_one_namespace_is_none_elsewhere_and_none_over_the_hive(secured: Any) -> None:
    token = await secured.issue("team-a", security_service_pb2.ROLE_ADMIN, namespaces=("a",))
    await secured.call("OrchestratorService/ListAgents", token=token, namespace="a")
    for refused in (
        await secured.refused("OrchestratorService/ListAgents", token=token, namespace="b"),
        await secured.refused("OrchestratorService/ListAgents", token=token),
        # These act on the hive, whatever namespace the call names.
        await secured.refused("SecurityService/ListTokens", token=token, namespace="a"),
        await secured.refused("PluginService/ListPlugins", token=token, namespace="a"),
    ):
        assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


async def test_events_of_all_namespaces_take_a_role_in_all_of_them(secured: Any) -> None:
    token = await secured.issue("team-a", security_service_pb2.ROLE_VIEWER, namespaces=("a",))
    request = orchestrator_service_pb2.StreamEventsRequest(no_follow=True)
    await secured.call("OrchestratorService/StreamEvents", request, token, namespace="a")
    request.filter.all_namespaces = True
    refused = await secured.refused("OrchestratorService/StreamEvents", request, token, namespace="a")
    assert refused.code == "PERMISSION_DENIED"
    everywhere = await secured.issue("auditor", security_service_pb2.ROLE_VIEWER)
    await secured.call("OrchestratorService/StreamEvents", request, everywhere, namespace="a")


async def test_bindings_give_and_take_roles_at_once(secured: Any) -> None:
    token = await secured.issue("ann")
    assert (await secured.refused("OrchestratorService/ListAgents", token=token)).code == "PERMISSION_DENIED"
    binding = security_service_pb2.RoleBinding(principal="ann", namespace="default", roles=[ROLES["viewer"]])
    set_binding = security_service_pb2.SetRoleBindingRequest(binding=binding, request_id="once")
    made = (await secured.call("SecurityService/SetRoleBinding", set_binding)).binding
    assert made.update_time.seconds
    await secured.call("OrchestratorService/ListAgents", token=token)
    assert (
        await secured.refused("OrchestratorService/ListAgents", token=token, namespace="b")
    ).code == "PERMISSION_DENIED"
    everywhere = security_service_pb2.RoleBinding(principal="ann", namespace="*", roles=[ROLES["operator"]])
    await secured.call("SecurityService/SetRoleBinding", security_service_pb2.SetRoleBindingRequest(binding=everywhere))
    await secured.call("OrchestratorService/ListAgents", token=token, namespace="b")
    listed = (await secured.call("SecurityService/ListRoleBindings")).bindings
    assert [(each.principal, each.namespace, list(each.roles)) for each in listed] == [
        ("ann", "*", [ROLES["operator"]]),
        ("ann", "default", [ROLES["viewer"]]),
    ]
    for namespace in ("*", "default", "default"):
        request = security_service_pb2.DeleteRoleBindingRequest(principal="ann", namespace=namespace)
        await secured.call("SecurityService/DeleteRoleBinding", request)
    assert (await secured.refused("OrchestratorService/ListAgents", token=token)).code == "PERMISSION_DENIED"
    # A repeat of what was set first changes nothing now.
    await secured.call("SecurityService/SetRoleBinding", set_binding)
    assert not (await secured.call("SecurityService/ListRoleBindings")).bindings


async def test_who_makes_an_administrator_is_recorded_as_that(secured: Any) -> None:
    await secured.issue("boss", ROLES["admin"])
    binding = security_service_pb2.RoleBinding(principal="ann", namespace="*", roles=[ROLES["admin"]])
    await secured.call("SecurityService/SetRoleBinding", security_service_pb2.SetRoleBindingRequest(binding=binding))
    await secured.issue("ann", ROLES["viewer"])
    escalations = await secured.trail(categories=[security_service_pb2.AUDIT_CATEGORY_PRIVILEGE_ESCALATION])
    named = [{each.field: each.id for each in record.resources} for record in escalations]
    assert [record.method.rpartition("/")[2] for record in escalations] == ["SetRoleBinding", "IssueToken"]
    assert named[0] == {"principal": "ann"}
    assert named[1]["principal"] == "boss"
    assert named[1]["token_id"]
