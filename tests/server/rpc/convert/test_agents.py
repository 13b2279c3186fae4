"""Specifications and agents there and back."""

from __future__ import annotations

import pytest
from agenthive.v1 import agent_pb2 as pb
from agenthive_server.kernel.agent_verbs import ShownAgent
from agenthive_server.kernel.agents import Agent, AgentSpec, RestartMode
from agenthive_server.rpc.convert.agents import fill_agent, fill_spec, spec_from
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

CONFIG = Struct()
CONFIG.update({"image": "x"})
PROCESS = pb.ProcessDriver(
    command=["a", "{task_id}"],
    mode=pb.PROCESS_MODE_AGENT,
    environment=[pb.EnvironmentVariable(name="A", value="b")],
    limits=pb.ProcessLimits(open_files=10),
)


@pytest.mark.parametrize(
    "message",
    [
        pb.AgentSpec(),
        pb.AgentSpec(remote=pb.RemoteDriver(), slots=3, weight=0.5, labels={"k": "v"}, runner_labels={"r": "s"}),
        pb.AgentSpec(process=PROCESS, start_timeout=Duration(seconds=5)),
        pb.AgentSpec(scripted=pb.ScriptedDriver(task_time=Duration(seconds=1), hang=True)),
        pb.AgentSpec(custom=pb.CustomDriver(name="container", config=CONFIG)),
        pb.AgentSpec(
            restart_policy=pb.RestartPolicy(mode=pb.RESTART_MODE_ALWAYS, maximum_restarts=2),
            stop_grace=Duration(),
            capabilities=["python"],
            display_name="d",
            role="r",
        ),
    ],
)
def test_a_specification_that_was_written_reads_the_same(message: pb.AgentSpec) -> None:
    spec = spec_from(message, "spec")
    written = pb.AgentSpec()
    fill_spec(written, spec)
    assert spec_from(pb.AgentSpec.FromString(written.SerializeToString()), "spec") == spec
    assert written.WhichOneof("driver") == (message.WhichOneof("driver") or "remote")


def test_drivers_are_kept_as_bytes_of_their_message() -> None:
    spec = spec_from(pb.AgentSpec(process=PROCESS), "spec")
    assert (spec.driver, pb.ProcessDriver.FromString(spec.driver_config)) == ("process", PROCESS)
    custom = pb.CustomDriver(name="container", config=CONFIG)
    spec = spec_from(pb.AgentSpec(custom=custom), "spec")
    assert (spec.driver, pb.CustomDriver.FromString(spec.driver_config)) == ("container", custom)


def test_defaults() -> None:
    spec = spec_from(pb.AgentSpec(), "spec")
    assert spec == AgentSpec()
    assert spec.restart.mode is RestartMode.ON_FAILURE
    # A grace of zero is a wish, not the lack of one.
    assert spec_from(pb.AgentSpec(stop_grace=Duration()), "spec").stop_grace == 0.0
    assert spec_from(pb.AgentSpec(custom=pb.CustomDriver(name="container")), "spec").start_timeout == 120.0


def test_an_agent_is_told_with_what_follows_from_leases_and_session() -> None:
    agent = Agent(namespace="n", id="a", revision=2, spec=AgentSpec(), restarts=(1.0, 2.0), next_start_time=9.0)
    message = pb.Agent()
    fill_agent(message, agent, ShownAgent("BUSY", 3, 0.5))
    assert (message.agent_id, message.state, message.open_lease_count) == ("a", pb.AGENT_STATE_BUSY, 3)
    assert (message.context_usage, message.restart_count, message.next_start_time.seconds) == (0.5, 2, 9)
