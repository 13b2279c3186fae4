"""The agents of a fleet file: recorded at the start, so that the local runner starts them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from agenthive.v1 import agent_pb2

from agenthive_server.kernel.agent_verbs import AgentVerbs, NewAgent
from agenthive_server.kernel.agents import OVER, AgentSpec, RestartMode, RestartPolicy
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import NotFound
from agenthive_server.rpc.convert.agents import spec_from
from agenthive_server.settings import FleetAgent

NAMESPACE = "default"


def spec_of(agent: FleetAgent, config_dir: Path) -> AgentSpec:
    """Return what a fleet file's agent should be; `{python}` and `{config_dir}` are replaced."""

    def filled(text: str) -> str:
        return text.replace("{python}", sys.executable).replace("{config_dir}", str(config_dir))

    message = agent_pb2.AgentSpec(role=agent.role, capabilities=agent.capabilities, slots=agent.slots)
    message.weight = agent.weight
    message.labels.update(agent.labels)
    mode = agent_pb2.PROCESS_MODE_AGENT if agent.mode == "agent" else agent_pb2.PROCESS_MODE_TASK
    driver = message.process
    driver.command.extend(filled(word) for word in agent.command)
    driver.mode = mode
    driver.working_directory = filled(agent.working_directory)
    for name, value in agent.environment.items():
        driver.environment.add(name=name, value=filled(value))
    driver.limits.memory_bytes = agent.memory_bytes
    driver.limits.cpu_seconds = agent.cpu_seconds
    spec = spec_from(message, "agents")
    mode_name = agent.restart.upper().replace("-", "_")
    return AgentSpec(**{**vars(spec), "restart": RestartPolicy(mode=RestartMode(mode_name))})


async def muster(agents: AgentVerbs, fleet: Sequence[FleetAgent], config_dir: Path) -> None:
    """Record the agents of the fleet; those that are there get what the file says now, those that ended start again."""
    for entry in fleet:
        spec = spec_of(entry, config_dir)
        caller = Caller(namespace=NAMESPACE, principal="fleet", method="fleet")
        try:
            known = await agents.get(NAMESPACE, entry.id)
        except NotFound:
            # Another replica may record them at this moment.
            await agents.spawn(caller, [NewAgent(id=entry.id, spec=spec)], use_existing=True)
            continue
        if known.spec != spec:
            await agents.update(caller, entry.id, spec, 0)
        if known.state in OVER or known.spec.driver_config != spec.driver_config:
            await agents.restart(caller, entry.id)
