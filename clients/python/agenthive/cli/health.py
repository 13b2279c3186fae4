"""`hive health` and `hive metrics`: how the server is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.call import open_client, reach, run
from agenthive.cli.failures import ExitCode, Failure, failure_document, sentence
from agenthive.cli.options import settings_of
from agenthive.cli.terminal import Terminal
from agenthive.cli.values import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agenthive.cli.options import Settings
    from agenthive.client import Client
    from agenthive.errors import HiveError
    from agenthive.v1.orchestrator_service_pb2 import HealthCheckResponse, Metric

_POLL_SECONDS = 0.25


def health(
    context: typer.Context,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when something is DEGRADED.")] = False,
    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", parser=duration, help="Wait so long for it to serve."),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option("--probe", metavar="NAME", help="Only ask whether a name serves, as load balancers do."),
    ] = None,
    replica: Annotated[bool, typer.Option("--replica", help="Leave out the other replicas.")] = False,
) -> None:
    """Say how the server and its parts are, and the other replicas where there are some.

    --probe asks for readiness, liveness or a service, and needs no token: for health checks of containers.

    Exit 0 when it serves, 1 with --strict when it is degraded, 2 when it is down, draining or out of reach.

    That is about the replica that answers. Its component `replicas` is degraded while another one is away, and for a
    minute after another one was lost; --replica leaves that out, too.

    \b
    Examples:
      hive health --wait 30 && hive run build
      hive health --strict -o json | jq .components
      hive health --probe readiness
      hive health --server REPLICA:50051 --replica
    """
    settings = settings_of(context)
    terminal = Terminal(settings)
    if probe is not None:
        raise typer.Exit(_probe(settings, terminal, probe))
    try:
        answer, failure = asyncio.run(_ask(settings, 0.0 if wait is None else wait, alone=replica))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except Failure as error:
        answer, failure = None, error
    if answer is not None:
        terminal.show(answer, lambda: _view(answer, settings, terminal.out.width))
        raise typer.Exit(_code(answer, strict=strict))
    if failure is not None:
        text = str(failure) if isinstance(failure, Failure) else sentence(failure)
        terminal.fail(text, failure_document(failure))
    raise typer.Exit(2)


def _probe(settings: Settings, terminal: Terminal, name: str) -> int:
    """Show whether a name serves; return the exit code."""
    from rich.text import Text

    from agenthive.errors import HiveError

    try:
        serves = asyncio.run(_serving(settings, name))
    except (HiveError, Failure) as error:
        terminal.fail(str(error) if isinstance(error, Failure) else sentence(error), failure_document(error))
        return 2
    terminal.show({"name": name, "serving": serves}, lambda: Text("SERVING" if serves else "NOT_SERVING"))
    return 0 if serves else 2


async def _serving(settings: Settings, name: str) -> bool:
    async with open_client(settings) as client:
        await reach(client, settings)
        return await client.serving(name, timeout=min(client.timeout, 5.0))


async def _ask(
    settings: Settings, wait: float, *, alone: bool
) -> tuple[HealthCheckResponse | None, Failure | HiveError | None]:
    """Return the answer, a serving one if there is one within `wait` seconds, or why there is none."""
    from agenthive.errors import HiveError

    answer: HealthCheckResponse | None = None
    failure: Failure | HiveError | None = None
    loop = asyncio.get_running_loop()
    end = loop.time() + wait
    async with open_client(settings) as client:
        while True:
            left = max(end - loop.time(), min(client.timeout, 5.0))
            try:
                await reach(client, settings)
                answer = await client.health(this_replica_only=alone, timeout=min(left, client.timeout))
                if _serves(answer):
                    return answer, None
            except (HiveError, Failure) as error:
                answer, failure = None, error
            if loop.time() >= end:
                return answer, failure
            await asyncio.sleep(_POLL_SECONDS)


def _serves(answer: HealthCheckResponse) -> bool:
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    up = (orchestrator.HEALTH_STATUS_OK, orchestrator.HEALTH_STATUS_DEGRADED)
    return answer.status in up and not answer.draining


def _code(answer: HealthCheckResponse, *, strict: bool) -> int:
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    if not _serves(answer):
        return 2
    return int(strict and answer.status != orchestrator.HEALTH_STATUS_OK)


def status_name(number: int) -> str:
    """Return the short name of a health status."""
    from agenthive.cli.values import short_name
    from agenthive.v1 import orchestrator_service_pb2 as orchestrator

    return short_name(orchestrator.HealthStatus.DESCRIPTOR, number)


def _view(answer: HealthCheckResponse, settings: Settings, width: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from agenthive.cli import tables
    from agenthive.cli.replica_views import replica_lines
    from agenthive.cli.text import age, clean, now

    at = now()
    head = Text.assemble(tables.state(status_name(answer.status)), f" {settings.server}, version {answer.version}")
    if answer.start_time.ByteSize():
        head.append(f", up {age(answer.start_time, at)}")
    if answer.replica_id:
        head.append(f", replica {clean(answer.replica_id)}")
    if answer.draining:
        head.append(", draining", style="yellow")
    counts = (
        f"{answer.agents_in_contact} agents in contact, {answer.queued_tasks} tasks queued, {answer.held_tasks} held,"
        f" {answer.last_sequence} events"
    )
    table = tables.new_table("COMPONENT", "STATUS", ">LATENCY", ">SINCE", "*WHY")
    for each in answer.components:
        latency = each.latency.ToNanoseconds() / 1e6
        table.add(
            tables.plain(each.name),
            tables.state(status_name(each.status)),
            f"{latency:.1f} ms" if latency else "",
            age(each.since_time, at),
            tables.plain(each.reason),
        )
    replicas = replica_lines(answer, width=width)
    parts = ([Text(), *replicas] if replicas else []) + ([Text(), table] if table.row_count else [])
    return Group(head, Text(counts), *parts)


def metrics(
    context: typer.Context,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only names that begin so.", show_default=False)
    ] = "",
) -> None:
    """Show the counters and gauges of the server.

    \b
    Examples:
      hive metrics
      hive metrics agenthive_tasks -o json | jq '.[] | {name, value}'
    """

    async def body(client: Client, terminal: Terminal) -> None:
        found = list(await client.metrics(prefix))
        terminal.show(found, lambda: _metrics_view(found))

    run(context, body)


def _metrics_view(found: list[Metric]) -> RenderableType:
    from agenthive.cli import tables

    table = tables.new_table("METRIC", ">VALUE", "*LABELS")
    for each in found:
        value = f"{each.value:.0f}" if each.value.is_integer() else f"{each.value:g}"
        labels = tables.labels((label.name, label.value) for label in each.labels)
        table.add(tables.plain(each.name), value, tables.plain(labels))
    return tables.or_nothing(table, "no metrics")
