"""The plugin's own state on a memory store, and a clock moved by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from agenthive_server.plugin.state import PluginState
from agenthive_server.testing.hive import Hive, open_hive


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


@pytest.fixture
def state(hive: Hive) -> PluginState:
    return PluginState(hive.kernel.state, "security")
