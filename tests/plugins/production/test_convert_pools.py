"""Policies of pools come back as they were written; decisions say all there is."""

from __future__ import annotations

from agenthive.v1 import production_service_pb2 as pb
from agenthive_plugins.production.convert_pools import fill_decision, fill_policy, policy_from
from agenthive_plugins.production.scaling import Action, PoolLoad, PoolMemory, Pressure, ScalingPolicy, decide
from agenthive_server.plugin.api import AgentSpec
from hypothesis import given, settings
from hypothesis import strategies as st

COMMAND = b"\n\x04true"
"""A process driver's settings with the command `true`."""

policies = st.builds(
    lambda low, more, down, up: ScalingPolicy(
        id="p",
        namespace="n",
        template=AgentSpec(role="r", driver="process", driver_config=COMMAND),
        min_agents=low,
        max_agents=max(1, low + more),
        scale_up_threshold=down + up,
        scale_down_threshold=down,
        cooldown=float(low),
        stabilization=float(more),
        drain_grace=7.0,
        disabled=low % 2 == 0,
    ),
    st.integers(0, 500),
    st.integers(0, 500),
    st.floats(0.01, 10.0),
    st.floats(0.01, 10.0),
)


@given(policies)
@settings(max_examples=100, deadline=None)
def test_a_policy_comes_back_as_it_was(policy: ScalingPolicy) -> None:
    message = pb.ScalingPolicy()
    fill_policy(message, policy, 3, None)
    again = pb.ScalingPolicy.FromString(message.SerializeToString())
    assert policy_from(again, "n") == policy
    assert again.current_agents == 3


def test_a_decision() -> None:
    policy = ScalingPolicy(id="p", namespace="n", template=AgentSpec())
    decision, _ = decide(policy, PoolLoad(1, 1, 1, 6), Pressure(cpu=0.5), PoolMemory(), 5.0)
    message = pb.ScalingDecision()
    fill_decision(message, decision)
    assert (message.action, message.current_agents, message.recommended_agents) == (pb.SCALING_ACTION_SCALE_UP, 1, 10)
    assert (message.pressure.pool, message.pressure.cpu, message.pressure.system) == (7.0, 0.5, 0.1)
    assert message.time.seconds == 5


def test_actions_are_those_of_the_contract() -> None:
    named = {name.removeprefix("SCALING_ACTION_"): number for name, number in pb.ScalingAction.items() if number}
    assert {member.name: member.value for member in Action} == named
