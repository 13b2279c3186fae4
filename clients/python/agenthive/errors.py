"""Errors of the control plane as Python exceptions: by the reason they carry, else by their status code."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in that wheel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agenthive.v1 import task_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class FieldViolation(NamedTuple):
    """A field of the request that is wrong."""

    field: str
    description: str


class HiveError(Exception):
    """A call was refused or failed. Catch a subclass for one kind, this for all.

    `reason` is a name of `ErrorReason` without its prefix, or empty when the answer came from something other than
    the control plane, for example a proxy. `retry_after` is in seconds, None when the server named no time.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str = "",
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        field_violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = metadata or {}
        self.retry_after = retry_after
        self.field_violations = tuple(field_violations)

    def __str__(self) -> str:
        """Return code, reason and text, and the fields that are wrong."""
        text = f"{self.code.name} {self.reason}".rstrip() + (f": {self.message}" if self.message else "")
        return "; ".join([text, *(f"{field}: {why}" for field, why in self.field_violations)])


class Cancelled(HiveError):
    """The call was cancelled on the way, not by this program. A change in flight is not taken back."""

    default_code = grpc.StatusCode.CANCELLED


class Unknown(HiveError):
    """The outcome could not be found out."""


class InvalidArgument(HiveError):
    """The request makes no sense; `field_violations` names the fields."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceeded(HiveError):
    """No answer in time. A change in flight may still be committed."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFound(HiveError):
    """There is no such thing in this namespace."""

    default_code = grpc.StatusCode.NOT_FOUND


class SessionNotFound(NotFound):
    """The session is over."""


class AlreadyExists(HiveError):
    """The id chosen by the caller is in use."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(HiveError):
    """The principal may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(HiveError):
    """Too much at once, too large, or over a quota. `retry_after` says when to come back, where that helps."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(HiveError):
    """The state of the thing does not allow this; nothing was changed."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class StaleAttempt(FailedPrecondition):
    """The lease epoch is not the current one: the task went elsewhere."""


class SessionFenced(FailedPrecondition):
    """A newer session of the same agent or worker has replaced this one."""


class ProtocolViolation(FailedPrecondition):
    """One side of a session did not keep to its rules."""


class Vetoed(FailedPrecondition):
    """A plugin refused this change; `metadata["plugin"]` names it."""


class PluginConflict(FailedPrecondition):
    """A plugin cannot be switched as the others stand."""


class Aborted(HiveError):
    """The change collided with others; nothing was changed."""

    default_code = grpc.StatusCode.ABORTED


class RevisionMismatch(Aborted):
    """The revision given is not the current one: read again and decide again."""


class OutOfRange(HiveError):
    """A position is outside of what there is."""

    default_code = grpc.StatusCode.OUT_OF_RANGE


class CursorCompacted(OutOfRange):
    """Events after the cursor are gone; the oldest that can be read come after `oldest_cursor`."""

    @property
    def oldest_cursor(self) -> str:
        """The cursor to go on from, knowing that what came before it was missed."""
        return self.metadata.get("oldest_cursor", "")


class Unimplemented(HiveError):
    """The server has no such method."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class PluginDisabled(Unimplemented):
    """The method belongs to a plugin that is off; `metadata["plugin"]` names the one to enable."""


class Internal(HiveError):
    """A defect in the server; its log has more under `metadata["call_id"]`."""

    default_code = grpc.StatusCode.INTERNAL


class Unavailable(HiveError):
    """The server cannot be reached or is stopping; repeating is safe."""

    default_code = grpc.StatusCode.UNAVAILABLE


class DataLoss(HiveError):
    """Data is missing or not what it was announced to be."""

    default_code = grpc.StatusCode.DATA_LOSS


class SequenceGap(DataLoss):
    """An event stream left something out that it had to carry. A defect; raised by the client."""


class Unauthenticated(HiveError):
    """Credentials are missing or not valid."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class TaskNotSucceeded(Exception):
    """A task ended without a result; `task` says how."""

    def __init__(self, task: task_pb2.Task) -> None:
        why = task.error.message or task.error.reason or task.state_reason
        super().__init__(f"task {task.task_id} did not succeed" + (f": {why}" if why else ""))
        self.task = task


_BY_REASON: dict[str, type[HiveError]] = {
    "STALE_ATTEMPT": StaleAttempt,
    "SESSION_FENCED": SessionFenced,
    "SESSION_NOT_FOUND": SessionNotFound,
    "PROTOCOL_VIOLATION": ProtocolViolation,
    "VETOED": Vetoed,
    "PLUGIN_CONFLICT": PluginConflict,
    "PLUGIN_DISABLED": PluginDisabled,
    "REVISION_MISMATCH": RevisionMismatch,
    "CURSOR_COMPACTED": CursorCompacted,
}

_BY_CODE: dict[grpc.StatusCode, type[HiveError]] = {
    kind.default_code: kind
    for kind in (
        Cancelled, Unknown, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied,
        ResourceExhausted, FailedPrecondition, Aborted, OutOfRange, Unimplemented, Internal, Unavailable, DataLoss,
        Unauthenticated,
    )
}  # fmt: skip


def error_from_rpc(error: grpc.aio.AioRpcError) -> HiveError:
    """Return the exception for a failed call. Details that cannot be read are left out, never raised."""
    reason, metadata, retry_after = "", {}, None
    violations: list[FieldViolation] = []
    for detail in _status_of(error).details:
        info, retry, request = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.BadRequest(),
        )
        try:
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToNanoseconds() / 1e9
            elif detail.Unpack(request):
                violations += [FieldViolation(each.field, each.description) for each in request.field_violations]
        except DecodeError:
            continue
    kind = _BY_REASON.get(reason) or _BY_CODE.get(error.code(), Unknown)
    return kind(
        error.details() or "",
        code=error.code(),
        reason=reason,
        metadata=metadata,
        retry_after=retry_after,
        field_violations=violations,
    )


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    for key, data in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(data, bytes):
            try:
                return status_pb2.Status.FromString(data)
            except DecodeError:
                break
    return status_pb2.Status()
