"""The look of replicas: one a line, and below what is wrong with those that did not answer themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

from agenthive.cli import tables, text
from agenthive.cli.values import short_name
from agenthive.v1 import orchestrator_service_pb2 as orchestrator

WIDE: Final = 120
"""Columns of a terminal that has room for everything."""

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from agenthive.cli.tables import Listing
    from agenthive.v1.orchestrator_service_pb2 import ComponentHealth, HealthCheckResponse, Replica


def replica_lines(answer: HealthCheckResponse, *, width: int, most: int | None = None) -> list[RenderableType]:
    """Return a table of the replicas and a line for each trouble of another one; nothing where there is only one.

    With `most`, no more lines than that besides the table's head.
    """
    replicas = answer.replicas
    if len(replicas) < 2:
        return []
    shown = len(replicas) if most is None or len(replicas) <= most else max(1, most - 1)
    lines: list[RenderableType] = [_table(replicas[:shown], narrow=width < WIDE)]
    if shown < len(replicas):
        lines.append(Text(f"... {len(replicas) - shown} more", style="dim"))
    others = [each for each in replicas if each.replica_id != answer.replica_id]
    troubles = [_trouble(replica, trouble) for replica in others for trouble in replica.troubles]
    return lines + troubles[: None if most is None else max(0, most - len(replicas))]


def _table(replicas: Iterable[Replica], *, narrow: bool) -> Listing:
    table = tables.new_table(
        "*REPLICA", "?ADDRESS", "STATUS", ">SESSIONS", ">HELD", ">CALLS/S", ">LAG", "?>BEHIND", ">CPU", ">RSS",
        "*ROLES", narrow=narrow,
    )  # fmt: skip
    for each in replicas:
        table.add(
            tables.plain(each.replica_id),
            tables.plain(each.address),
            tables.state(replica_status(each)),
            str(each.sessions),
            str(each.held_tasks),
            f"{each.calls_per_second:.0f}",
            f"{each.event_loop_lag.ToNanoseconds() / 1e6:.0f} ms",
            str(each.lag_events),
            f"{each.cpu_cores:.0%}",
            text.size(each.memory_bytes),
            tables.plain(tables.words(each.roles)),
        )
    return table


def replica_status(replica: Replica) -> str:
    """Return what a replica does, or when it serves, how well it does that."""
    if replica.state == orchestrator.REPLICA_STATE_SERVING:
        return short_name(orchestrator.HealthStatus.DESCRIPTOR, replica.status)
    return short_name(orchestrator.ReplicaState.DESCRIPTOR, replica.state) if replica.state else "?"


def _trouble(replica: Replica, trouble: ComponentHealth) -> Text:
    status = tables.state(short_name(orchestrator.HealthStatus.DESCRIPTOR, trouble.status))
    what = f"{trouble.name} of {replica.replica_id}: {trouble.reason}"
    line = Text.assemble(status, f" {text.clean(what)}")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line
