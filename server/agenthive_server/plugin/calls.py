"""What an interceptor sees of a call, and what it may do about it. Imported through `plugin/api.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final, Protocol

from agenthive_server.kernel.errors import KernelError


class Stage(IntEnum):
    """Where in the chain an interceptor stands; lower is further out."""

    EDGE = 0
    """Built in: call id, access log, deadline, limits."""
    IDENTIFY = 1
    """Who calls, and may they."""
    ADMIT = 2
    """Whether the call is taken on now: quota, breaker."""
    OBSERVE = 3
    """What the call costs: closest to the method."""


class Audience(Enum):
    """Which kind of caller an RPC is for, least privileged first."""

    ANYONE = "anyone"
    VIEWER = "viewer"
    AGENT = "agent"
    OPERATOR = "operator"
    ADMIN = "admin"


class Load(IntEnum):
    """Which bound on calls at once an RPC falls under."""

    UNARY = 0
    STREAM = 1
    SESSION = 2
    FREE = 3
    """None: it must answer even when the server is overloaded."""


BRIEF_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is fixed about one RPC. Deadlines in seconds; zero exempts it."""

    audience: Audience
    load: Load = Load.UNARY
    default_deadline: float = 30.0
    longest_deadline: float = 3_600.0
    idempotent: bool = False
    brief: bool | None = None
    """Whether it ends soon by itself, so that a plugin that is switched off waits for those that have begun. None:
    unary calls are that have a minute at most when they say nothing."""

    def __post_init__(self) -> None:
        if self.brief is None:
            soon = self.load is Load.UNARY and 0 < self.default_deadline <= BRIEF_SECONDS
            object.__setattr__(self, "brief", soon)


class Transport(Protocol):
    """What the connection knows about the caller."""

    def peer(self) -> str:
        """Return the address it calls from."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what the TLS handshake has proven; empty without TLS."""


@dataclass(slots=True, eq=False)
class Call:
    """One RPC on its way through the chain. Interceptors may add to it; request and response cannot be altered.

    `request` is None for RPCs that stream from the client, and when the bytes received could not be parsed (the call is
    then refused after the chain was entered). `deadline` is a reading of the event loop's clock, zero for none.
    """

    method: str
    policy: Policy
    transport: Transport
    metadata: tuple[tuple[str, str | bytes], ...]
    namespace: str
    request: Any = None
    call_id: str = ""
    principal: str = ""
    deadline: float = 0.0
    remaining: float | None = None
    """Seconds the caller still gives it, as it arrived; None when it set no deadline."""
    started: float = 0.0
    """When it came in, by the server's monotonic clock."""
    answered: bool = False
    """Whether the method has ended and the chain is being left."""
    expired: bool = False
    """Whether the server ended it because its deadline passed."""
    trailing: tuple[tuple[str, str | bytes], ...] = ()
    """Metadata that is sent after the answer."""
    patience: float = 0.0
    """When its interceptors have waited long enough, by the event loop's clock; zero before one has waited."""
    skipped: set[object] | None = None
    """Interceptors that failed on the way in, and are not asked on the way out."""
    ended: KernelError | None = None
    """What a plugin has ended it with."""
    _notes: dict[str, Any] | None = None
    task: asyncio.Task[Any] | None = None
    """What serves it; None for a brief call."""

    def end(self, error: KernelError) -> None:
        """End a call that is not brief with an error, whatever it waits for; one that is answered stays as it is."""
        if self.task is not None and not self.answered and self.ended is None:
            self.ended = error
            self.task.cancel("ended by a plugin")

    @property
    def notes(self) -> dict[str, Any]:
        """For interceptors: what `before` leaves for `after`, under the plugin's name."""
        if self._notes is None:
            self._notes = {}
        return self._notes

    def header(self, key: str) -> str | bytes | None:
        """Return the first value of a metadata key (lower case), or None."""
        for name, value in self.metadata:
            if name == key:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: the name of its status code and, unless that is OK, the reason and the error behind it."""

    code: str
    reason: str = ""
    error: BaseException | None = None


OK: Final = Outcome("OK")


class Interceptor(Protocol):
    """Code around a call. Both methods may be `async`; the chain then awaits them.

    `before` may look, add to the call, or raise a `KernelError` to refuse it. `after` runs for every call whose
    `before` returned, in reverse order, also on failure, cancellation and deadline. Anything else that either raises
    counts as a failure of the plugin: where failing means OPEN the call goes on as if the interceptor were not there,
    where it means CLOSED the call is refused. A plain method has microseconds. An `async` one may wait, for as long as
    `[plugins] call_seconds` allows all of them together; then it is cancelled, and that is a failure, too.
    """

    @property
    def stage(self) -> Stage:
        """Where in the chain it stands."""

    def before(self, call: Call) -> Awaitable[None] | None:
        """Look at a call that comes in."""

    def after(self, call: Call, outcome: Outcome) -> Awaitable[None] | None:
        """Look at how it ended."""
