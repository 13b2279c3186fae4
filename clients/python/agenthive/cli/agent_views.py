"""Agents as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthive.cli import tables, text
from agenthive.cli.values import short_name
from agenthive.v1 import agent_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from agenthive.v1.agent_pb2 import Agent


def agent_state(agent: Agent) -> str:
    """Return the short name of an agent's state."""
    return short_name(agent_pb2.AgentState.DESCRIPTOR, agent.state)


def slots(agent: Agent) -> str:
    """Return how many slots are taken, of how many."""
    return f"{agent.open_lease_count}/{agent.spec.slots or 1}"


def agents(found: Iterable[Agent], at: float, *, narrow: bool = False) -> RenderableType:
    """Return a line for each agent."""
    table = tables.new_table(
        "AGENT", "STATE", ">SLOTS", "ROLE", "*CAPABILITIES", "?DRIVER", ">AGE", "*WHY", narrow=narrow
    )
    for agent in found:
        table.add(
            tables.plain(agent.agent_id),
            tables.state(agent_state(agent)),
            slots(agent),
            tables.plain(agent.spec.role),
            tables.plain(tables.words(agent.spec.capabilities)),
            agent.spec.WhichOneof("driver") or "remote",
            text.age(agent.create_time, at),
            tables.plain(agent.state_reason, "dim"),
        )
    return tables.or_nothing(table, "no agents")


def agent(one: Agent) -> RenderableType:
    """Return all about one agent."""
    spec = one.spec
    return tables.record([
        ("agent", one.agent_id),
        ("namespace", one.namespace if one.namespace != "default" else ""),
        ("name", spec.display_name),
        ("state", tables.state(agent_state(one))),
        ("why", one.state_reason),
        ("role", spec.role),
        ("capabilities", tables.words(spec.capabilities)),
        ("slots", f"{slots(one)} taken"),
        ("labels", tables.labels(spec.labels.items())),
        ("weight", f"{spec.weight:g}" if spec.weight else ""),
        ("driver", _driver(one)),
        ("restart", _restart(one)),
        ("context used", f"{one.context_usage:.0%}" if one.context_usage else ""),
        ("session", one.session_id),
        ("runner session", one.runner_session_id),
        ("created", text.date_time(one.create_time)),
        ("changed", text.date_time(one.update_time)),
        ("next start", text.date_time(one.next_start_time)),
        ("revision", str(one.revision)),
    ])  # fmt: skip


def _driver(one: Agent) -> str:
    kind = one.spec.WhichOneof("driver") or "remote"
    if kind == "process":
        process = one.spec.process
        mode = short_name(agent_pb2.ProcessMode.DESCRIPTOR, process.mode).lower()
        return f"process ({'task' if mode == 'unspecified' else mode}): {' '.join(process.command)}"
    return f"{kind}: {one.spec.custom.name}" if kind == "custom" else kind


def _restart(one: Agent) -> str:
    mode = short_name(agent_pb2.RestartMode.DESCRIPTOR, one.spec.restart_policy.mode)
    mode = "on-failure" if mode == "UNSPECIFIED" else mode.lower().replace("_", "-")
    return f"{mode}, {one.restart_count} so far" if one.restart_count else mode
