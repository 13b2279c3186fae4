"""What a plugin is: a record that is found, and the acts it comes with when it is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any, Final, Generic, TypeVar

import msgspec
from google.protobuf.descriptor import ServiceDescriptor

from agenthive_server.kernel.assign import Scorer
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.proposals import Completing, Delegating, Joining, Spawning

from .calls import Interceptor, Policy
from .context import PluginContext

C = TypeVar("C")

SECRET: Final = msgspec.Meta(extra={"secret": True})
"""Marks a setting that is never shown: `token: Annotated[str, SECRET] = ""`."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of a plugin's settings: every field with its default, and unknown keys refused.

    A subclass says `frozen=True, kw_only=True` again. Bounds are msgspec's: `limit: Annotated[int, Meta(ge=1)] = 10`.
    """


class Failure(Enum):
    """What it means when a plugin fails."""

    OPEN = "open"
    """It is skipped; when it fails too often it is switched off, and calls go on without it."""
    CLOSED = "closed"
    """What it should have looked at is refused. It is never switched off by itself."""


@dataclass(frozen=True, slots=True)
class Registration(Generic[C]):
    """How a plugin is found, configured and ordered.

    The module it lies in is imported whenever a server starts, also where the plugin is off: it imports nothing heavy.
    Heavy imports belong into `open`.
    """

    name: str
    """Lower case letters, digits and `-`; also the section of its settings, `[plugins.NAME]`."""
    _: KW_ONLY
    open: Callable[[PluginContext[C]], AbstractAsyncContextManager[Plugin]]
    """Entering starts the plugin, leaving stops it. Entered and left in a task of its own."""
    config: type[C] = Config  # type: ignore[assignment]  # without a C of its own it is the empty one
    """A frozen msgspec Struct that forbids unknown fields (see `Config`), or a frozen dataclass."""
    summary: str = ""
    """What it is for, in one sentence."""
    requires: tuple[str, ...] = ()
    """Plugins that must be on; they start first and act first."""
    after: tuple[str, ...] = ()
    """Plugins that act first if they are on."""
    failure: Failure = Failure.OPEN
    hooks_amend: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By hook, the fields it may amend: `{"before_delegate": frozenset({"priority"})}`."""
    services: tuple[str, ...] = ()
    """Full names of the gRPC services it brings; known also while it is off."""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    """A row for each RPC of its services, by full method name: `/agenthive.v1.SecurityService/ListTokens`."""
    overlaps: bool = True
    """Whether a new instance may be opened beside the old one when settings change. If not (it listens on a port, say),
    the old one is closed first; meanwhile an OPEN plugin is absent, and a CLOSED one refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Code inside a verb, before its decision is committed: plain functions that may run more than once for it.

    A hook reads its proposal and its plugin's own state there, and may amend declared fields, write that state, or veto
    by raising a `KernelError`. Nothing else: no I/O, no verbs, no clock but `proposal.now`, nothing remembered outside.
    It must not swallow exceptions it does not know. Budget: microseconds.
    """

    before_spawn: Callable[[Spawning], None] | None = None
    before_delegate: Callable[[Delegating], None] | None = None
    before_complete: Callable[[Completing], None] | None = None
    before_join: Callable[[Joining], None] | None = None
    score_agents: Scorer | None = None
    """`(task_spec, candidate) -> float`, added to what other plugins say; the highest sum gets the task."""


Handler = Callable[[Event], Awaitable[None]]
"""Code after an event. Called in order of the log from a cursor of its own, at least once: what it does through
`ctx.verbs` carries request ids made of plugin, sequence and number of the call, which make a repeat harmless."""


Gap = Callable[[int, int], Awaitable[None]]
"""Told of events that are gone because the handlers were too far behind: the sequences of the first and the last."""


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service: its descriptor, and objects whose attributes are its methods (`async def X(request, call)`)."""

    descriptor: ServiceDescriptor
    methods: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Background:
    """A loop that runs as long as the plugin is on. One that fails is told in health and started again.

    On one replica at a time, the one that has the plugin's handlers as well, and cancelled there when that is another;
    or on `everywhere`.
    """

    name: str
    run: Callable[[], Coroutine[Any, Any, None]]
    everywhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """The acts of an open plugin. Each is optional."""

    interceptors: tuple[Interceptor, ...] = ()
    hooks: Hooks = Hooks()
    handlers: Mapping[EventType, Handler] = field(default_factory=dict)
    """By type of event. All handlers of a plugin share one cursor: its events come one after the other, in order."""
    gap: Gap | None = None
    """Called instead of the handlers for events that were compacted before their turn: retention passed twice while the
    plugin was on, or once while it was off. At least once, like a handler."""
    services: tuple[Service, ...] = ()
    tasks: tuple[Background, ...] = ()
    takes_over: Callable[[], Awaitable[None]] | None = None
    """Called on a replica before the handlers, and the loops that are not for `everywhere`, begin there: what they have
    in memory is to be read anew, for another replica may have gone on with it. Tried again until it goes well."""
    protects: bool = False
    """Whether no call gets through without valid credentials: what a server that listens beyond loopback asks for."""
    join_token: Callable[[], Awaitable[str]] | None = None
    """Makes a token with which the server's own runner may join, once; asked whenever that runner is started."""
