"""All subscriptions of this process: opened, counted, drained."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from weakref import WeakValueDictionary

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import CursorCompacted, Draining, Overloaded
from agenthive_server.kernel.events import Event

from .filter import EventFilter
from .frames import Framer
from .log import EventLog
from .notifier import LocalNotifier
from .output import OutputHub
from .subscription import Snapshot, Subscription, SubscriptionSpec


class Subscriptions:
    """The hub of all readers. What they share is in the log, the framer and the notifiers."""

    def __init__(
        self,
        log: EventLog,
        notifier: LocalNotifier,
        clock: Clock,
        *,
        output: OutputHub | None = None,
        limit: int = 10_000,
    ) -> None:
        self.log = log
        self.notifier = notifier
        self.clock = clock
        self.output = output
        self.framer = Framer(log)
        self.draining = False
        self._limit = limit
        self._open: set[Subscription] = set()
        # Equal filters become the same object, which is found faster.
        self._filters: WeakValueDictionary[EventFilter, EventFilter] = WeakValueDictionary()
        self.opened = 0
        self.frames = 0
        self.events = 0
        self.bytes = 0
        self.bookmarks = 0
        self.too_old = 0
        self.store_errors = 0

    @property
    def encode(self) -> Callable[[Event], bytes]:
        """Makes the wire form of an event."""
        return self.log.encode

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def open(self, spec: SubscriptionSpec, snapshot: Snapshot | None = None) -> AsyncIterator[Subscription]:
        """Open a subscription; leaving ends it. `snapshot` may be needed to resume by cursor too: always give it.

        Raises `BadRequest` INVALID_CURSOR, `CursorCompacted`, `StoreUnavailable`, `Draining`, and `Overloaded` beyond
        the limit of open ones.
        """
        if self.draining:
            raise Draining("the server is stopping; subscribe again", retry_after=1.0)
        if len(self._open) >= self._limit:
            raise Overloaded(f"{self._limit} subscriptions are open, which is the limit", retry_after=5.0)
        spec = replace(spec, filter=self._filters.setdefault(spec.filter, spec.filter))
        subscription = Subscription(self, spec, snapshot)
        self._open.add(subscription)
        try:
            await subscription.begin()
            self.opened += 1
            yield subscription
        except CursorCompacted:
            self.too_old += 1
            raise
        finally:
            self._open.discard(subscription)
            await subscription.aclose()

    def send_away(self) -> None:
        """Let every stream that is open end with its cursor in a last frame: its reader goes on elsewhere."""
        for subscription in self._open:
            subscription.end()

    def drain(self) -> None:
        """Let every stream end with its cursor in a last frame; none opens any more."""
        self.draining = True
        self.send_away()

    def metrics(self) -> dict[str, float]:
        """Return what was counted, by the names it is published under."""
        output = self.output
        return {
            "agenthive_event_subscriptions": len(self._open),
            "agenthive_event_subscriptions_opened_total": self.opened,
            "agenthive_event_frames_sent_total": self.frames,
            "agenthive_event_frames_made_total": self.framer.made,
            "agenthive_event_events_sent_total": self.events,
            "agenthive_event_bytes_sent_total": self.bytes,
            "agenthive_event_bookmarks_sent_total": self.bookmarks,
            "agenthive_event_cursors_compacted_total": self.too_old,
            "agenthive_event_store_reads_total": self.log.store_reads,
            "agenthive_event_store_errors_total": self.store_errors,
            "agenthive_event_log_head": self.log.head,
            "agenthive_event_log_oldest": self.log.oldest,
            "agenthive_event_output_bytes": output.bytes_kept if output else 0,
            "agenthive_event_output_attempts": len(output.attempts) if output else 0,
        }
