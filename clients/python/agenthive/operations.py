# ruff: noqa: ASYNC109 - `timeout` is sent as the deadline of the call, it is not a wait of ours
"""The calls for operators: plugins, health and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf import struct_pb2, wrappers_pb2

from agenthive.connection import Connection, new_request_id
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import plugin_service_pb2 as plugin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    import grpc

    from agenthive.payload import JsonValue
    from agenthive.v1.orchestrator_service_pb2 import HealthCheckResponse, Metric
    from agenthive.v1.plugin_service_pb2 import Plugin


_SERVING: Final = 1


class OperationCalls(Connection):
    """Plugins, health, metrics. Every call raises a HiveError; `timeout` is its deadline in seconds."""

    async def health(self, *, this_replica_only: bool = False, timeout: float | None = None) -> HealthCheckResponse:
        """Return how the server that answers and its components are, with the other replicas unless told not to."""
        request = orchestrator.HealthCheckRequest(this_replica_only=this_replica_only)
        return await self._call(self._orchestrator.HealthCheck, request, timeout)

    async def serving(self, name: str = "", *, timeout: float | None = None) -> bool:
        """Say whether a name may receive traffic, as load balancers ask it (grpc.health.v1); no token is needed.

        Empty is the server as a whole, others are `readiness`, `liveness` and each service. Raises NotFound for a name
        nobody knows. It does not wait for a server that is away.
        """
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        # Messages of one field, number 1; these have the same bytes, and no stubs are needed.
        request = wrappers_pb2.StringValue(value=name).SerializeToString()
        return wrappers_pb2.Int32Value.FromString(await self._call(ask, request, timeout)).value == _SERVING

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
