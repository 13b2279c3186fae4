"""`hive plugins`: what is installed in the server, what is on; switching it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agenthive.cli.arguments import RequestId
from agenthive.cli.call import run, take
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.plugin_service_pb2 import Plugin

group = new_group("See the plugins of the server, and switch them while it runs.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin.", show_default=False)]


@group.command("list", cls=HiveCommand)
def list_plugins(context: typer.Context) -> None:
    """List the plugins that are installed, with their state.

    \b
    Example:
      hive plugins list -o json | jq -r '.[] | select(.state == "PLUGIN_STATE_FAILED") | .name'
    """
    from agenthive.cli.plugin_views import listing

    async def body(client: Client, terminal: Terminal) -> None:
        found, _ = await take(client.list_plugins(), 0)
        terminal.show(found, lambda: listing(found))

    run(context, body)


@group.command("show", cls=HiveCommand)
def show(context: typer.Context, name: Name) -> None:
    """Show all about one plugin: its settings in effect, what it does and what that costs.

    \b
    Example:
      hive plugins show security
    """
    _with_plugin(context, lambda client: client.get_plugin(name))


@group.command("get", cls=HiveCommand, hidden=True)
def get(context: typer.Context, name: Name) -> None:
    """Show all about one plugin, as `show` does.

    \b
    Example:
      hive plugins get security
    """
    _with_plugin(context, lambda client: client.get_plugin(name))


@group.command("enable", cls=HiveCommand)
def enable(context: typer.Context, name: Name, request_id: RequestId = None) -> None:
    """Switch a plugin on, now and after every restart.

    One that the server switched off because it failed is tried again.

    \b
    Example:
      hive plugins enable production
    """
    _with_plugin(context, lambda client: client.enable_plugin(name, request_id=request_id))


@group.command("disable", cls=HiveCommand)
def disable(context: typer.Context, name: Name, request_id: RequestId = None) -> None:
    """Switch a plugin off, now and after every restart. Calls in flight finish with it.

    \b
    Example:
      hive plugins disable production
    """
    _with_plugin(context, lambda client: client.disable_plugin(name, request_id=request_id))


@group.command("configure", cls=HiveCommand)
def configure(
    context: typer.Context,
    name: Name,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE…", hidden=True),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="A JSON object of settings; - is stdin.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="All settings: what is left out gets its default.")
    ] = False,
    request_id: RequestId = None,
) -> None:
    """Change settings of a plugin, now and after every restart; the others stay as they are.

    Values are JSON, or else text.

    \b
    Examples:
      hive plugins configure production check_seconds=10 'webhooks=["https://hooks.example/hive"]'
      hive plugins configure production --replace --file production.json
    """
    from agenthive.cli.values import pairs

    given = _settings_of(file) if file is not None else {}
    given.update({key: _value(text) for key, text in pairs(settings, "setting").items()})
    if not given and not replace:
        raise typer.BadParameter("no settings are given: KEY=VALUE, --file, or --replace for the defaults")

    async def change(client: Client) -> Plugin:
        from google.protobuf.json_format import MessageToDict

        if replace:
            return await client.configure_plugin(name, given, request_id=request_id)
        present = await client.get_plugin(name)
        # Whoever changed them in between is not overruled.
        config: dict[str, Any] = {**MessageToDict(present.config), **given}
        return await client.configure_plugin(name, config, revision=present.revision, request_id=request_id)

    _with_plugin(context, change)


def _settings_of(file: Path) -> dict[str, Any]:
    from agenthive.cli.values import read_bytes

    try:
        found = json.loads(read_bytes("-" if str(file) == "-" else f"@{file}"))
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{file} holds no JSON object")
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _with_plugin(context: typer.Context, act: Callable[[Client], Awaitable[Plugin]]) -> None:
    from agenthive.cli.plugin_views import record

    async def body(client: Client, terminal: Terminal) -> None:
        plugin = await act(client)
        terminal.show(plugin, lambda: record(plugin))

    run(context, body)
