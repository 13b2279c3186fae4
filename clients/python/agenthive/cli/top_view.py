"""The look of `hive top`: health, throughput, replicas, agents with what they hold, who waits, what happened last."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from agenthive.cli import tables, text
from agenthive.cli.agent_views import agent_state, slots
from agenthive.cli.event_text import event_line
from agenthive.cli.health import status_name
from agenthive.cli.replica_views import replica_lines
from agenthive.cli.task_views import task_state

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agenthive.cli.top_board import Board
    from agenthive.v1.task_pb2 import Task

_ROOM = 12  # lines a terminal must have for replicas to be shown as well
_ORDER = {"BUSY": 0, "SUSPECT": 1, "IDLE": 2, "STARTING": 3, "WAKING": 3, "DRAINING": 3, "SLEEPING": 4}


def view(board: Board, server: str, at: float, *, width: int, height: int | None) -> RenderableType:
    """Return the whole picture; with a height, no taller than that."""
    narrow = height is not None and width < 100
    parts: list[RenderableType] = [*_head(board, server, at), Text()]
    if board.health is not None and (height is None or height - len(parts) >= _ROOM):
        most = None if height is None else max(1, (height - len(parts)) // 3 - 2)
        if replicas := replica_lines(board.health, width=width, most=most):
            parts += [*replicas, Text()]
    lines = sum(part.row_count + 1 if isinstance(part, Table) else 1 for part in parts)
    shown, waiting, events = _shares(board, None if height is None else height - lines)
    parts.append(_agents(board, shown, narrow=narrow))
    if waiting:
        parts += [Text(), _waiting(board, waiting, at, narrow=narrow)]
    if events:
        parts.append(Text())
        parts += [event_line(event, width=width) for event in islice(reversed(board.recent), events)]
    return Group(*parts)


def _shares(board: Board, height: int | None) -> tuple[int, int, int]:
    """Return how many agents, waiting tasks and events are shown in that many lines."""
    if height is None:
        return len(board.agents), min(len(board.waiting), 20), 0
    room = height - 2  # the head of the agents and the line that says how many more there are
    waiting = min(len(board.waiting), room // 4) if room >= 8 else 0
    room -= waiting + 2 if waiting else 0
    shown = min(len(board.agents), max(1, room * 2 // 3))
    return shown, waiting, max(0, room - shown - 1)


def _head(board: Board, server: str, at: float) -> list[RenderableType]:
    first = Text.assemble(("hive ", "bold"), server, "  ")
    if board.trouble:
        first.append(text.clean(board.trouble), style="bold red")
    elif board.health is not None:
        first.append(tables.state(status_name(board.health.status)))
        first.append(f"  version {board.health.version}, up {text.age(board.health.start_time, at) or '?'}")
        if board.health.replica_id:
            first.append(f", replica {text.clean(board.health.replica_id)}")
        if board.health.draining:
            first.append("  draining", style="yellow")
    counted = board.throughput(at)
    states = ", ".join(f"{count} {name.lower()}" for name, count in board.agent_states().items())
    second = Text.assemble(("agents ", "bold"), f"{len(board.agents)}", f" ({states})" if states else "")
    held = sum(len(tasks) for tasks in board.held.values())
    queued = board.health.queued_tasks if board.health is not None else len(board.waiting)
    second.append("   ").append("tasks ", style="bold").append(f"{held} held, {queued} queued")
    said = ", ".join(f"{counted[name]} {name}" for name in ("delegated", "succeeded", "failed", "retried"))
    third = Text.assemble(("last minute ", "bold"), f"{said}, {counted['events']} events")
    lines: list[RenderableType] = [first, second, third]
    lines += [
        Text.assemble(tables.state(status_name(part.status)), f" {part.name}: {text.clean(part.reason)}")
        for part in (board.health.components if board.health is not None else ())
        if status_name(part.status) != "OK"
    ]
    for line in lines:
        if isinstance(line, Text):
            line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _agents(board: Board, rows: int, *, narrow: bool) -> RenderableType:
    table = tables.new_table("AGENT", "STATE", ">SLOTS", "ROLE", "*TASKS")
    ordered = sorted(board.agents, key=lambda agent: (_ORDER.get(agent_state(agent), 5), agent.agent_id))
    for agent in ordered[:rows]:
        held = board.held.get(agent.agent_id, [])
        table.add(
            tables.plain(agent.agent_id),
            tables.state(agent_state(agent)),
            slots(agent),
            tables.plain(agent.spec.role),
            tables.plain(", ".join(_held(board, task, narrow=narrow) for task in held)),
        )
    if len(ordered) > rows:
        table.add_row(Text(f"... {len(ordered) - rows} more", style="dim"))
    return tables.or_nothing(table, "no agents: hive agents spawn --help")


def _held(board: Board, task: Task, *, narrow: bool) -> str:
    said = board.progress.get(task.task_id)
    done = f" {said.fraction:.0%}{f' {said.text}' if said.text else ''}" if said is not None else ""
    return f"{tables.short_id(task.task_id, narrow=narrow)} {task.spec.type}{done}"


def _waiting(board: Board, rows: int, at: float, *, narrow: bool) -> Table:
    table = tables.new_table("WAITING", "STATE", "TYPE", ">PRIO", ">AGE", "*WHY")
    for task in board.waiting[:rows]:
        table.add(
            tables.plain(tables.short_id(task.task_id, narrow=narrow)),
            tables.state(task_state(task)),
            tables.plain(task.spec.type),
            str(task.spec.priority or 3),
            text.age(task.create_time, at),
            tables.plain(task.input_request.question or task.state_reason, "dim"),
        )
    return table
