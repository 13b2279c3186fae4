"""Plugins as people see them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from agenthive.cli import tables, text
from agenthive.cli.values import short_name
from agenthive.v1 import plugin_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType


def listing(plugins: Iterable[pb.Plugin]) -> RenderableType:
    """Return plugins as a table."""
    table = tables.new_table("PLUGIN", "STATE", "IF IT FAILS", "*SUMMARY", "*WHY")
    for each in plugins:
        table.add(
            tables.plain(each.name),
            tables.state(state(each)),
            tables.plain(_failure(each)),
            tables.plain(each.summary),
            tables.plain(each.state_reason, "dim"),
        )
    return tables.or_nothing(table, "no plugins are installed")


def record(plugin: pb.Plugin) -> RenderableType:
    """Return all about a plugin."""
    from rich.console import Group

    config = _exact(MessageToDict(plugin.config))
    rows = tables.record([
        ("plugin", plugin.name),
        ("summary", plugin.summary),
        ("state", tables.state(state(plugin))),
        ("since", text.date_time(plugin.state_time) if plugin.HasField("state_time") else ""),
        ("why", plugin.state_reason),
        ("if it fails", _failure(plugin)),
        ("required", "yes" if plugin.required else ""),
        ("requires", tables.words(plugin.requires)),
        ("after", tables.words(plugin.after)),
        ("services", tables.words(plugin.services)),
        ("tasks", str(plugin.task_count) if plugin.task_count else ""),
        ("events behind", str(plugin.handler_lag_count) if plugin.handler_lag_count else ""),
        ("revision", str(plugin.revision) if plugin.revision else ""),
        ("settings", json.dumps(config, indent=2, ensure_ascii=False) if config else ""),
    ])  # fmt: skip
    return Group(rows, "", _acts(plugin.acts)) if plugin.acts else rows


def state(plugin: pb.Plugin) -> str:
    """Return the state's short name."""
    return short_name(pb.PluginState.DESCRIPTOR, plugin.state)


def _exact(value: Any) -> Any:
    """Return a setting as it was written: a Struct's numbers are doubles."""
    if isinstance(value, dict):
        return {key: _exact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_exact(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _failure(plugin: pb.Plugin) -> str:
    modes = {pb.PLUGIN_FAILURE_MODE_OPEN: "skipped", pb.PLUGIN_FAILURE_MODE_CLOSED: "refuses"}
    return modes.get(plugin.failure_mode, "")


def _acts(acts: Iterable[pb.PluginAct]) -> RenderableType:
    table = tables.new_table("ACT", "KIND", "STAGE", "CALLS", "FAILURES", "EACH")
    for act in acts:
        seconds = act.total_time.seconds + act.total_time.nanos / 1e9
        table.add(
            tables.plain(act.name),
            short_name(pb.PluginActKind.DESCRIPTOR, act.kind).lower(),
            act.stage.lower(),
            str(act.call_count),
            tables.plain(str(act.failure_count), "red" if act.failure_count else ""),
            _each(seconds / act.call_count) if act.call_count else "",
        )
    return table


def _each(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
