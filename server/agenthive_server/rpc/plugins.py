"""PluginService: what is installed, what is on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from agenthive.v1 import plugin_service_pb2 as pb

from agenthive_server.kernel.errors import NotFound, NotImplementedHere
from agenthive_server.plugin.api import Call

from . import validate
from .calls import next_page, page_after
from .convert.values import fill_json


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A plugin as operators see it; `state` is a name of `PluginState` in the protos."""

    name: str
    summary: str = ""
    state: str = "DISABLED"
    reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    services: tuple[str, ...] = ()


class PluginRegistry(Protocol):
    """Knows the plugins."""

    def installed(self) -> Sequence[Installed]:
        """Return all that are installed, in any order."""


class NoPlugins:
    """A registry without plugins."""

    def installed(self) -> Sequence[Installed]:
        """Return nothing."""
        return ()


_FIXED: Final = "this server cannot switch plugins while it runs; change its settings and start it again"


class PluginMethods:
    """Lists what a registry knows. Switching is not there yet."""

    def __init__(self, registry: PluginRegistry) -> None:
        self._registry = registry

    async def ListPlugins(self, request: pb.ListPluginsRequest, call: Call) -> pb.ListPluginsResponse:
        """List the plugins by name."""
        size = validate.page_size(request.page_size)
        after = page_after(call, request)
        wanted = [p for p in self._registry.installed() if after is None or p.name > after[1]]
        page = sorted(wanted, key=lambda plugin: plugin.name)[: size + 1]
        token = next_page(call, request, page, size, lambda plugin: ("", plugin.name))
        response = pb.ListPluginsResponse(next_page_token=token)
        for plugin in page[:size]:
            _fill(response.plugins.add(), plugin)
        return response

    async def GetPlugin(self, request: pb.GetPluginRequest, call: Call) -> pb.GetPluginResponse:
        """Get one plugin."""
        name = validate.required_id(request.name, "name")
        for plugin in self._registry.installed():
            if plugin.name == name:
                response = pb.GetPluginResponse()
                _fill(response.plugin, plugin)
                return response
        raise NotFound(f"no plugin {name!r} is installed", reason="PLUGIN_NOT_FOUND", metadata={"name": name})

    async def EnablePlugin(self, request: pb.EnablePluginRequest, call: Call) -> pb.EnablePluginResponse:
        """Refuse."""
        raise NotImplementedHere(_FIXED)

    async def DisablePlugin(self, request: pb.DisablePluginRequest, call: Call) -> pb.DisablePluginResponse:
        """Refuse."""
        raise NotImplementedHere(_FIXED)

    async def ConfigurePlugin(self, request: pb.ConfigurePluginRequest, call: Call) -> pb.ConfigurePluginResponse:
        """Refuse."""
        raise NotImplementedHere(_FIXED)


def _fill(message: pb.Plugin, plugin: Installed) -> None:
    message.name = plugin.name
    message.summary = plugin.summary
    message.state = pb.PluginState.Value(f"PLUGIN_STATE_{plugin.state}")
    message.state_reason = plugin.reason
    fill_json(message.config, json.dumps(dict(plugin.config)))
    message.services.extend(plugin.services)
