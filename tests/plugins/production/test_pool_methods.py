"""Policies of pools over a real port; what they do is shown in `test_story.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive.v1 import agent_pb2, orchestrator_service_pb2, orchestrator_service_pb2_grpc
from agenthive.v1 import production_service_pb2 as pb
from agenthive_plugins.production.scaling import LABEL
from google.protobuf.duration_pb2 import Duration
from grpc import aio

Serve = Callable[..., Any]
TEMPLATE = agent_pb2.AgentSpec(
    role="worker",
    capabilities=["work"],
    labels={"team": "a"},
    slots=2,
    restart_policy=agent_pb2.RestartPolicy(mode=agent_pb2.RESTART_MODE_NEVER, maximum_restarts=3),
    stop_grace=Duration(seconds=3),
    process=agent_pb2.ProcessDriver(command=["true"]),
)


def policy(pool_id: str = "p", **fields: Any) -> pb.ScalingPolicy:
    return pb.ScalingPolicy(pool_id=pool_id, **{"template": TEMPLATE, **fields})


async def test_policies_are_set_read_and_removed(serve: Serve) -> None:
    async with serve() as hive:
        stub = hive.stub
        made = (await stub.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy()))).policy
        assert (made.min_agents, made.max_agents, made.scale_up_threshold, made.scale_down_threshold) == (
            1,
            20,
            0.7,
            0.2,
        )
        assert (made.cooldown.seconds, made.stabilization.seconds, made.drain_grace.seconds) == (300, 300, 300)
        assert (made.revision, made.current_agents, made.HasField("last_decision")) == (1, 0, False)
        assert made.template.process == TEMPLATE.process
        assert made.template.restart_policy.mode == agent_pb2.RESTART_MODE_NEVER
        assert (await stub.GetScalingPolicy(pb.GetScalingPolicyRequest(pool_id="p"))).policy == made
        await stub.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy("q", allow_empty=True)))
        pools = (await stub.ListScalingPolicies(pb.ListScalingPoliciesRequest())).policies
        assert [(each.pool_id, each.min_agents, each.allow_empty) for each in pools] == [
            ("p", 1, False),
            ("q", 0, True),
        ]
        late = stub.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy(max_agents=9), revision=7))
        assert await hive.reason(late) == ("ABORTED", "REVISION_MISMATCH")
        changed = await stub.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy(max_agents=9), revision=1))
        assert (changed.policy.revision, changed.policy.max_agents) == (2, 9)
        await stub.DeleteScalingPolicy(pb.DeleteScalingPolicyRequest(pool_id="p"))
        for gone in (
            stub.GetScalingPolicy(pb.GetScalingPolicyRequest(pool_id="p")),
            stub.DeleteScalingPolicy(pb.DeleteScalingPolicyRequest(pool_id="p")),
            stub.TriggerAutoScaling(pb.TriggerAutoScalingRequest(pool_id="p")),
        ):
            assert await hive.reason(gone) == ("NOT_FOUND", "RECORD_NOT_FOUND")


async def test_pools_belong_to_a_namespace(serve: Serve) -> None:
    async with serve() as hive:
        elsewhere = (("agenthive-namespace", "other"),)
        await hive.stub.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy()), metadata=elsewhere)
        here = hive.stub.GetScalingPolicy(pb.GetScalingPolicyRequest(pool_id="p"))
        assert await hive.reason(here) == ("NOT_FOUND", "RECORD_NOT_FOUND")
        assert not (await hive.stub.ListScalingPolicies(pb.ListScalingPoliciesRequest())).policies
        listed = await hive.stub.ListScalingPolicies(pb.ListScalingPoliciesRequest(), metadata=elsewhere)
        assert [each.pool_id for each in listed.policies] == ["p"]


@pytest.mark.parametrize(
    "bad",
    [
        policy(""),
        policy("x" * 65),
        policy("a/b"),
        pb.ScalingPolicy(pool_id="p"),
        policy(template=agent_pb2.AgentSpec(role="worker")),
        policy(template=agent_pb2.AgentSpec(remote=agent_pb2.RemoteDriver())),
        policy(template=agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver())),
        policy(template=agent_pb2.AgentSpec(custom=agent_pb2.CustomDriver(name="process"))),
        policy(template=agent_pb2.AgentSpec(slots=-1, process=TEMPLATE.process)),
        policy(template=agent_pb2.AgentSpec(capabilities=["x"] * 65, process=TEMPLATE.process)),
        policy(template=agent_pb2.AgentSpec(capabilities=[""], process=TEMPLATE.process)),
        policy(template=agent_pb2.AgentSpec(labels={"": "x"}, process=TEMPLATE.process)),
        policy(template=agent_pb2.AgentSpec(weight=-1, process=TEMPLATE.process)),
        policy(min_agents=-1),
        policy(min_agents=5, max_agents=4),
        policy(max_agents=1_001),
        policy(scale_up_threshold=0.2, scale_down_threshold=0.5),
        policy(scale_up_threshold=float("nan")),
        policy(cooldown=Duration(seconds=-1)),
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused(serve: Serve, bad: pb.ScalingPolicy) -> None:
    async with serve() as hive:
        refused = hive.stub.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=bad))
        assert await hive.reason(refused) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_a_pool_is_filled_once_and_a_dry_run_changes_nothing(serve: Serve) -> None:
    async with serve(auto_scaling_enabled=False) as hive:
        await hive.stub.SetScalingPolicy(pb.SetScalingPolicyRequest(policy=policy(min_agents=3)))
        trigger = hive.stub.TriggerAutoScaling
        dry = (await trigger(pb.TriggerAutoScalingRequest(pool_id="p", dry_run=True))).decision
        assert (dry.action, dry.recommended_agents, list(dry.agent_ids)) == (pb.SCALING_ACTION_SCALE_UP, 3, [])
        request = pb.TriggerAutoScalingRequest(request_id="r1", pool_id="p")
        done = (await trigger(request)).decision
        assert len(done.agent_ids) == 3
        assert (await trigger(request)).decision == done
        again = (await trigger(pb.TriggerAutoScalingRequest(pool_id="p"))).decision
        assert (again.action, again.current_agents) == (pb.SCALING_ACTION_MAINTAIN, 3)
        orchestrator = orchestrator_service_pb2_grpc.OrchestratorServiceStub
        async with aio.insecure_channel(f"127.0.0.1:{hive.app.port}") as channel:
            agents = (await orchestrator(channel).ListAgents(orchestrator_service_pb2.ListAgentsRequest())).agents
        assert {agent.agent_id for agent in agents} == set(done.agent_ids)
        assert {agent.spec.labels[LABEL] for agent in agents} == {"p"}
        assert {agent.spec.labels["team"] for agent in agents} == {"a"}
        assert {agent.spec.process.command[0] for agent in agents} == {"true"}
