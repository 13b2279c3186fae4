"""Every error a caller can see: one class for each meaning, each with a stable reason from the catalogue."""

from __future__ import annotations

from collections.abc import Mapping


class KernelError(Exception):
    """Base of all errors meant for callers.

    `reason` is a name of `ErrorReason` in the protos without its prefix. `metadata` holds facts for programs,
    `retry_after` seconds after which a repeat makes sense, `field` the request field at fault.
    """

    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.field = field


class BadRequest(KernelError):
    """A field is malformed, out of range, missing or contradicts another. INVALID_ARGUMENT."""

    reason = "INVALID_FIELD"


class NotFound(KernelError):
    """What the call names does not exist in its namespace. NOT_FOUND."""

    reason = "TASK_NOT_FOUND"


class Exists(KernelError):
    """An id chosen by the caller is in use. ALREADY_EXISTS."""

    reason = "TASK_EXISTS"


class Refused(KernelError):
    """The state of the record does not allow this. FAILED_PRECONDITION."""

    reason = "ILLEGAL_TRANSITION"


class StaleAttempt(KernelError):
    """The lease epoch is not the current one. FAILED_PRECONDITION."""

    reason = "STALE_ATTEMPT"


class SessionFenced(KernelError):
    """A newer session has replaced this one. FAILED_PRECONDITION."""

    reason = "SESSION_FENCED"


class ProtocolViolation(KernelError):
    """A worker does not keep to the rules of the session. FAILED_PRECONDITION."""

    reason = "PROTOCOL_VIOLATION"


class Conflict(KernelError):
    """A revision given does not match, or the change kept colliding. ABORTED."""

    reason = "CONFLICT"


class CursorCompacted(KernelError):
    """Events after the cursor are gone; `oldest_cursor` is in the metadata. OUT_OF_RANGE."""

    reason = "CURSOR_COMPACTED"


class Overloaded(KernelError):
    """A bound is reached: calls, disk, counts, quota. RESOURCE_EXHAUSTED."""

    reason = "OVERLOADED"


class Draining(KernelError):
    """The server is stopping. UNAVAILABLE."""

    reason = "DRAINING"


class StoreUnavailable(KernelError):
    """The database cannot be reached or written; nothing was changed. UNAVAILABLE."""

    reason = "STORE_UNAVAILABLE"


class OutcomeUnknown(KernelError):
    """Whether the change was made could not be found out. UNKNOWN, or UNAVAILABLE for calls with a request id."""

    reason = "OUTCOME_UNKNOWN"


class NotImplementedHere(KernelError):
    """There is no such method, or it belongs to a plugin that is off. UNIMPLEMENTED."""

    reason = "NOT_IMPLEMENTED"


class DeadlineExceeded(KernelError):
    """The call's deadline passed before an answer was ready. DEADLINE_EXCEEDED."""

    reason = "DEADLINE_EXCEEDED"


class Unauthenticated(KernelError):
    """Credentials are missing or not valid. UNAUTHENTICATED."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(KernelError):
    """The principal may not do this. PERMISSION_DENIED."""

    reason = "PERMISSION_DENIED"


class PluginFailed(KernelError):
    """A plugin without which nothing may pass could not do its part; the metadata names the `plugin`. UNAVAILABLE."""

    reason = "PLUGIN_FAILED"


class DataLoss(KernelError):
    """Content does not match its digest. DATA_LOSS."""

    reason = "DIGEST_MISMATCH"


def agent_not_found(agent_id: str) -> NotFound:
    """Return the error for an agent that does not exist."""
    return NotFound(
        f"no agent {agent_id!r} in this namespace", reason="AGENT_NOT_FOUND", metadata={"agent_id": agent_id}
    )


def task_not_found(task_id: str) -> NotFound:
    """Return the error for a task that does not exist."""
    return NotFound(f"no task {task_id!r} in this namespace", reason="TASK_NOT_FOUND", metadata={"task_id": task_id})


def revision_mismatch(given: int, current: int) -> Conflict:
    """Return the error for an update of a revision that is not the current one."""
    return Conflict(
        f"revision {given} is not the current one, which is {current}",
        reason="REVISION_MISMATCH",
        metadata={"revision": str(current)},
    )
