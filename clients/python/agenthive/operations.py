# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""The calls for operators: plugins, health and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import struct_pb2

from agenthive.connection import Connection, new_request_id
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import plugin_service_pb2 as plugin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from agenthive.payload import JsonValue
    from agenthive.v1.orchestrator_service_pb2 import HealthCheckResponse, Metric
    from agenthive.v1.plugin_service_pb2 import Plugin


class OperationCalls(Connection):
    """Plugins, health, metrics. Every call raises a HiveError; `timeout` is its deadline in seconds."""

    async def health(self, *, timeout: float | None = None) -> HealthCheckResponse:
        """Return how the server and its components are."""
        return await self._call(self._orchestrator.HealthCheck, orchestrator.HealthCheckRequest(), timeout)

    async def metrics(self, name_prefix: str = "", *, timeout: float | None = None) -> Sequence[Metric]:
        """Return the server's counters and gauges whose name begins so, by name."""
        request = orchestrator.GetMetricsRequest(name_prefix=name_prefix)
        return (await self._call(self._orchestrator.GetMetrics, request, timeout)).metrics

    async def list_plugins(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[Plugin]:
        """Yield the plugins that are installed, by name; `timeout` is for each page."""
        request = plugin.ListPluginsRequest(page_size=page_size)
        while True:
            page = await self._call(self._plugins.ListPlugins, request, timeout)
            for each in page.plugins:
                yield each
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def get_plugin(self, name: str, *, timeout: float | None = None) -> Plugin:
        """Return one plugin. Raises NotFound when it is not installed."""
        return (await self._call(self._plugins.GetPlugin, plugin.GetPluginRequest(name=name), timeout)).plugin

    async def enable_plugin(self, name: str, *, request_id: str | None = None, timeout: float | None = None) -> Plugin:
        """Switch a plugin on, for good. Raises PluginConflict, and FailedPrecondition when it cannot be opened."""
        request = plugin.EnablePluginRequest(request_id=new_request_id(request_id), name=name)
        return (await self._call(self._plugins.EnablePlugin, request, timeout)).plugin

    async def disable_plugin(self, name: str, *, request_id: str | None = None, timeout: float | None = None) -> Plugin:
        """Switch a plugin off, for good. Raises PluginConflict when another that is on requires it."""
        request = plugin.DisablePluginRequest(request_id=new_request_id(request_id), name=name)
        return (await self._call(self._plugins.DisablePlugin, request, timeout)).plugin

    async def configure_plugin(
        self,
        name: str,
        config: Mapping[str, JsonValue],
        *,
        revision: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Plugin:
        """Replace all settings of a plugin; what is left out gets its default.

        With `revision` only if that is still the plugin's, else RevisionMismatch. Raises InvalidArgument, which names
        the setting.
        """
        request = plugin.ConfigurePluginRequest(
            request_id=new_request_id(request_id), name=name, config=struct_pb2.Struct(), revision=revision
        )
        request.config.update(config)
        return (await self._call(self._plugins.ConfigurePlugin, request, timeout)).plugin
