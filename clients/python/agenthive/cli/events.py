"""`hive events`: everything that happens, as lines for people or JSON lines for scripts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agenthive.cli.arguments import Labels
from agenthive.cli.call import run
from agenthive.cli.completion import event_types
from agenthive.cli.options import settings_of
from agenthive.cli.text import now
from agenthive.cli.values import duration, enum_value, pairs

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.events import EventStream
    from agenthive.v1.event_pb2 import EventFilter


def events(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Go on for ever; the default. Else end at the head.")
    ] = True,
    after: Annotated[str, typer.Option("--after", metavar="CURSOR", help="Begin after this cursor.")] = "",
    earliest: Annotated[bool, typer.Option("--earliest", help="Begin with the oldest event that is kept.")] = False,
    snapshot: Annotated[bool, typer.Option("--snapshot", help="Begin with agents and open tasks as they are.")] = False,
    since: Annotated[
        float | None, typer.Option("--since", metavar="DURATION", parser=duration, help="Begin that long ago: 10m.")
    ] = None,
    event_type: Annotated[
        list[str] | None,
        typer.Option("--type", "-t", metavar="TYPE", autocompletion=event_types, help="Only task-failed, ...; repeat."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="TASK", help="Only this task; repeat for more.")
    ] = None,
    tree: Annotated[str, typer.Option("--tree", metavar="TASK", help="Only this task and all below it.")] = "",
    agent: Annotated[
        list[str] | None, typer.Option("--agent", metavar="AGENT", help="Only this agent; repeat for more.")
    ] = None,
    role: Annotated[
        list[str] | None, typer.Option("--role", metavar="ROLE", help="Only this role; repeat for more.")
    ] = None,
    label: Labels = None,
    min_severity: Annotated[
        str, typer.Option("--min-severity", metavar="info|warning|error", help="Only as severe or more.")
    ] = "",
    output_class: Annotated[
        str,
        typer.Option("--output-class", metavar="lifecycle|output|all", help="Facts, output and progress, or both."),
    ] = "lifecycle",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="End after N events.")] = 0,
    lasting: Annotated[
        float | None, typer.Option("--for", metavar="DURATION", parser=duration, help="End after that long.")
    ] = None,
) -> None:
    """Show what happens: every event once, in order.

    It goes on across restarts of the server. When it ends, also by Ctrl-C, the cursor is printed to stderr:
    `--after CURSOR` goes on there, missing nothing. Narrow terminals show beginnings of ids, pipes and files all.

    \b
    Examples:
      hive events
      hive events --since 10m --no-follow --min-severity warning
      hive events --tree 4f0c --output-class all
      hive events --earliest -o json | jq -c 'select(.task_failed)'
    """
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    options = _start(after=after, earliest=earliest, snapshot=snapshot, since=since)
    options["filter"] = _filter(
        event_type, min_severity, agent_ids=agent, task_ids=task, root_task_id=tree, roles=role,
        labels=pairs(label), all_namespaces=all_namespaces,
    )  # fmt: skip
    options["event_class"] = enum_value(orchestrator.EventClass.DESCRIPTOR, output_class)
    patience = settings_of(context).timeout

    async def body(client: Client, terminal: Terminal) -> None:
        give_up_after = patience if follow or patience is not None else client.timeout
        stream = client.events(follow=follow, give_up_after=give_up_after, **options)
        lasted = asyncio.timeout(lasting)
        try:
            async with lasted, stream:
                await _print(stream, terminal, limit)
        except TimeoutError:
            if not lasted.expired():
                raise
        finally:
            _tell_cursor(terminal, stream.cursor)

    run(context, body)


def _start(*, after: str, earliest: bool, snapshot: bool, since: float | None) -> dict[str, Any]:
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    if bool(after) + earliest + snapshot + (since is not None) > 1:
        raise typer.BadParameter("--after, --earliest, --snapshot and --since exclude each other")
    if earliest:
        return {"start": orchestrator.STREAM_START_EARLIEST}
    if snapshot:
        return {"start": orchestrator.STREAM_START_SNAPSHOT_THEN_TAIL}
    if since is not None:
        return {"start_time": datetime.fromtimestamp(now() - since, UTC)}
    return {"after": after}


def _filter(types: list[str] | None, severity: str, **fields: Any) -> EventFilter:
    from agenthive.v1 import event_pb2

    return event_pb2.EventFilter(
        types=[enum_value(event_pb2.EventType.DESCRIPTOR, each) for each in types or ()],
        minimum_severity=enum_value(event_pb2.Severity.DESCRIPTOR, severity) if severity else 0,  # type: ignore[arg-type] # a number of the enum
        **fields,
    )


async def _print(stream: EventStream, terminal: Terminal, limit: int) -> None:
    from agenthive.cli.event_text import event_line

    count = 0
    async for event in stream:
        if terminal.json:
            terminal.line(event)
        else:
            console = terminal.out
            console.print(event_line(event, width=console.width if console.is_terminal else 0), soft_wrap=True)
        count += 1
        if count == limit:
            return


def _tell_cursor(terminal: Terminal, cursor: str) -> None:
    """Write where to go on to stderr, for people and scripts alike."""
    if cursor:
        terminal.remark(f"cursor: {cursor}", {"cursor": cursor})
