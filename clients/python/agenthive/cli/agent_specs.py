"""`hive agents spawn` and `hive agents update`: what an agent should be."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from agenthive.cli.arguments import AgentId, Capabilities, Labels, RequestId, Revision, Role
from agenthive.cli.call import run
from agenthive.cli.failures import ExitCode
from agenthive.cli.options import settings_of
from agenthive.cli.values import duration, enum_value, pairs

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.agent_pb2 import Agent, AgentSpec


class Mode(StrEnum):
    """How a process agent is spoken to."""

    TASK = "task"
    AGENT = "agent"


class Restart(StrEnum):
    """What happens when an agent ends by itself."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


Slots: TypeAlias = Annotated[
    int | None, typer.Option("--slots", metavar="N", min=1, help="Tasks it takes at once.", show_default=False)
]
Name: TypeAlias = Annotated[str, typer.Option("--name", metavar="TEXT", help="A name for people.", show_default=False)]
Weight: TypeAlias = Annotated[
    float | None, typer.Option("--weight", metavar="X", help="Share in the weighted strategy.", show_default=False)
]
RestartMode: TypeAlias = Annotated[
    Restart | None,
    typer.Option(
        "--restart", metavar="never|on-failure|always", help="When it ends by itself. Default on-failure.",
        show_default=False,
    ),
]  # fmt: skip
StopGrace: TypeAlias = Annotated[
    float | None,
    typer.Option("--stop-grace", metavar="DURATION", parser=duration, help="Time a stop leaves held tasks (10s)."),
]


def spawn(
    context: typer.Context,
    command: Annotated[list[str] | None, typer.Argument(metavar="-- CMD ARG...", hidden=True)] = None,
    agent_id: Annotated[str, typer.Option("--id", metavar="ID", help="Its id; else the server makes one.")] = "",
    role: Role = "",
    capability: Capabilities = None,
    slots: Slots = None,
    name: Name = "",
    label: Labels = None,
    weight: Weight = None,
    process: Annotated[bool, typer.Option("--process", help="Run a command on a runner's machine.")] = False,
    mode: Annotated[
        Mode, typer.Option("--mode", metavar="task|agent", help="One process for each task, or one for them all.")
    ] = Mode.TASK,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="A variable; never a secret. Repeat.")
    ] = None,
    workdir: Annotated[
        str, typer.Option("--workdir", metavar="DIR", help="Folder to run in; else a private one.")
    ] = "",
    remote: Annotated[
        bool, typer.Option("--remote", help="Start nothing: a worker connects as this agent. The default.")
    ] = False,
    restart: RestartMode = None,
    stop_grace: StopGrace = None,
    use_existing: Annotated[
        bool, typer.Option("--use-existing", help="If the id is in use, answer with that agent.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is ready; exit 1 if it fails.")] = False,
    request_id: RequestId = None,
) -> None:
    """Spawn an agent.

    Either a command on a runner's machine, or a place for a worker that connects by itself.

    \b
    Examples:
      hive agents spawn --id rev-1 --role reviewer -c python --process -- python review.py
      hive agents spawn --id llm-1 --slots 4 --process --mode agent --restart always -- ./agent
      hive agents spawn --id far-1 --role builder --remote
    """
    if remote and (process or command):
        raise typer.BadParameter("--remote starts nothing: leave out --process and the command")
    if process and not command:
        raise typer.BadParameter("--process wants a command after --, for example: -- python agent.py")
    spec = _new_spec(name, role, capability, slots, label, weight, restart, stop_grace)
    if command:
        from agenthive.v1 import agent_pb2

        spec.process.command.extend(command)
        spec.process.mode = agent_pb2.PROCESS_MODE_AGENT if mode is Mode.AGENT else agent_pb2.PROCESS_MODE_TASK
        spec.process.working_directory = workdir
        for variable, value in pairs(env, "--env").items():
            spec.process.environment.add(name=variable, value=value)
    else:
        spec.remote.SetInParent()
    timeout = settings_of(context).timeout

    async def body(client: Client, terminal: Terminal) -> ExitCode | None:
        from agenthive.cli import agent_views
        from agenthive.v1 import orchestrator_service_pb2 as orchestrator

        policy = orchestrator.ID_CONFLICT_POLICY_USE_EXISTING if use_existing else 0
        agent = await client.spawn(
            spec=spec, agent_id=agent_id, id_conflict_policy=policy, request_id=request_id  # type: ignore[arg-type] # zero is the default
        )  # fmt: skip
        code = None
        if wait:
            agent, code = await _wait_ready(client, agent, timeout)
        terminal.show(agent, lambda: agent_views.agent(agent))
        return code

    run(context, body)


async def _wait_ready(client: Client, agent: Agent, timeout: float | None) -> tuple[Agent, ExitCode | None]:  # noqa: ASYNC109 - None waits for ever; the agent as it stands is wanted then
    from agenthive.v1 import agent_pb2

    waiting = (agent_pb2.AGENT_STATE_STARTING, agent_pb2.AGENT_STATE_WAKING, agent_pb2.AGENT_STATE_UNSPECIFIED)
    ready = (agent_pb2.AGENT_STATE_IDLE, agent_pb2.AGENT_STATE_BUSY)
    try:
        async with asyncio.timeout(timeout):
            while agent.state in waiting:
                await asyncio.sleep(0.2)
                agent = await client.get_agent(agent.agent_id)
    except TimeoutError:
        return agent, ExitCode.DEADLINE
    return agent, None if agent.state in ready else ExitCode.OUTCOME


def update(
    context: typer.Context,
    agent_id: AgentId,
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", metavar="NAME", help="Its capabilities from now on; repeat for more."),
    ] = None,
    slots: Slots = None,
    name: Name = "",
    label: Labels = None,
    remove_label: Annotated[
        list[str] | None, typer.Option("--remove-label", metavar="KEY", help="Take a label away; repeat for more.")
    ] = None,
    weight: Weight = None,
    restart: RestartMode = None,
    stop_grace: StopGrace = None,
    revision: Revision = 0,
    request_id: RequestId = None,
) -> None:
    """Change what an agent should be; what is not named stays. What it holds goes on.

    \b
    Example:
      hive agents update reviewer-1 --slots 2 -c python -c rust --label team=blue
    """
    changes = _new_spec(name, "", capability, slots, label, weight, restart, stop_grace)

    async def body(client: Client, terminal: Terminal) -> None:
        from agenthive.cli import agent_views

        current = await client.get_agent(agent_id)
        spec = current.spec
        if changes.capabilities:
            del spec.capabilities[:]
        for key in remove_label or ():
            spec.labels.pop(key, None)
        spec.MergeFrom(changes)
        agent = await client.update_agent(
            agent_id, spec, revision=revision or current.revision, request_id=request_id
        )  # fmt: skip
        terminal.show(agent, lambda: agent_views.agent(agent))

    run(context, body)


def _new_spec(
    name: str,
    role: str,
    capabilities: list[str] | None,
    slots: int | None,
    labels: list[str] | None,
    weight: float | None,
    restart: Restart | None,
    stop_grace: float | None,
) -> AgentSpec:
    from agenthive.v1 import agent_pb2

    spec = agent_pb2.AgentSpec(
        display_name=name, role=role, capabilities=capabilities or (), slots=slots or 0, labels=pairs(labels),
        weight=weight or 0.0,
    )  # fmt: skip
    if restart is not None:
        spec.restart_policy.mode = enum_value(agent_pb2.RestartMode.DESCRIPTOR, restart)
    if stop_grace is not None:
        spec.stop_grace.FromNanoseconds(round(stop_grace * 1e9))
    return spec
