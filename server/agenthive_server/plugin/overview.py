"""What the plugins of a server are like: for operators, for health, for metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agenthive_server.kernel.errors import NotFound
from agenthive_server.kernel.health import Reading, Status
from agenthive_server.telemetry import Sample

from .configuration import Raw
from .rack import Rack
from .registry import Registry
from .standing import PluginReport, Standing, State


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """What the settings file says of a plugin: how it is until someone switches it."""

    enabled: bool = False
    required: bool = False
    config: Raw = field(default_factory=dict)


class Overview:
    """Answers from memory."""

    def __init__(self, registry: Registry, first: Mapping[str, First], rack: Rack) -> None:
        self._registry = registry
        self._first = first
        self._rack = rack

    def standing(self, name: str) -> Standing:
        """Return how a plugin stands. Raises `NotFound`, and `Refused` for one that cannot be used."""
        standing = self._rack.standings.get(name)
        if name in self._registry.broken or (standing is not None and self._registry.find(name) is None):
            raise self._registry.missing(name)
        if standing is not None:
            return standing
        raise NotFound(f"no plugin {name!r} is installed", reason="PLUGIN_NOT_FOUND", metadata={"name": name})

    def services(self) -> dict[str, str]:
        """Return the services plugins bring, on or off, each with the plugin's name."""
        return {service: registration.name for registration in self._registry for service in registration.services}

    def report(self, name: str) -> PluginReport:
        """Return one plugin as operators see it. Raises `NotFound`."""
        standing, why = self._rack.standings.get(name), self._registry.broken.get(name)
        if standing is not None:
            return self.of(standing)
        return _broken(name, why) if why is not None else self.of(self.standing(name))

    def reports(self) -> list[PluginReport]:
        """Return all plugins that are installed, by name."""
        found = [self.of(standing) for standing in self._rack.standings.values()]
        known = self._rack.standings
        found += [_broken(name, why) for name, why in self._registry.broken.items() if name not in known]
        return sorted(found, key=lambda report: report.name)

    def of(self, standing: Standing) -> PluginReport:
        """Return a plugin as operators see it."""
        return standing.report(self._rack.dispatch.lag(standing.name))

    def probe(self) -> list[tuple[str, Reading]]:
        """Return a reading for each plugin that is on, or should be."""
        readings = []
        for name, standing in self._rack.standings.items():
            reading = standing.reading()
            if reading is not None:
                failing = self._rack.dispatch.failing(name) if standing.on else ""
                if failing and reading.status is Status.OK:
                    reading = Reading(Status.DEGRADED, failing)
                readings.append((f"plugin/{name}", reading))
        for name, why in self._registry.broken.items():
            if self._first.get(name, First()).enabled and name not in self._rack.standings:
                readings.append((f"plugin/{name}", Reading(Status.DEGRADED, why)))
        return readings

    def metrics(self) -> Iterator[Sample]:
        """Yield what plugins cost, and what they measure themselves."""
        for name, standing in self._rack.standings.items():
            yield from standing.samples(self._rack.dispatch.lag(name))


def _broken(name: str, why: str) -> PluginReport:
    return PluginReport(name=name, state=State.FAILED, reason=why)
