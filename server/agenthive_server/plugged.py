"""Plugins as the settings want them: found, checked, and put into a host for one server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.plugin.cell import Bounds
from agenthive_server.plugin.configuration import configured
from agenthive_server.plugin.configuration import shown as shown_config
from agenthive_server.plugin.host import PluginHost
from agenthive_server.plugin.instance import Server
from agenthive_server.plugin.overview import First
from agenthive_server.plugin.rack import Dispatch, Patience, Socket
from agenthive_server.plugin.registry import Registry
from agenthive_server.plugin.wanted import WantedSet
from agenthive_server.setting_tables import ServerSettings
from agenthive_server.settings import PluginsSettings, Settings, SettingsError
from agenthive_server.storage.address import is_postgres, masked


def first_states(settings: PluginsSettings, registry: Registry) -> dict[str, First]:
    """Return what the settings say of each plugin.

    Raises `SettingsError` for one that is not installed, and for settings that do not fit.
    """
    found: dict[str, First] = {}
    for name in {**dict.fromkeys(settings.enabled), **settings.by_name}:
        raw = dict(settings.by_name.get(name, {}))
        required = raw.pop("required", False)
        if not isinstance(required, bool):
            raise SettingsError(f"plugins.{name}.required: expected true or false")
        _check(registry, name, raw)
        found[name] = First(enabled=name in settings.enabled, required=required, config=raw)
    return found


def _check(registry: Registry, name: str, raw: Mapping[str, Any]) -> None:
    registration = registry.find(name)
    if registration is None:
        if name in registry.broken:
            return
        installed = ", ".join(each.name for each in registry) or "none"
        raise SettingsError(f"plugins.{name}: no such plugin is installed; there are {installed}")
    try:
        configured(registration, raw)
    except KernelError as error:
        field = error.field.removeprefix("config").removeprefix(".")
        raise SettingsError(f"plugins.{name}{'.' if field else ''}{field}: {error.message}") from None


def shown_settings(settings: Settings, registry: Registry) -> dict[str, Any]:
    """Return all settings in effect, for people: those of plugins with their defaults, without their secrets.

    Raises `SettingsError` for settings of plugins that do not fit.
    """
    shown: dict[str, Any] = msgspec.to_builtins(settings)
    del shown["plugins"]["by_name"]
    if is_postgres(settings.server.store):
        shown["server"]["store"] = masked(settings.server.store)
    shown["server"]["redis"] = masked(settings.server.redis) if settings.server.redis else ""
    for name, first in first_states(settings.plugins, registry).items():
        registration = registry.find(name)
        effective = shown_config(registration, first.config) if registration is not None else {}
        shown["plugins"][name] = {"required": first.required, **effective}
    return shown


def for_looking(settings: Settings, folder: str) -> Settings:
    """Return settings for a server that is only looked at: no store, no agents, reached by nobody."""
    server = ServerSettings(
        listen="127.0.0.1:0", data_dir=folder, store="memory:", runner=False, log_level=settings.server.log_level
    )
    return msgspec.structs.replace(settings, server=server, agents=[])


def build_host(
    settings: PluginsSettings,
    registry: Registry,
    kernel: Kernel,
    server: Server,
    socket: Socket,
    dispatch: Dispatch,
    exposed: Callable[[], bool],
) -> PluginHost:
    """Return the host of a server's plugins, not opened. Raises `SettingsError`."""
    host = PluginHost(
        registry,
        first_states(settings, registry),
        server,
        WantedSet(kernel.decisions, kernel.state, server.clock),
        socket,
        dispatch,
        bounds=bounds(settings),
        patience=patience(settings),
        exposed=exposed,
        follows=kernel.following is not None,
        place=kernel.replicas.me,
    )
    kernel.observers.append(host.heard)
    return host


def bounds(settings: PluginsSettings) -> Bounds:
    """Return what a plugin may do before it is switched off."""
    return Bounds(
        inline=settings.inline_seconds,
        call=settings.call_seconds,
        failures=max(1, settings.maximum_failures),
        window=settings.window_seconds,
        tasks=settings.maximum_tasks,
        block=settings.block_seconds,
    )


def patience(settings: PluginsSettings) -> Patience:
    """Return how long the host waits for a plugin."""
    return Patience(open=settings.open_seconds, grace=settings.grace_seconds)
