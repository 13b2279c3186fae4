"""How one installed plugin stands: what is wanted of it, whether it takes part, why, and what it came to so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from agenthive_server.kernel.health import Reading, Status
from agenthive_server.telemetry import Sample

from .cell import OPEN, Act, Cell
from .configuration import shown
from .instance import Instance
from .metrics import PluginMetrics
from .registration import Registration
from .wanted import Wish


class State(Enum):
    """Whether a plugin takes part; names as in the protos."""

    DISABLED = "DISABLED"
    ENABLED = "ENABLED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class ActReport:
    """What an act came to."""

    kind: str
    name: str
    stage: str
    calls: int
    failures: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginReport:
    """A plugin as operators see it."""

    name: str
    summary: str = ""
    state: State = State.DISABLED
    reason: str = ""
    state_time: float = 0.0
    config: Mapping[str, Any] = field(default_factory=dict)
    services: tuple[str, ...] = ()
    failure: str = "OPEN"
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    required: bool = False
    revision: int = 0
    acts: tuple[ActReport, ...] = ()
    tasks: int = 0
    handler_lag: int = 0


class Standing:
    """One installed plugin. `settle` says how it stands from now on."""

    def __init__(self, registration: Registration[Any], wish: Wish, *, required: bool, now: float) -> None:
        self.registration = registration
        self.name = registration.name
        self.wish = wish
        self.required = required
        self.instance: Instance | None = None
        # Whether that only refuses, because the plugin cannot be opened here.
        self.sealed = False
        # Those it makes itself; they outlive an instance, because a counter never goes back.
        self.metrics = PluginMetrics(registration.name)
        self.state = State.DISABLED
        self.reason = ""
        self.since = now
        # What acts of instances that are closed came to: calls, failures, seconds.
        self._past: dict[tuple[str, str], tuple[int, int, float]] = {}

    @property
    def on(self) -> bool:
        """Whether it takes part."""
        return self.instance is not None and not self.sealed

    def settle(self, state: State, reason: str, now: float) -> None:
        """Note its state; since when counts from the last time it was another."""
        if state is not self.state or reason != self.reason:
            self.since = now
        self.state, self.reason = state, reason

    def retire(self, cell: Cell) -> None:
        """Keep the counts of an instance that is closed: a counter never goes back."""
        for act in cell.acts:
            calls, failures, seconds = self._past.get((act.kind, act.name), (0, 0, 0.0))
            self._past[act.kind, act.name] = (calls + act.calls, failures + act.failures, seconds + act.seconds)

    def reading(self) -> Reading | None:
        """Return how it is, None for one that is switched off."""
        if self.sealed:
            return Reading(Status.DOWN, f"nothing passes without it: {self.reason}")
        if self.state is State.FAILED:
            return Reading(Status.DEGRADED, self.reason)
        if self.instance is None:
            return None
        cell, said = self.instance.cell, self.instance.reading
        failures = cell.recent_failures
        if failures and said.status is Status.OK:
            doing = "what it should look at is refused" if cell.closed else "it is skipped when it fails"
            return Reading(Status.DEGRADED, f"{failures} failures in the last {cell.bounds.window:g} s; {doing}")
        return said

    def report(self, handler_lag: int) -> PluginReport:
        """Return it as operators see it."""
        registration, instance = self.registration, self.instance
        acts = () if instance is None else tuple(_act_report(act) for act in instance.cell.acts if act.kind != OPEN)
        return PluginReport(
            name=self.name,
            summary=registration.summary,
            state=self.state,
            reason=self.reason,
            state_time=self.since,
            config=shown(registration, self.wish.config),
            services=registration.services,
            failure=registration.failure.name,
            requires=registration.requires,
            after=registration.after,
            required=self.required,
            revision=self.wish.revision,
            acts=acts,
            tasks=len(instance.cell.tasks) if instance else 0,
            handler_lag=handler_lag,
        )

    def samples(self, handler_lag: int) -> Iterator[Sample]:
        """Yield its metrics, and those it makes itself."""
        who = ("plugin", self.name)
        yield Sample("agenthive_plugin_enabled", (who,), float(self.on))
        totals = dict(self._past)
        if self.instance is not None:
            for act in self.instance.cell.acts:
                calls, failures, seconds = totals.get((act.kind, act.name), (0, 0, 0.0))
                totals[act.kind, act.name] = (calls + act.calls, failures + act.failures, seconds + act.seconds)
            yield Sample("agenthive_plugin_tasks", (who,), len(self.instance.cell.tasks))
            yield Sample("agenthive_plugin_handler_lag_events", (who,), handler_lag)
            yield from self.metrics.samples()
        for (kind, name), (calls, failures, seconds) in totals.items():
            if kind == OPEN:
                continue
            labels = (who, ("kind", kind.lower()), ("act", name))
            yield Sample("agenthive_plugin_calls_total", labels, calls)
            yield Sample("agenthive_plugin_failures_total", labels, failures)
            yield Sample("agenthive_plugin_seconds_total", labels, seconds)


def _act_report(act: Act) -> ActReport:
    return ActReport(act.kind, act.name, act.stage, act.calls, act.failures, act.seconds)
