"""Which error becomes which status: one table by reason, and the details that travel with it."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships without types

from agenthive_server.kernel import errors
from agenthive_server.kernel.errors import KernelError

DOMAIN: Final = "agenthive"
DETAILS_KEY: Final = "grpc-status-details-bin"
TEXT_BYTES: Final = 1_000
"""Longest text of an error. Clients refuse trailers beyond 8 KiB, and the text is in there twice, encoded."""
METADATA_BYTES: Final = 256
METADATA_COUNT: Final = 16

Code = grpc.StatusCode

CODES: Final[dict[str, grpc.StatusCode]] = {
    "INVALID_FIELD": Code.INVALID_ARGUMENT,
    "MALFORMED_MESSAGE": Code.INVALID_ARGUMENT,
    "MESSAGE_TOO_LARGE": Code.RESOURCE_EXHAUSTED,
    "REQUEST_ID_REUSED": Code.INVALID_ARGUMENT,
    "DEPENDENCY_CYCLE": Code.INVALID_ARGUMENT,
    "INVALID_CURSOR": Code.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": Code.INVALID_ARGUMENT,
    "AGENT_NOT_FOUND": Code.NOT_FOUND,
    "TASK_NOT_FOUND": Code.NOT_FOUND,
    "SESSION_NOT_FOUND": Code.NOT_FOUND,
    "BLOB_NOT_FOUND": Code.NOT_FOUND,
    "MESSAGE_NOT_FOUND": Code.NOT_FOUND,
    "PLUGIN_NOT_FOUND": Code.NOT_FOUND,
    # Of grpc.health.v1, whose protocol asks for NOT_FOUND.
    "SERVICE_NOT_FOUND": Code.NOT_FOUND,
    "RECORD_NOT_FOUND": Code.NOT_FOUND,
    "RECORD_EXISTS": Code.ALREADY_EXISTS,
    "TASK_EXISTS": Code.ALREADY_EXISTS,
    "AGENT_EXISTS": Code.ALREADY_EXISTS,
    "ILLEGAL_TRANSITION": Code.FAILED_PRECONDITION,
    "STALE_ATTEMPT": Code.FAILED_PRECONDITION,
    "SESSION_FENCED": Code.FAILED_PRECONDITION,
    "PROTOCOL_VIOLATION": Code.FAILED_PRECONDITION,
    "VETOED": Code.FAILED_PRECONDITION,
    "REVISION_MISMATCH": Code.ABORTED,
    "CONFLICT": Code.ABORTED,
    "CURSOR_COMPACTED": Code.OUT_OF_RANGE,
    "OVERLOADED": Code.RESOURCE_EXHAUSTED,
    "DISK_LOW": Code.RESOURCE_EXHAUSTED,
    "QUOTA_EXCEEDED": Code.RESOURCE_EXHAUSTED,
    "DRAINING": Code.UNAVAILABLE,
    "STORE_UNAVAILABLE": Code.UNAVAILABLE,
    "OUTCOME_UNKNOWN": Code.UNKNOWN,
    "DEADLINE_EXCEEDED": Code.DEADLINE_EXCEEDED,
    "NOT_IMPLEMENTED": Code.UNIMPLEMENTED,
    "INTERNAL": Code.INTERNAL,
    "UNAUTHENTICATED": Code.UNAUTHENTICATED,
    "PERMISSION_DENIED": Code.PERMISSION_DENIED,
    "CANCELLED": Code.CANCELLED,
    "DIGEST_MISMATCH": Code.DATA_LOSS,
    "PLUGIN_DISABLED": Code.UNIMPLEMENTED,
    "PLUGIN_FAILED": Code.UNAVAILABLE,
    "PLUGIN_CONFLICT": Code.FAILED_PRECONDITION,
    "PLUGIN_CANNOT_OPEN": Code.FAILED_PRECONDITION,
}
"""Status codes by reason: a row for each value of `ErrorReason` in the protos."""

_RETRY_SECONDS: Final[dict[str, float]] = {
    "OVERLOADED": 1.0,
    "DISK_LOW": 30.0,
    "DRAINING": 0.5,
    "STORE_UNAVAILABLE": 1.0,
    "CONFLICT": 0.1,
    "PLUGIN_FAILED": 1.0,
}
"""When a repeat makes sense, for errors that do not say it themselves."""


def reason_of(error: KernelError) -> str:
    """Return the reason of an error as in the catalogue: its own, else the usual one of its class."""
    return error.reason if error.reason in CODES else type(error).reason


def internal(call_id: str) -> KernelError:
    """Return what a caller sees of a defect: nothing but where the log has it."""
    return KernelError(
        f"internal error; the server's log has it under call id {call_id or 'unknown'}",
        reason="INTERNAL",
        metadata={"call_id": call_id},
    )


def seen_by_caller(error: BaseException, request: object, call_id: str) -> KernelError:
    """Return the error as its caller may see it; what is no `KernelError` is a defect and becomes INTERNAL."""
    if not isinstance(error, KernelError):
        return internal(call_id)
    if isinstance(error, errors.OutcomeUnknown) and getattr(request, "request_id", None):
        # With a request id a repeat finds out: it may be sent again by any client that retries UNAVAILABLE.
        text = f"{error.message}; repeat it with the same request_id"
        return errors.StoreUnavailable(text, retry_after=error.retry_after, metadata=error.metadata)
    return error


def cut(text: str, limit: int = TEXT_BYTES) -> str:
    """Return a text of at most `limit` bytes as UTF-8, whatever is in it."""
    raw = text.encode("utf-8", "replace")
    return raw[:limit].decode("utf-8", "ignore")


def trailers(error: KernelError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return code, text and trailing metadata (with the `google.rpc.Status`) for an error."""
    reason = reason_of(error)
    code, text = CODES[reason], cut(f"{error.field}: {error.message}" if error.field else error.message)
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in _details(error, reason, cut(error.message)):
        status.details.add().Pack(detail)
    return code, text, ((DETAILS_KEY, status.SerializeToString()),)


def _details(error: KernelError, reason: str, text: str) -> list[Message]:
    facts = {
        cut(key, 64): cut(str(value), METADATA_BYTES) for key, value in list(error.metadata.items())[:METADATA_COUNT]
    }
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=facts)]
    if error.field:
        violation = {"field": cut(error.field, METADATA_BYTES), "description": text, "reason": reason}
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    wait = _RETRY_SECONDS.get(reason) if error.retry_after is None else error.retry_after
    if wait is not None:
        details.append(_retry_info(wait))
    if reason == "QUOTA_EXCEEDED":
        violation = {"subject": facts.get("subject") or facts.get("quota", ""), "description": text}
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if CODES[reason] is Code.FAILED_PRECONDITION:
        subject = facts.get("task_id") or facts.get("agent_id") or facts.get("session_id", "")
        violation = {"type": reason, "subject": subject, "description": text}
        details.append(error_details_pb2.PreconditionFailure(violations=[violation]))
    if CODES[reason] in (Code.NOT_FOUND, Code.ALREADY_EXISTS):
        details.append(_resource_info(reason, facts, text))
    return details


def _retry_info(seconds: float) -> Message:
    info: Message = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(max(0.0, min(seconds, 86_400.0)) * 1e9))  # type: ignore[attr-defined]  # untyped
    return info


def _resource_info(reason: str, facts: dict[str, str], text: str) -> Message:
    noun = reason.partition("_")[0].lower()
    name = facts.get(f"{noun}_id") or facts.get("name", "")
    info: Message = error_details_pb2.ResourceInfo(resource_type=noun, resource_name=name, description=text)
    return info
