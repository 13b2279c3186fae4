"""`hive plugins`: what is installed in the server, what is on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.call import run, take
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.plugin_service_pb2 import Plugin

group = new_group("See the plugins of the server.")


@group.command("list", cls=HiveCommand)
def list_plugins(context: typer.Context) -> None:
    """List the plugins that are installed, with their state.

    \b
    Example:
      hive plugins list -o json | jq -r '.[] | select(.state == "PLUGIN_STATE_FAILED") | .name'
    """

    async def body(client: Client, terminal: Terminal) -> None:
        found, _ = await take(client.list_plugins(), 0)
        terminal.show(found, lambda: _table(found))

    run(context, body)


@group.command("get", cls=HiveCommand)
def get(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin.", show_default=False)],
) -> None:
    """Show all about one plugin, with its settings in effect.

    \b
    Example:
      hive plugins get security
    """

    async def body(client: Client, terminal: Terminal) -> None:
        plugin = await client.get_plugin(name)
        terminal.show(plugin, lambda: _record(plugin))

    run(context, body)


def _state(plugin: Plugin) -> str:
    from agenthive.cli.values import short_name
    from agenthive.v1 import plugin_service_pb2

    return short_name(plugin_service_pb2.PluginState.DESCRIPTOR, plugin.state)


def _table(plugins: Iterable[Plugin]) -> RenderableType:
    from agenthive.cli import tables

    table = tables.new_table("PLUGIN", "STATE", "*SUMMARY", "*WHY")
    for each in plugins:
        table.add(
            tables.plain(each.name),
            tables.state(_state(each)),
            tables.plain(each.summary),
            tables.plain(each.state_reason, "dim"),
        )
    return tables.or_nothing(table, "no plugins are installed")


def _record(plugin: Plugin) -> RenderableType:
    from google.protobuf.json_format import MessageToDict

    from agenthive.cli import tables

    config = MessageToDict(plugin.config)
    return tables.record([
        ("plugin", plugin.name),
        ("summary", plugin.summary),
        ("state", tables.state(_state(plugin))),
        ("why", plugin.state_reason),
        ("services", tables.words(plugin.services)),
        ("settings", json.dumps(config, indent=2, ensure_ascii=False) if config else ""),
    ])  # fmt: skip
