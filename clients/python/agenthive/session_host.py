"""What a session speaks for, and how it waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agenthive.waiting import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from agenthive.v1 import worker_service_pb2 as pb


class Host(Protocol):
    """What a session speaks for. What these methods raise ends `Session.run()`, which raises it."""

    def hello(self) -> pb.Hello:
        """Return agents, leases held, runner capacity and labels; the session fills in what is its own."""
        ...

    def heartbeat(self) -> pb.Heartbeat:
        """Return what is held now, with what is new about it; called once for each beat."""
        ...

    async def welcome(self, welcome: pb.Welcome) -> None:
        """Learn of a (re)connect: stop every lease that is not in `valid_leases`."""
        ...

    async def control(self, item: pb.ControlItem) -> None:
        """Take one item of the server; they come in order. While it runs nothing else is read: do not wait in it."""
        ...

    async def contact_lost(self, seconds: float) -> None:
        """Learn, once, that nothing was heard for two thirds of the reconnect grace: exclusive tasks stop now."""
        ...


@dataclass
class Timing:
    """How a session waits, in seconds. The defaults are right outside of tests."""

    clock: Callable[[], float] | None = None  # default: the event loop's
    heartbeat_interval: float | None = None  # default: what the Welcome says
    reconnect_grace: float | None = None  # default: what the Welcome says
    silent_intervals: float = 3.0
    welcome_timeout: float = 20.0
    close_timeout: float = 5.0
    backoff: Backoff = field(default_factory=lambda: Backoff(first=0.2, maximum=5.0))
