"""Templates: what callers write is what the kernel's own edge makes of it, and comes back as it was written."""

from __future__ import annotations

import pytest
from agenthive.v1 import agent_pb2 as pb
from agenthive_plugins.production.template import fill_template, template_from
from agenthive_server.rpc.convert.agents import fill_spec, spec_from
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

SETTINGS = Struct()
SETTINGS.update({"image": "x"})


@pytest.mark.parametrize(
    "message",
    [
        pb.AgentSpec(process=pb.ProcessDriver(command=["true", "{input}"], mode=pb.PROCESS_MODE_AGENT)),
        pb.AgentSpec(scripted=pb.ScriptedDriver(task_time=Duration(seconds=3))),
        pb.AgentSpec(custom=pb.CustomDriver(name="lambda", config=SETTINGS)),
        pb.AgentSpec(
            display_name="n",
            role="r",
            capabilities=["a", "b"],
            slots=7,
            labels={"k": "v"},
            weight=2.5,
            restart_policy=pb.RestartPolicy(
                mode=pb.RESTART_MODE_ALWAYS,
                initial_interval=Duration(seconds=2),
                backoff_coefficient=3,
                maximum_interval=Duration(seconds=9),
                maximum_restarts=4,
                window=Duration(seconds=60),
            ),
            stop_grace=Duration(),
            start_timeout=Duration(seconds=5),
            runner_labels={"zone": "a"},
            process=pb.ProcessDriver(command=["true"]),
        ),
    ],
)
def test_a_template_is_what_spawning_would_make_of_it(message: pb.AgentSpec) -> None:
    made = template_from(message, "spec")
    assert made == spec_from(message, "spec")
    ours, theirs = pb.AgentSpec(), pb.AgentSpec()
    fill_template(ours, made)
    fill_spec(theirs, made)
    assert ours == theirs
    assert template_from(ours, "spec") == made
