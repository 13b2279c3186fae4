"""Every log field and metric name, defined once."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Final, NamedTuple


class Sample(NamedTuple):
    """One value of a metric; a name that ends in `_total` is a counter."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


Source = Callable[[], Iterable[Sample]]
"""Yields what it measures, from memory: it is asked in the event loop, at every scrape."""


class Metrics:
    """Everything there is to measure: whoever measures something adds its source, and takes it away again."""

    def __init__(self, *sources: Source) -> None:
        self._sources = list(sources)

    def add(self, source: Source) -> None:
        """Ask this source as well from now on."""
        self._sources.append(source)

    def remove(self, source: Source) -> None:
        """Ask it no more."""
        self._sources.remove(source)

    def samples(self) -> Iterator[Sample]:
        """Yield what all of them measure."""
        for source in tuple(self._sources):
            yield from source()


SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of buckets for times."""

COUNTS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0)
"""Bounds of buckets for numbers of things."""


class Histogram:
    """Counts values by size. Observing one costs a quarter of a microsecond."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def samples(self, name: str, labels: tuple[tuple[str, str], ...] = ()) -> Iterator[Sample]:
        """Yield buckets, sum and count as Prometheus names them."""
        below = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            yield Sample(f"{name}_bucket", (*labels, (LE, bound)), below)
        yield Sample(f"{name}_sum", labels, self.total)
        yield Sample(f"{name}_count", labels, below)


# Metrics ------------------------------------------------------------------------------------------------------------

RPC_CALLS: Final = "agenthive_rpc_calls_total"
RPC_DURATION: Final = "agenthive_rpc_duration_seconds"
RPC_IN_FLIGHT: Final = "agenthive_rpc_in_flight"
RPC_REFUSED: Final = "agenthive_rpc_refused_total"
SESSIONS_OPEN: Final = "agenthive_sessions_open"
TLS_END: Final = "agenthive_tls_certificate_end_time_seconds"
TLS_RENEWALS: Final = "agenthive_tls_renewals_total"
AGENTS: Final = "agenthive_agents"
AGENTS_IN_CONTACT: Final = "agenthive_agents_in_contact"
TASKS: Final = "agenthive_tasks"
TASKS_QUEUED: Final = "agenthive_tasks_queued"
TASKS_HELD: Final = "agenthive_tasks_held"
TASKS_ASSIGNED: Final = "agenthive_tasks_assigned_by_dispatcher_total"
EVENTS: Final = "agenthive_events_total"
LOOP_LAG: Final = "agenthive_event_loop_lag_seconds"
LOOP_DELAY: Final = "agenthive_event_loop_delay_seconds"
COMMIT_GROUPS: Final = "agenthive_commit_groups_total"
COMMIT_CHANGE_SETS: Final = "agenthive_commit_change_sets_total"
COMMIT_ROWS: Final = "agenthive_commit_rows_total"
COMMIT_FAILURES: Final = "agenthive_commit_failures_total"
COMMIT_SECONDS: Final = "agenthive_commit_seconds"
COMMIT_DURATION: Final = "agenthive_commit_duration_seconds"
COMMIT_SIZE: Final = "agenthive_commit_group_size"
COMMIT_WAITING: Final = "agenthive_commit_waiting_rows"
STORE_SYNC: Final = "agenthive_store_sync_seconds"
STORE_FREE: Final = "agenthive_store_free_bytes"
ARCHIVE_RECORDING: Final = "agenthive_archive_recording"
ARCHIVE_LAG: Final = "agenthive_archive_lag_seconds"
ARCHIVE_SEQUENCE: Final = "agenthive_archive_last_sequence"
ARCHIVE_JOURNAL: Final = "agenthive_archive_journal_bytes"
ARCHIVE_BACKUPS: Final = "agenthive_archive_backups_total"
ARCHIVE_BACKUP_SECONDS: Final = "agenthive_archive_backup_seconds"
REPLICAS: Final = "agenthive_replicas"
REPLICAS_AWAY: Final = "agenthive_replicas_away"
REPLICAS_EXPELLED: Final = "agenthive_replicas_expelled_total"
REPLICA_REJOINED: Final = "agenthive_replica_rejoined_total"
REPLICA_ROLES: Final = "agenthive_replica_roles"
FOLLOWING_LAG_EVENTS: Final = "agenthive_following_lag_events"
FOLLOWING_LAG_GROUPS: Final = "agenthive_following_lag_groups"
FOLLOWING_REFILLS: Final = "agenthive_following_refills_total"
FOLLOWING_WAIT: Final = "agenthive_following_wait_seconds"
READY: Final = "agenthive_ready"
INFO: Final = "agenthive_info"

# Labels and log fields ----------------------------------------------------------------------------------------------

METHOD: Final = "method"
CODE: Final = "code"
REASON: Final = "reason"
LOAD: Final = "load"
CALL_ID: Final = "call_id"
PEER: Final = "peer"
PRINCIPAL: Final = "principal"
NAMESPACE: Final = "namespace"
INTERCEPTOR: Final = "interceptor"
SESSION_ID: Final = "session_id"
STATE: Final = "state"
TYPE: Final = "type"
LE: Final = "le"
VERSION: Final = "version"

call_id: ContextVar[str] = ContextVar("agenthive_call_id", default="")
"""The id of the call that is being served, for every log line written meanwhile."""


class CallIdFilter(logging.Filter):
    """Puts the id of the call being served on each record, as the field `call_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with its call id."""
        if not hasattr(record, CALL_ID):
            record.call_id = call_id.get()
        return True
