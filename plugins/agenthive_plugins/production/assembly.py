"""How the parts of the plugin are put together, in one place."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from agenthive.v1 import production_service_pb2 as pb
from agenthive_server.plugin.api import (
    Background,
    Call,
    Event,
    EventType,
    Handler,
    KernelError,
    Plugin,
    PluginContext,
    Service,
)

from .alert_methods import AlertMethods
from .alerts import Notice
from .config import ProductionConfig, webhooks_of
from .defaults import RULES as BUILT_IN_RULES
from .defaults import TARGETS as BUILT_IN_TARGETS
from .desk import Desk, event_severity
from .ledger import Ledger
from .level_methods import LevelMethods
from .levels import TARGETS, Levels
from .lookout import Lookout
from .loops import Troubles, every
from .measuring import Measuring
from .metrics import STATUS, value_of
from .outbox import Outbox
from .pool_methods import PoolMethods
from .pools import POLICIES, Pools
from .recovery import Recovery
from .recovery_methods import RecoveryMethods
from .sla import Indicator
from .status_methods import StatusMethods
from .watch import RULES, Watch

_HOUR = 3_600.0
_SHOWN = 300.0


class Assembly:
    """All parts of an open plugin: `load`, then `plugin`, at the end `save`."""

    def __init__(self, ctx: PluginContext[ProductionConfig]) -> None:
        self._ctx = ctx
        clock, metrics = ctx.clock, ctx.metrics
        self._troubles = Troubles(ctx.report)
        self._measuring = Measuring(ctx)
        series = self._measuring.series
        self._ledger = ledger = Ledger(ctx.state, clock)
        self._outbox = self._new_outbox()
        self._alerts_told = metrics.counter("alerts_total", ("source", "change"))
        self._desk = Desk(ledger, self._outbox, clock, new_id=ctx.new_id, publish=self._publish)
        sensitivity = ctx.config.anomaly_sensitivity
        self._lookout = Lookout(ledger, ctx.state, series, clock, ctx.log, sensitivity=sensitivity)
        compliance = metrics.gauge("sla_compliance_percent", ("target",))
        self._levels = Levels(ledger, self._desk, series, self._measuring.blame, clock, compliance)
        gauges = metrics.gauge("alerts_open", ("severity",)), metrics.gauge("health_score")
        self._watch = Watch(ledger, self._desk, self._lookout, series, clock, gauges)
        self._pools = Pools(ledger, ctx.verbs, series, clock, ctx.new_id)
        self._recovery = self._new_recovery()
        # Whether another replica goes on with what this one kept.
        self._over = True
        self._measured = metrics.gauge("measurement", ("metric",))
        self._agents = metrics.gauge("pool_agents", ("namespace", "pool"))

    def _new_outbox(self) -> Outbox:
        ctx = self._ctx
        return Outbox(
            webhooks_of(ctx.config),
            ctx.config.egress,
            ctx.state,
            ctx.clock,
            new_id=ctx.new_id,
            # Jitter only: nothing is measured or decided by it.
            chance=random.SystemRandom().random,
            sent=ctx.metrics.counter("webhook_attempts_total", ("webhook", "outcome")),
            told=lambda name, trouble: self._troubles.tell(f"webhook {name}", trouble),
        )

    def _new_recovery(self) -> Recovery:
        ctx, config = self._ctx, self._ctx.config
        return Recovery(
            ctx.verbs,
            self._ledger,
            self._desk,
            ctx.clock,
            Path(config.backup_folder) if config.backup_folder else ctx.data_dir / "backups",
            new_id=ctx.new_id,
            every=config.backup_interval_hours * _HOUR,
            keep=config.backup_retention_days * 24 * _HOUR,
            last_sequence=self._last_sequence,
            prepare=self._measuring.turn,
        )

    def _last_sequence(self) -> int:
        return self._ctx.vitals().last_sequence

    # Begin and end --------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Go on with what is stored; a new hive gets its first rules and targets."""
        await self._ledger.seed(RULES, {rule.id: rule for rule in BUILT_IN_RULES})
        await self._ledger.seed(TARGETS, {target.id: target for target in BUILT_IN_TARGETS})
        self._outbox.sending = False
        await self._note_targets()

    async def take_over(self) -> None:
        """Keep the series, look for anomalies and send from now on; another replica may have done so until now."""
        await self._measuring.load()
        await self._lookout.load()
        await self._outbox.load()
        await self._note_targets()
        self._over = False

    async def _hand_over(self) -> None:
        """Leave all that to another replica."""
        self._outbox.sending = False
        for metric in STATUS:
            self._measured.remove(metric)
        await self._measuring.hand_over()
        await self._save_baselines()
        self._over = True

    async def save(self) -> None:
        """Store what is new, unless another replica goes on with it."""
        await self._measuring.save()
        if not self._over:
            await self._save_baselines()

    async def _save_baselines(self) -> None:
        with suppress(KernelError):
            await self._lookout.save()

    async def _publish(self, notice: Notice) -> None:
        alert, change = notice.alert, notice.change.value
        self._alerts_told.add(1, alert.source.name.lower(), change)
        await self._ctx.publish(
            f"alert_{change}",
            alert.title,
            severity=event_severity(alert.severity),
            subject=alert.id,
            attributes={
                "fingerprint": alert.fingerprint,
                "source": alert.source.name,
                "severity": alert.severity.name,
                "rule_id": alert.rule_id,
            },
        )

    # Turns ----------------------------------------------------------------------------------------------------------

    async def _rules(self) -> None:
        await self._watch.rules()
        now = self._ctx.clock.now()
        for metric in STATUS:
            value = value_of(self._measuring.series, metric, now - _SHOWN, now, now)
            if value is None:
                self._measured.remove(metric)
            else:
                self._measured.set(value, metric)

    async def _note_targets(self) -> None:
        targets = await self._ledger.all(TARGETS)
        times = [each.target_value for each in targets if each.indicator is Indicator.RESPONSE_TIME]
        self._measuring.slow_from(min(times, default=1_000.0))

    async def _sla(self) -> None:
        await self._note_targets()
        await self._levels.turn()

    async def _scale(self) -> None:
        for policy in await self._ledger.all(POLICIES):
            if not policy.disabled:
                decision = await self._pools.turn(policy)
                self._agents.set(decision.recommended, policy.namespace, policy.id)

    async def _tidy(self) -> None:
        await self._ledger.forget()
        gone = await self._desk.surplus()
        if gone:
            await self._ctx.state.delete_many(gone[:1_000])

    # The acts -------------------------------------------------------------------------------------------------------

    def plugin(self) -> Plugin:
        """Return what the plugin does."""
        return Plugin(
            interceptors=(self._measuring.calls,),
            handlers=self._handlers(),
            takes_over=self.take_over,
            gap=self._measuring.missed,
            services=(Service(pb.DESCRIPTOR.services_by_name["ProductionService"], self._methods()),),
            tasks=tuple(self._loops()),
        )

    def _handlers(self) -> dict[EventType, Handler]:
        handlers = dict(self._measuring.outcomes.handlers)
        count = handlers[EventType.PLUGIN_REPORTED]

        async def reported(event: Event) -> None:
            await count(event)
            if event.data.get("plugin") == self._ctx.name:
                await self._outbox.look()

        return handlers | {EventType.PLUGIN_REPORTED: reported}

    def _keeping(self, loop: Background) -> Background:
        """Return a loop after which another replica keeps the series."""

        async def run() -> None:
            try:
                await loop.run()
            finally:
                await self._hand_over()

        return Background(loop.name, run)

    def _loops(self) -> list[Background]:
        config = self._ctx.config
        turns: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
            ("sample", config.sample_interval_seconds, self._measuring.turn),
            ("alerts", config.alert_interval_seconds, self._rules),
            ("sla", config.sla_interval_seconds, self._sla),
            ("health", config.health_interval_seconds, self._watch.health),
            ("security", config.security_interval_seconds, self._watch.security),
            ("anomalies", config.anomaly_interval_seconds, self._watch.anomalies),
            ("tidy", _HOUR, self._tidy),
        ]
        if config.auto_scaling_enabled:
            turns.append(("scaling", config.scaling_interval_seconds, self._scale))
        if config.backup_enabled:
            turns.append(("backup", min(_HOUR, config.backup_interval_hours * _HOUR), self._recovery.turn))
        clock, log = self._ctx.clock, self._ctx.log
        loops = [
            every(name, seconds, turn, clock=clock, troubles=self._troubles, log=log) for name, seconds, turn in turns
        ]
        reporting = every(
            "report",
            config.sample_interval_seconds,
            self._measuring.report,
            clock=clock,
            troubles=self._troubles,
            log=log,
            everywhere=True,
        )
        return [self._keeping(loops[0]), *loops[1:], Background("webhooks", self._outbox.run), reporting]

    def _methods(self) -> tuple[object, ...]:
        ctx = self._ctx
        pools = PoolMethods(self._ledger, self._pools)
        status = StatusMethods(
            self._ledger,
            self._measuring.series,
            ctx.clock,
            desk=self._desk,
            levels=self._levels,
            lookout=self._lookout,
            pools=pools,
            recovery=self._recovery,
            started=self._measuring.started,
            last_sequence=self._last_sequence,
        )
        webhooks = {webhook.name for webhook in ctx.config.webhooks}
        return (
            _Current(status, self._measuring.fresh),
            AlertMethods(self._ledger, self._desk, webhooks),
            _Current(LevelMethods(self._ledger, self._desk, self._levels, self._note_targets), self._measuring.fresh),
            _Current(pools, self._measuring.fresh),
            RecoveryMethods(self._ledger, self._recovery),
        )


class _Current:
    """Methods that know first what another replica has measured."""

    def __init__(self, methods: object, fresh: Callable[[], Awaitable[None]]) -> None:
        for name in [name for name in dir(methods) if name[0].isupper()]:
            setattr(self, name, _after(fresh, getattr(methods, name)))


def _after(fresh: Callable[[], Awaitable[None]], method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @wraps(method)
    async def answer(request: Any, call: Call) -> Any:
        await fresh()
        return await method(request, call)

    return answer
