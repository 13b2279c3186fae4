"""The kernel's settings: spans in seconds and bounds, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Spans and bounds the kernel works with."""

    accept_timeout: float = 10.0
    heartbeat_interval: float = 10.0
    reconnect_grace: float = 30.0
    # Assignments in a row that may stay unanswered before the agent's session is ended.
    unanswered_limit: int = 3
    maximum_queued: int = 1_000_000
    # Agents with a context fuller than this get nothing new.
    context_threshold: float = 0.85
    retention_events: float = 604_800.0
    retention_requests: float = 86_400.0
    retention_tasks: float = 604_800.0
    retention_blobs: float = 604_800.0

    @property
    def silence(self) -> float:
        """Seconds without a sign of life after which contact counts as lost."""
        return 3 * self.heartbeat_interval
