"""Puts the plugin together: the gate, the hook, the service, and what goes on beside them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from agenthive.v1 import security_service_pb2 as pb
from agenthive_server.plugin.api import (
    Background,
    Conflict,
    EventType,
    Hooks,
    KernelError,
    Plugin,
    PluginContext,
    Service,
    State,
)

from . import admin, jwt
from .audit import Trail
from .audit_methods import AuditMethods, ThreatMethods
from .authentication import Authentication
from .bindings import Bindings
from .callers import Book
from .compliance import Settings
from .config import ROLES, SecurityConfig
from .gate import Gate
from .incidents import Incidents
from .issuing import Issuing, Wish
from .joins import Doorkeeper
from .jwks import KeySource, KeysUnusable
from .limits import RateLimits
from .ownership import Ownership
from .place import Place
from .records import Unreadable
from .threats import Blocks, Detector
from .token_methods import TokenMethods
from .tokens import KEY_BYTES, Scope, TokenKind, TokenState
from .trail import Reader
from .upkeep import Departures, Housekeeping, Watch
from .witness import Witness

_KEY: Final = "meta/key"
RUNNER_SECONDS: Final = 900.0

Context = PluginContext[SecurityConfig]


async def hash_key(state: State) -> bytes:
    """Return the key tokens are hashed with; made once, and the same for all replicas."""
    stored = await state.get(_KEY)
    if stored is not None:
        return stored.value
    key = secrets.token_bytes(KEY_BYTES)
    try:
        await state.put(_KEY, key, revision=0)
    except Conflict:
        return await hash_key(state)
    return key


class Assembly:
    """The parts of an open plugin."""

    def __init__(self, ctx: Context, key: bytes, trail: Trail) -> None:
        config, state, clock = ctx.config, ctx.state, ctx.clock
        refused = ctx.metrics.counter("refused", ("reason",))
        threats = ctx.metrics.counter("threats", ("kind",))
        self._queued = ctx.metrics.gauge("audit_queued")
        self._written = ctx.metrics.counter("audit_records")
        self._counted = 0
        self.ctx = ctx
        self.trail = trail
        self.bindings = Bindings(state, self._tell)
        self.book = Book(state, self.bindings, key)
        self.issuing = Issuing(state, self.book, key, clock.now, maximum=config.tokens.maximum, tell=self._tell)
        self.limits = RateLimits(config.limits.limits(), ctx.buckets)
        self.keys = self._key_source()
        self.authentication = self._authentication()
        self.incidents = Incidents(
            state,
            clock,
            ctx.new_id,
            Detector(config.threats.rules(), longest_block=config.threats.longest_block_seconds),
            Blocks(clock.now),
            trail,
            ctx.publish,
            counted=lambda kind: threats.add(1, kind),
        )
        self.gate = Gate(
            clock,
            self.authentication,
            Ownership(state, ctx.verbs),
            self.limits,
            self.incidents.blocks,
            Witness(clock, self.limits, self.incidents, trail, refused=lambda why: refused.add(1, why)),
            trail,
            name=ctx.name,
            reads=config.audit.reads,
            durable=config.audit.durable,
        )
        self.reader = Reader(state)
        self.doorkeeper = Doorkeeper(self.bindings, key)
        self.watch = Watch(
            state,
            clock,
            self.book,
            self.bindings,
            self.issuing,
            self.gate,
            self.incidents,
            trail,
            ctx.report,
            ctx.bell(EventType.PLUGIN_REPORTED),
            ctx.open_calls,
            keys=self.keys,
            measured=self._measure,
        )

    async def _tell(self, kind: str, subject: str) -> None:
        """Have every replica look at once. Where that fails they look by themselves a moment later."""
        try:
            await self.ctx.publish(kind, f"{kind.replace('_', ' ')}: {subject}", subject=subject)
        except KernelError as error:
            self.ctx.log.warning("%s: %s could not be told: %s", kind, subject, error.message)

    def _key_source(self) -> KeySource | None:
        settings = self.ctx.config.jwt
        if not settings.issuer:
            return None
        return KeySource(
            self.ctx.clock,
            settings.algorithms,
            file=settings.jwks_file,
            url=settings.jwks_url,
            every=settings.refresh_seconds,
            changed=self._keys_changed,
        )

    def _keys_changed(self) -> None:
        self.authentication.forget_jwts()

    def _authentication(self) -> Authentication:
        ctx, settings = self.ctx, self.ctx.config.jwt
        wanted = jwt.Expectations(
            issuer=settings.issuer,
            audience=settings.audience,
            algorithms=settings.algorithms,
            leeway=settings.leeway_seconds,
            longest_life=settings.longest_life_seconds,
            roles_claim=settings.roles_claim,
            single_use=settings.single_use,
        )
        return Authentication(
            self.book,
            self.bindings,
            ctx.state,
            ctx.clock,
            names=ctx.config.certificates.names,
            wanted=wanted if settings.issuer else None,
            keys=self.keys,
            roles={name: ROLES[role] for name, role in settings.roles.items()},
        )

    def _measure(self) -> None:
        self._queued.set(self.trail.queued)
        self._written.add(self.trail.written - self._counted)
        self._counted = self.trail.written

    async def load(self) -> None:
        """Read what is known. Keys that cannot be had are told in health; tokens of their issuer do not count then."""
        await self.watch.refresh()
        await self.issuing.count()
        if self.keys is not None:
            try:
                await self.keys.load()
            except KeysUnusable as error:
                self.ctx.log.warning("%s", error)

    async def join_token(self) -> str:
        """Make the token the server's own runner joins with. What the runner before it had counts no more."""
        issuer = f"system:{self.trail.chain}"
        for shown in await self.issuing.list_tokens(states=(TokenState.ACTIVE,)):
            if shown.token.issuer == issuer:
                await self.issuing.revoke(shown.token.id)
        wish = Wish(
            kind=TokenKind.JOIN,
            # The same each time, so that a runner that was killed and started again ends its old session at once.
            principal=f"runner:default/{self.trail.chain}",
            ttl=RUNNER_SECONDS,
            namespaces=("default",),
            description="for the server's own runner",
            scope=Scope(runner=True),
        )
        return (await self.issuing.issue(wish, issuer=issuer))[1]

    def plugin(self) -> Plugin:
        """Return the acts."""
        ctx, config = self.ctx, self.ctx.config
        departures = Departures(ctx.state, ctx.verbs, self.issuing)
        upkeep = Housekeeping(ctx.state, ctx.clock, self.issuing, self.incidents, self.reader, config, ctx.log)
        settings = Settings(retention_days=config.audit.retention_days, reads_recorded=config.audit.reads)
        loops = [
            Background(name="trail", run=self.trail.run, everywhere=True),
            Background(name="watch", run=self.watch.run, everywhere=True),
            Background(name="threats", run=self.incidents.run, everywhere=True),
            Background(name="upkeep", run=upkeep.run),
        ]
        if self.keys is not None:
            loops.append(Background(name="keys", run=self.keys.run, everywhere=True))
        return Plugin(
            interceptors=(self.gate,),
            hooks=Hooks(before_join=self.doorkeeper.before_join),
            handlers={EventType.AGENT_STOPPED: departures.agent_stopped},
            services=(
                Service(
                    descriptor=pb.DESCRIPTOR.services_by_name["SecurityService"],
                    methods=(
                        TokenMethods(self.issuing, self.bindings, config.tokens, ctx.clock.now),
                        AuditMethods(self.reader, self.trail, settings),
                        ThreatMethods(self.incidents),
                    ),
                ),
            ),
            tasks=tuple(loops),
            protects=True,
            join_token=self.join_token,
        )


@asynccontextmanager
async def opened(ctx: Context) -> AsyncIterator[Plugin]:
    """Open the plugin: nothing is let through before everything is known."""
    place = Place(ctx.data_dir)
    alone = place.enter()
    try:
        trail, remark = await _begin_trail(ctx, place, alone)
        try:
            parts = Assembly(ctx, await hash_key(ctx.state), trail)
            parts.watch.remark = remark
            await parts.load()
            parts.watch.tell()
            path = await admin.provide(ctx.state, parts.issuing, ctx.data_dir)
            if path is not None:
                ctx.log.warning("the first administrator's token is in %s", path)
            yield parts.plugin()
            await parts.issuing.note_uses(0.0)
        finally:
            await _end_trail(ctx, trail)
    finally:
        place.leave()


async def _begin_trail(ctx: Context, place: Place, alone: bool) -> tuple[Trail, str]:
    """Return the end of the trail; when its chain cannot be read, of a new one, and what is to be said of it."""
    audit = ctx.config.audit
    spans = {"flush_seconds": audit.flush_seconds, "fold_seconds": audit.fold_seconds}
    trail = Trail(ctx.state, ctx.clock, place.chain(), **spans)
    try:
        await trail.open(alone=alone)
    except Unreadable as error:
        remark = f"chain {trail.chain} of the audit trail cannot be read, another one was begun: {error}"
        ctx.log.error("%s", remark)
        trail = Trail(ctx.state, ctx.clock, place.new_chain(), **spans)
        await trail.open()
        return trail, remark
    return trail, ""


async def _end_trail(ctx: Context, trail: Trail) -> None:
    try:
        await trail.close()
    except (KernelError, Unreadable) as error:
        ctx.log.error("the audit trail could not be ended: %s", error)
