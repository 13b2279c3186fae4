"""The production plugin survives what every plugin must."""

from __future__ import annotations

import pytest
from agenthive_plugins.production.plugin import registration
from agenthive_server.testing.plugin_suite import PluginCase, PluginSuite

QUICK = {
    "sample_interval_seconds": 0.05,
    "alert_interval_seconds": 0.05,
    "sla_interval_seconds": 0.05,
    "scaling_interval_seconds": 0.05,
    "health_interval_seconds": 0.05,
    "security_interval_seconds": 0.05,
    "anomaly_interval_seconds": 0.05,
    "backup_enabled": False,
}


class TestProduction(PluginSuite):
    @pytest.fixture
    def case(self) -> PluginCase:
        return PluginCase(registration=registration, settings=QUICK, others={"anomaly_sensitivity": 3.0})
