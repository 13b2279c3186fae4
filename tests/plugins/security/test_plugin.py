"""What every plugin must survive; and what this one must: no call gets by it unseen, whatever is switched."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agenthive.client import Client
from agenthive.v1 import agent_pb2, error_pb2, orchestrator_service_pb2, plugin_service_pb2, worker_service_pb2
from agenthive.v1 import security_service_pb2 as pb
from agenthive_plugins.security.plugin import POLICIES, SERVICE, registration
from agenthive_server.app import App
from agenthive_server.plugin.api import Audience, Failure
from agenthive_server.settings import data_dir
from agenthive_server.testing.plugin_suite import PluginCase, PluginSuite
from agenthive_server.testing.raw_worker import accept, hello_of, result
from google.protobuf import json_format, struct_pb2

UNLIMITED = {"limits": {"per_principal": 0, "per_method": 0}}


async def as_admin(app: App) -> Client:
    """Return a client that shows the first administrator's token."""
    return Client(f"127.0.0.1:{app.port}", token_file=data_dir(app.settings) / "plugins" / "security" / "admin.token")


class TestSecurity(PluginSuite):
    @pytest.fixture
    def case(self) -> PluginCase:
        return PluginCase(
            registration=registration,
            settings=UNLIMITED,
            others={**UNLIMITED, "audit": {"reads": True, "durable": "changes", "flush_seconds": 0.02}},
            client=as_admin,
        )


def test_it_stands_in_front_of_everything_and_its_rpcs_are_for_administrators() -> None:
    assert registration.failure is Failure.CLOSED
    assert {policy.audience for policy in POLICIES.values()} == {Audience.ADMIN}
    names = {method.name for method in pb.DESCRIPTOR.services_by_name["SecurityService"].methods}
    assert {f"/{SERVICE}/{name}" for name in names} == set(POLICIES)


def configure(settings: dict[str, Any]) -> plugin_service_pb2.ConfigurePluginRequest:
    config = json_format.ParseDict(settings, struct_pb2.Struct())
    return plugin_service_pb2.ConfigurePluginRequest(name="security", config=config)


async def test_while_its_settings_change_nobody_gets_by_and_the_trail_holds(secured: Any) -> None:
    token = await secured.issue("ann", pb.ROLE_VIEWER)
    stop = asyncio.Event()
    made = [0, 0]

    async def good() -> None:
        while not stop.is_set():
            await secured.call("OrchestratorService/ListAgents", token=token)
            made[0] += 1

    async def bad() -> None:
        while not stop.is_set():
            failed = await secured.refused("OrchestratorService/ListAgents", token=None)
            assert failed.code == "UNAUTHENTICATED"
            made[1] += 1

    running = [asyncio.create_task(work()) for work in (good, good, bad)]
    for turn in range(20):
        await secured.call(
            "PluginService/ConfigurePlugin", configure({**UNLIMITED, "audit": {"reads": bool(turn % 2)}})
        )
        await secured.issue(f"p{turn}")
    stop.set()
    await asyncio.gather(*running)
    assert min(made) > 20
    found = await secured.verify()
    assert found.intact
    assert len(found.chains) == 1
    names = [each.id for record in await secured.trail(methods=["IssueToken"]) for each in record.resources]
    assert [name for name in names if name.startswith("p")] == [f"p{turn}" for turn in reversed(range(20))]
    # Recorded before it is done; and after it, where there was still somebody to see that.
    assert len({record.call_id for record in await secured.trail(methods=["ConfigurePlugin"])}) == 20
    began = await secured.trail(methods=["audit.began"])
    assert {record.reason for record in began} == {""}


async def test_switched_off_and_on_it_knows_what_it_knew(secured: Any) -> None:
    token = await secured.issue("ann", pb.ROLE_VIEWER)
    await secured.call("PluginService/DisablePlugin", plugin_service_pb2.DisablePluginRequest(name="security"))
    await secured.call("OrchestratorService/ListAgents", token=None)
    failed = await secured.refused("SecurityService/ListTokens")
    assert (failed.code, failed.reason, failed.metadata["plugin"]) == ("UNIMPLEMENTED", "PLUGIN_DISABLED", "security")
    await secured.call(
        "PluginService/EnablePlugin", plugin_service_pb2.EnablePluginRequest(name="security"), token=None
    )
    await secured.call("OrchestratorService/ListAgents", token=token)
    assert (await secured.refused("OrchestratorService/ListAgents", token=None)).code == "UNAUTHENTICATED"
    # Who switched it off is in the trail; so is the time in which nothing was recorded.
    methods = [record.method.rpartition("/")[2] for record in reversed(await secured.trail())]
    assert methods.index("DisablePlugin") < methods.index("audit.ended") < methods.index("audit.began", 1)


async def test_a_worker_from_before_it_was_on_finishes_and_does_not_come_back(secured: Any) -> None:
    switch = plugin_service_pb2.DisablePluginRequest(name="security")
    await secured.call("PluginService/DisablePlugin", switch)
    async with secured.stream() as worker:
        welcome = await worker.hello(hello_of("old"))
        await secured.call(
            "PluginService/EnablePlugin", plugin_service_pb2.EnablePluginRequest(name="security"), token=None
        )
        spec = {"type": "work", "agent_id": "old"}
        request = orchestrator_service_pb2.DelegateTaskRequest(task_id="t", spec=spec)  # type: ignore[arg-type]
        await secured.call("OrchestratorService/DelegateTask", request)
        assignment = await worker.assignment()
        assert await worker.say(accept(assignment), result(assignment)) == []
        report = worker_service_pb2.AgentReport(agent_id="more", state=agent_pb2.AGENT_STATE_IDLE)
        report.spec.role = "r"
        (refused,) = await worker.say(worker_service_pb2.WorkerItem(agent_report=report))
        assert refused.reason == error_pb2.ERROR_REASON_PERMISSION_DENIED
        # It is nobody's, and so nobody takes it over; a join token tried on it is not used up.
        thief = hello_of("thief", session_id=welcome.session_id)
        thief.join_token = await secured.join_token(agent_id="thief")
        assert (await secured.join(thief)).reason == "SESSION_NOT_FOUND"
        thief.session_id = ""
        assert isinstance(await secured.join(thief), worker_service_pb2.Welcome)
    failed = await secured.join(hello_of("old", session_id=welcome.session_id))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "missing")


async def test_settings_are_shown_with_their_defaults(secured: Any) -> None:
    shown = await secured.call("PluginService/GetPlugin", plugin_service_pb2.GetPluginRequest(name="security"))
    config = json_format.MessageToDict(shown.plugin.config)
    assert config["limits"]["per_principal"] == 0
    assert config["limits"]["failed_logins"] == 10
    assert config["audit"]["retention_days"] == 2_555
    assert shown.plugin.failure_mode == plugin_service_pb2.PLUGIN_FAILURE_MODE_CLOSED
