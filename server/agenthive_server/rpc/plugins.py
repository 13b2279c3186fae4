"""PluginService: what is installed, what is on; switching it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from agenthive.v1 import plugin_service_pb2 as pb

from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import NotFound
from agenthive_server.plugin.api import Call
from agenthive_server.plugin.standing import PluginReport

from . import validate
from .calls import mutation, next_page, page_after
from .convert.values import fill_json, json_from, set_span, set_time

MAX_CONFIG_BYTES: Final = 256 * 1024


class Plugins(Protocol):
    """Knows the plugins and switches them; the plugin host does."""

    async def fresh(self) -> None:
        """Return when what was switched on other servers is so here too."""

    def reports(self) -> Sequence[PluginReport]:
        """Return all that are installed, in any order."""

    def report(self, name: str) -> PluginReport:
        """Return one. Raises `NotFound`."""

    async def enable(self, caller: Caller, name: str) -> PluginReport:
        """Switch one on."""

    async def disable(self, caller: Caller, name: str) -> PluginReport:
        """Switch one off."""

    async def configure(self, caller: Caller, name: str, raw: Mapping[str, Any], revision: int) -> PluginReport:
        """Change the settings of one."""


class NoPlugins:
    """Knows no plugins."""

    async def fresh(self) -> None:
        """Do nothing."""

    def reports(self) -> Sequence[PluginReport]:
        """Return nothing."""
        return ()

    def report(self, name: str) -> PluginReport:
        """Raise `NotFound`."""
        raise NotFound(f"no plugin {name!r} is installed", reason="PLUGIN_NOT_FOUND", metadata={"name": name})

    async def enable(self, caller: Caller, name: str) -> PluginReport:
        """Raise `NotFound`."""
        return self.report(name)

    async def disable(self, caller: Caller, name: str) -> PluginReport:
        """Raise `NotFound`."""
        return self.report(name)

    async def configure(self, caller: Caller, name: str, raw: Mapping[str, Any], revision: int) -> PluginReport:
        """Raise `NotFound`."""
        return self.report(name)


class PluginMethods:
    """`agenthive.v1.PluginService`."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    async def ListPlugins(self, request: pb.ListPluginsRequest, call: Call) -> pb.ListPluginsResponse:
        """List the plugins by name."""
        size = validate.page_size(request.page_size)
        after = page_after(call, request)
        await self._plugins.fresh()
        wanted = [p for p in self._plugins.reports() if after is None or p.name > after[1]]
        page = sorted(wanted, key=lambda plugin: plugin.name)[: size + 1]
        token = next_page(call, request, page, size, lambda plugin: ("", plugin.name))
        response = pb.ListPluginsResponse(next_page_token=token)
        for plugin in page[:size]:
            _fill(response.plugins.add(), plugin)
        return response

    async def GetPlugin(self, request: pb.GetPluginRequest, call: Call) -> pb.GetPluginResponse:
        """Get one plugin."""
        name = validate.required_id(request.name, "name")
        await self._plugins.fresh()
        response = pb.GetPluginResponse()
        _fill(response.plugin, self._plugins.report(name))
        return response

    async def EnablePlugin(self, request: pb.EnablePluginRequest, call: Call) -> pb.EnablePluginResponse:
        """Switch a plugin on."""
        name = validate.required_id(request.name, "name")
        response = pb.EnablePluginResponse()
        _fill(response.plugin, await self._plugins.enable(mutation(call, request), name))
        return response

    async def DisablePlugin(self, request: pb.DisablePluginRequest, call: Call) -> pb.DisablePluginResponse:
        """Switch a plugin off."""
        name = validate.required_id(request.name, "name")
        response = pb.DisablePluginResponse()
        _fill(response.plugin, await self._plugins.disable(mutation(call, request), name))
        return response

    async def ConfigurePlugin(self, request: pb.ConfigurePluginRequest, call: Call) -> pb.ConfigurePluginResponse:
        """Change the settings of a plugin."""
        name = validate.required_id(request.name, "name")
        revision = validate.between(request.revision, 0, 2**62, "revision")
        text = json_from(request.config, "config")
        validate.text(text, "config", MAX_CONFIG_BYTES)
        response = pb.ConfigurePluginResponse()
        report = await self._plugins.configure(mutation(call, request), name, json.loads(text), revision)
        _fill(response.plugin, report)
        return response


def _fill(message: pb.Plugin, plugin: PluginReport) -> None:
    message.name = plugin.name
    message.summary = plugin.summary
    message.state = pb.PluginState.Value(f"PLUGIN_STATE_{plugin.state.value}")
    message.state_reason = plugin.reason
    fill_json(message.config, json.dumps(dict(plugin.config)))
    message.services.extend(plugin.services)
    message.failure_mode = pb.PluginFailureMode.Value(f"PLUGIN_FAILURE_MODE_{plugin.failure}")
    message.requires.extend(plugin.requires)
    message.after.extend(plugin.after)
    message.required = plugin.required
    message.revision = plugin.revision
    message.task_count = plugin.tasks
    message.handler_lag_count = plugin.handler_lag
    if plugin.state_time:
        set_time(message.state_time, plugin.state_time)
    for act in plugin.acts:
        entry = message.acts.add(name=act.name, stage=act.stage, call_count=act.calls, failure_count=act.failures)
        entry.kind = pb.PluginActKind.Value(f"PLUGIN_ACT_KIND_{act.kind}")
        set_span(entry.total_time, act.seconds)
