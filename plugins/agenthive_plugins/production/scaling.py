"""How many agents a pool should have: a pure decision on its load, with bounds, cooldown and hysteresis.

The load is the larger of two: the tasks held and waiting for each slot of the pool, and the pressure on the hive, which
is the mean of five indicators (processors, memory, waiting tasks, response times, errors). Above the upper threshold
the pool grows: to where its own load is at the threshold (the rule of Kubernetes' horizontal pod autoscaler), or by up
to three when it is the hive that is pressed. It shrinks one by one, when the load was below the lower threshold for the
whole time of stabilization, and only if what is left would not have to grow again. A pool for which there is nothing to
do never grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from agenthive_server.plugin.api import AgentSpec

LABEL: Final = "agenthive.pool"
"""The label the agents of a pool have."""
STEADY: Final = 0.8
"""How sure a decision to leave things as they are is."""


class Action(IntEnum):
    """What is done with a pool; numbers as in the protos."""

    SCALE_UP = 1
    SCALE_DOWN = 2
    MAINTAIN = 3


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """A pool of like agents and how it follows the load. Times in seconds."""

    id: str
    namespace: str
    template: AgentSpec
    min_agents: int = 1
    max_agents: int = 20
    scale_up_threshold: float = 0.7
    scale_down_threshold: float = 0.2
    cooldown: float = 300.0
    stabilization: float = 300.0
    drain_grace: float = 300.0
    disabled: bool = False
    revision: int = 1


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What a pool has to do: its agents, the slots of each, tasks they hold, and waiting tasks they could take.

    `failed` are its agents that failed within the cooldown: as many new ones would most likely fail, too.
    """

    agents: int
    slots: int
    held: int
    waiting: int
    failed: int = 0

    @property
    def demand(self) -> int:
        """Tasks there are for it."""
        return self.held + self.waiting

    def per_slot(self, agents: int) -> float:
        """Return the tasks for each slot if there were so many agents."""
        if not self.demand:
            return 0.0
        return self.demand / (agents * self.slots) if agents else math.inf


@dataclass(frozen=True, kw_only=True)
class Pressure:
    """What drives a decision. Those of the hive are 0 for none; some may be above 1."""

    pool: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    pending_tasks: float = 0.0
    response_time: float = 0.0
    error_rate: float = 0.0

    @property
    def system(self) -> float:
        """The pressure on the hive."""
        return (self.cpu + self.memory + self.pending_tasks + self.response_time + self.error_rate) / 5.0


def system_pressure(
    *,
    cpu_percent: float | None,
    memory_percent: float | None,
    pending_tasks: float | None,
    response_time_p95_ms: float | None,
    error_rate_percent: float | None,
) -> Pressure:
    """Return the pressure on the hive; what was not measured presses nobody."""
    return Pressure(
        cpu=max(0.0, (cpu_percent or 0.0) - 70.0) / 30.0,
        memory=max(0.0, (memory_percent or 0.0) - 80.0) / 20.0,
        pending_tasks=min(1.0, (pending_tasks or 0.0) / 50.0),
        response_time=max(0.0, (response_time_p95_ms or 0.0) - 1_000.0) / 2_000.0,
        error_rate=min(1.0, (error_rate_percent or 0.0) / 10.0),
    )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How many agents there should be, and why."""

    action: Action
    reason: str
    confidence: float
    current: int
    recommended: int
    pressure: Pressure
    time: float
    agent_ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PoolMemory:
    """What is remembered of a pool between two decisions: when its size changed, and since when the load is low."""

    changed: float = 0.0
    low_since: float = 0.0
    last: Decision | None = None
    acting_since: float = 0.0
    """When a server began to do what was decided, zero when none is at it."""


def decide(
    policy: ScalingPolicy, load: PoolLoad, hive: Pressure, memory: PoolMemory, now: float, *, force: bool = False
) -> tuple[Decision, PoolMemory]:
    """Return what to do with a pool, and what to remember. `force` skips the cooldown and the time of stabilization."""
    own = load.per_slot(load.agents)
    pressure = replace(hive, pool=min(own, 1e6))
    total = max(own, hive.system) if load.demand else 0.0
    low = total < policy.scale_down_threshold
    memory = replace(memory, low_since=(memory.low_since or now) if low else 0.0)
    wanted, reason = _wanted(policy, load, hive, total)
    ready, why_not = _ready(policy, load, memory, now, wanted - load.agents)
    outside = load.agents > policy.max_agents or (load.agents < policy.min_agents and not load.failed)
    if wanted == load.agents or not (ready or force or outside):
        text = reason if wanted == load.agents else f"{reason}, but {why_not}"
        return _decision(load, load.agents, text, STEADY, pressure, now), memory
    confidence = min(1.0, total) if wanted > load.agents else max(0.0, 1.0 - total)
    decision = _decision(load, wanted, reason, confidence, pressure, now)
    return decision, replace(memory, changed=now, last=decision)


def _wanted(policy: ScalingPolicy, load: PoolLoad, hive: Pressure, total: float) -> tuple[int, str]:
    """Return how many agents there should be if nothing had to be waited for, and why."""
    agents = load.agents
    if agents < policy.min_agents:
        return policy.min_agents, f"{agents} agents are fewer than the {policy.min_agents} there must be"
    if agents > policy.max_agents:
        return policy.max_agents, f"{agents} agents are more than the {policy.max_agents} there may be"
    if total > policy.scale_up_threshold:
        if agents == policy.max_agents:
            return agents, "the load is high, and there are as many agents as there may be"
        return min(policy.max_agents, _grown(policy, load, hive)), _why(load, hive, "above", policy.scale_up_threshold)
    if total < policy.scale_down_threshold and agents > policy.min_agents:
        left = load.per_slot(agents - 1)
        if left > policy.scale_up_threshold:
            return agents, "the load is low, but one agent less would be too few"
        return agents - 1, _why(load, hive, "below", policy.scale_down_threshold)
    return agents, "the load is as it should be"


def _grown(policy: ScalingPolicy, load: PoolLoad, hive: Pressure) -> int:
    for_own = math.ceil(load.demand / (load.slots * policy.scale_up_threshold))
    pressed = hive.system > policy.scale_up_threshold
    for_hive = load.agents + max(1, int(3 * hive.system)) if pressed else 0
    return max(for_own, for_hive, load.agents + 1)


def _why(load: PoolLoad, hive: Pressure, where: str, threshold: float) -> str:
    own = f"{load.held} tasks held and {load.waiting} waiting on {load.agents} agents of {load.slots} slots"
    return f"{own}, pressure on the hive {hive.system:.2f}: the load is {where} {threshold:g}"


def _ready(policy: ScalingPolicy, load: PoolLoad, memory: PoolMemory, now: float, change: int) -> tuple[bool, str]:
    """Return whether the waiting is over, and if not, what for."""
    if change > 0 and load.failed:
        return False, f"{load.failed} of its agents have failed within {policy.cooldown:g} s"
    left = memory.changed + policy.cooldown - now if memory.changed else 0.0
    if left > 0:
        return False, f"the size changed {now - memory.changed:.0f} s ago, and {policy.cooldown:g} s have to pass"
    if change < 0 and memory.low_since and now - memory.low_since < policy.stabilization:
        return False, f"it has been so for {now - memory.low_since:.0f} s, and {policy.stabilization:g} s are asked for"
    return True, ""


def _decision(  # one place that fills the record
    load: PoolLoad, wanted: int, reason: str, confidence: float, pressure: Pressure, now: float
) -> Decision:
    action = Action.MAINTAIN
    if wanted != load.agents:
        action = Action.SCALE_UP if wanted > load.agents else Action.SCALE_DOWN
    return Decision(
        action=action,
        reason=reason,
        confidence=round(confidence, 3),
        current=load.agents,
        recommended=wanted,
        pressure=pressure,
        time=now,
    )
