"""What is installed, over a real port."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import plugin_service_pb2 as pb
from agenthive_server.plugin.standing import ActReport, PluginReport, State

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]


async def test_plugins_are_listed_by_name_page_by_page(edge: Edge) -> None:
    assert not (await edge.plugins.ListPlugins(pb.ListPluginsRequest())).plugins
    edge.installed.plugins = [PluginReport(name=name) for name in ("security", "context", "workflow")]
    page = await edge.plugins.ListPlugins(pb.ListPluginsRequest(page_size=2))
    assert [plugin.name for plugin in page.plugins] == ["context", "security"]
    rest = await edge.plugins.ListPlugins(pb.ListPluginsRequest(page_size=2, page_token=page.next_page_token))
    assert [plugin.name for plugin in rest.plugins] == ["workflow"]
    assert not rest.next_page_token


async def test_one_plugin_is_told_with_its_settings(edge: Edge, failure: Failure) -> None:
    services = ("agenthive.v1.SecurityService",)
    act = ActReport("INTERCEPTOR", "Authenticate", "IDENTIFY", 7, 1, 0.25)
    edge.installed.plugins = [
        PluginReport(
            name="security", state=State.ENABLED, config={"a": 1}, services=services, failure="CLOSED", acts=(act,)
        )
    ]
    plugin = (await edge.plugins.GetPlugin(pb.GetPluginRequest(name="security"))).plugin
    assert (plugin.state, dict(plugin.config), list(plugin.services)) == (
        pb.PLUGIN_STATE_ENABLED,
        {"a": 1},
        list(services),
    )
    assert plugin.failure_mode == pb.PLUGIN_FAILURE_MODE_CLOSED
    (shown,) = plugin.acts
    assert (shown.kind, shown.name, shown.stage) == (pb.PLUGIN_ACT_KIND_INTERCEPTOR, "Authenticate", "IDENTIFY")
    assert (shown.call_count, shown.failure_count, shown.total_time.nanos) == (7, 1, 250_000_000)
    failed = await failure(edge.plugins.GetPlugin(pb.GetPluginRequest(name="none")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "PLUGIN_NOT_FOUND")


@pytest.mark.parametrize("verb", ["Enable", "Disable", "Configure"])
async def test_what_is_not_installed_cannot_be_switched(edge: Edge, failure: Failure, verb: str) -> None:
    request = getattr(pb, f"{verb}PluginRequest")(name="security")
    failed = await failure(getattr(edge.plugins, f"{verb}Plugin")(request))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "PLUGIN_NOT_FOUND")


async def test_settings_are_bounded(edge: Edge, failure: Failure) -> None:
    request = pb.ConfigurePluginRequest(name="security")
    request.config["text"] = "x" * 300_000
    failed = await failure(edge.plugins.ConfigurePlugin(request))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failed.details["BadRequest"].field_violations[0].field == "config"
