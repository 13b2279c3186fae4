"""Metrics as Prometheus reads them: the text format 0.0.4, and OpenMetrics 1.0 for those who ask for it.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and the OpenMetrics specification.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from agenthive_server import telemetry
from agenthive_server.telemetry import LE, Sample

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

MOST_SERIES: Final = 20_000
"""Series told at most; what comes beyond is counted and left out."""

DROPPED: Final = "agenthive_scrape_dropped_series"

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Metric(NamedTuple):
    """What a metric is and what it says."""

    kind: str
    help: str


CATALOGUE: Final[Mapping[str, Metric]] = {
    telemetry.INFO: Metric(GAUGE, "Always 1; the version is in the label."),
    telemetry.READY: Metric(GAUGE, "1 while the server may receive traffic."),
    telemetry.RPC_CALLS: Metric(COUNTER, "Calls answered, by method and status code."),
    telemetry.RPC_DURATION: Metric(HISTOGRAM, "Time from a call's arrival to its answer. Not of streams."),
    telemetry.RPC_IN_FLIGHT: Metric(GAUGE, "Calls being served, by kind."),
    telemetry.RPC_REFUSED: Metric(COUNTER, "Calls refused because too many were being served, by kind."),
    telemetry.SESSIONS_OPEN: Metric(GAUGE, "Sessions of workers and runners with a stream here."),
    telemetry.TLS_END: Metric(GAUGE, "When the first certificate ends, in seconds since 1970."),
    telemetry.TLS_RENEWALS: Metric(COUNTER, "Certificates taken over while running."),
    telemetry.AGENTS: Metric(GAUGE, "Agents, by state as callers see it."),
    telemetry.AGENTS_IN_CONTACT: Metric(GAUGE, "Agents whose worker or runner has a stream here."),
    telemetry.TASKS: Metric(GAUGE, "Tasks that are not over, by state."),
    telemetry.TASKS_QUEUED: Metric(GAUGE, "Tasks that wait for an agent: the depth of the queue."),
    telemetry.TASKS_HELD: Metric(GAUGE, "Tasks an agent works on: open leases."),
    telemetry.TASKS_ASSIGNED: Metric(COUNTER, "Tasks assigned from the queue."),
    telemetry.EVENTS: Metric(COUNTER, "Events written to the log, by type."),
    telemetry.LOOP_LAG: Metric(GAUGE, "How late the event loop was the last time."),
    telemetry.LOOP_DELAY: Metric(HISTOGRAM, "How late the event loop is, measured twice a second."),
    telemetry.COMMIT_GROUPS: Metric(COUNTER, "Transactions of the store."),
    telemetry.COMMIT_CHANGE_SETS: Metric(COUNTER, "Change sets committed."),
    telemetry.COMMIT_ROWS: Metric(COUNTER, "Rows and events committed."),
    telemetry.COMMIT_FAILURES: Metric(COUNTER, "Transactions that failed, or whose outcome was not known."),
    telemetry.COMMIT_WAITING: Metric(GAUGE, "Rows that wait to be committed."),
    telemetry.COMMIT_SECONDS: Metric(GAUGE, "How long the last transaction took."),
    telemetry.COMMIT_DURATION: Metric(HISTOGRAM, "How long transactions take, with the way to the writing thread."),
    telemetry.COMMIT_SIZE: Metric(HISTOGRAM, "Change sets in a transaction."),
    telemetry.STORE_SYNC: Metric(HISTOGRAM, "How long making a transaction durable takes: the sync of the disk."),
    telemetry.STORE_FREE: Metric(GAUGE, "Free space where the data lie."),
    "agenthive_event_subscriptions": Metric(GAUGE, "Readers of events."),
    "agenthive_event_subscriptions_opened_total": Metric(COUNTER, "Streams of events opened."),
    "agenthive_event_frames_sent_total": Metric(COUNTER, "Responses sent to readers of events."),
    "agenthive_event_frames_made_total": Metric(COUNTER, "Responses made; readers with the same filter share them."),
    "agenthive_event_events_sent_total": Metric(COUNTER, "Events delivered to readers."),
    "agenthive_event_bytes_sent_total": Metric(COUNTER, "Bytes delivered to readers of events."),
    "agenthive_event_bookmarks_sent_total": Metric(COUNTER, "Bookmarks sent to readers of events."),
    "agenthive_event_cursors_compacted_total": Metric(COUNTER, "Readers that came too late."),
    "agenthive_event_store_reads_total": Metric(COUNTER, "Reads of the store for readers behind the tail in memory."),
    "agenthive_event_store_errors_total": Metric(COUNTER, "Reads of the store for readers that failed."),
    "agenthive_event_log_head": Metric(GAUGE, "Sequence of the last event."),
    "agenthive_event_log_oldest": Metric(GAUGE, "Sequence of the oldest event that is kept."),
    "agenthive_event_output_bytes": Metric(GAUGE, "Output of attempts kept in memory."),
    "agenthive_event_output_attempts": Metric(GAUGE, "Attempts whose output is kept in memory."),
    "agenthive_plugin_enabled": Metric(GAUGE, "1 while a plugin is on."),
    "agenthive_plugin_tasks": Metric(GAUGE, "Background tasks of a plugin."),
    "agenthive_plugin_handler_lag_events": Metric(GAUGE, "Events the handlers of a plugin are behind."),
    "agenthive_plugin_calls_total": Metric(COUNTER, "Calls of the acts of a plugin."),
    "agenthive_plugin_failures_total": Metric(COUNTER, "Failures of the acts of a plugin."),
    "agenthive_plugin_seconds_total": Metric(COUNTER, "Time spent in the acts of a plugin."),
    telemetry.REPLICAS: Metric(GAUGE, "Replicas of the database that are known, this one included."),
    telemetry.REPLICAS_AWAY: Metric(GAUGE, "Replicas that have not told anything for more than two seconds."),
    telemetry.REPLICAS_EXPELLED: Metric(COUNTER, "Replicas that this one found to be gone."),
    telemetry.REPLICA_REJOINED: Metric(COUNTER, "How often this replica was taken to be gone, and joined again."),
    telemetry.REPLICA_ROLES: Metric(GAUGE, "Roles this replica has: what only one does."),
    telemetry.FOLLOWING_LAG_EVENTS: Metric(GAUGE, "Events known to be committed and not taken over from others yet."),
    telemetry.FOLLOWING_LAG_GROUPS: Metric(GAUGE, "Transactions known to be committed and not taken over yet."),
    telemetry.FOLLOWING_REFILLS: Metric(COUNTER, "How often memory was filled anew because too much was missed."),
    telemetry.FOLLOWING_WAIT: Metric(HISTOGRAM, "How long calls waited until all was known that others had committed."),
    telemetry.ARCHIVE_RECORDING: Metric(GAUGE, "1 while what is committed goes to the archive."),
    telemetry.ARCHIVE_LAG: Metric(GAUGE, "Age of the oldest change that is not on the archive's disk yet."),
    telemetry.ARCHIVE_SEQUENCE: Metric(GAUGE, "Last event in the archive's journal."),
    telemetry.ARCHIVE_JOURNAL: Metric(GAUGE, "Size of the segment of the journal that is being written."),
    telemetry.ARCHIVE_BACKUPS: Metric(COUNTER, "Backups the archive made."),
    telemetry.ARCHIVE_BACKUP_SECONDS: Metric(GAUGE, "How long the last backup of the archive took."),
    "process_cpu_seconds_total": Metric(COUNTER, "User and system CPU time."),
    "process_max_fds": Metric(GAUGE, "Most files that may be open."),
    "process_open_fds": Metric(GAUGE, "Files that are open."),
    "process_virtual_memory_bytes": Metric(GAUGE, "Virtual memory."),
    "process_resident_memory_bytes": Metric(GAUGE, "Resident memory."),
    "process_start_time_seconds": Metric(GAUGE, "When the process started, in seconds since 1970."),
    DROPPED: Metric(GAUGE, "Series left out of this answer because there are too many."),
}
"""What is known of each metric by name; those that plugins make are recognised by how they are named."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PARTS = ("_bucket", "_sum", "_count")


def exposed(samples: Iterable[Sample], *, openmetrics: bool = False) -> bytes:
    """Return samples as text; what no scraper would take (wrong names, a series told twice) is left out."""
    series: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    dropped = 0
    for name, labels, value in samples:
        if len(series) >= MOST_SERIES:
            dropped += 1
        elif _NAME.fullmatch(name) and all(_LABEL.fullmatch(label) for label, _ in labels):
            series.setdefault((name, labels), value)
    series[DROPPED, ()] = dropped
    histograms = {name.removesuffix("_bucket") for name, labels in series if _is_bucket(name, labels)}
    families: dict[str, list[str]] = {}
    for (name, labels), value in series.items():
        family = next((name.removesuffix(p) for p in _PARTS if name.removesuffix(p) in histograms), name)
        families.setdefault(family, []).append(f"{name}{_labels(labels)} {_number(value)}\n")
    told: list[str] = []
    for family in sorted(families):
        name, (kind, text) = family, CATALOGUE.get(family) or Metric(_kind(family, histograms), "")
        if openmetrics and kind == COUNTER:
            # A counter's family is called without its suffix there, unless something else is called so.
            bare = family.removesuffix("_total")
            name, kind = (family, "unknown") if bare in families else (bare, kind)
        told += [f"# HELP {name} {_escaped(text)}\n"] if text else []
        told += [f"# TYPE {name} {kind}\n", *families[family]]
    return "".join([*told, "# EOF\n"] if openmetrics else told).encode()


def _is_bucket(name: str, labels: tuple[tuple[str, str], ...]) -> bool:
    return name.endswith("_bucket") and any(label == LE for label, _ in labels)


def _kind(name: str, histograms: set[str]) -> str:
    if name in histograms:
        return HISTOGRAM
    return COUNTER if name.endswith("_total") else GAUGE


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    pairs = ((name, _escaped(str(value)).replace('"', '\\"')) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
