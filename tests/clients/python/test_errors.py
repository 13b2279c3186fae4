"""Errors arrive as exceptions named for what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from agenthive import errors
from agenthive.errors import error_from_rpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # no py.typed in that wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.clients.python.conftest import Refusal

Code = grpc.StatusCode


def rpc_error(code: grpc.StatusCode, text: str = "", status: bytes | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata() if status is None else grpc.aio.Metadata(("grpc-status-details-bin", status))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=text)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (Code.NOT_FOUND, "TASK_NOT_FOUND", errors.NotFound),
        (Code.NOT_FOUND, "SESSION_NOT_FOUND", errors.SessionNotFound),
        (Code.ALREADY_EXISTS, "AGENT_EXISTS", errors.AlreadyExists),
        (Code.INVALID_ARGUMENT, "INVALID_FIELD", errors.InvalidArgument),
        (Code.FAILED_PRECONDITION, "STALE_ATTEMPT", errors.StaleAttempt),
        (Code.FAILED_PRECONDITION, "ILLEGAL_TRANSITION", errors.FailedPrecondition),
        (Code.ABORTED, "REVISION_MISMATCH", errors.RevisionMismatch),
        (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", errors.ResourceExhausted),
        (Code.UNAVAILABLE, "DRAINING", errors.Unavailable),
        (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        (Code.UNIMPLEMENTED, "NOT_IMPLEMENTED", errors.Unimplemented),
        (Code.PERMISSION_DENIED, "PERMISSION_DENIED", errors.PermissionDenied),
        (Code.UNAUTHENTICATED, "UNAUTHENTICATED", errors.Unauthenticated),
        (Code.INTERNAL, "INTERNAL", errors.Internal),
        (Code.UNKNOWN, "OUTCOME_UNKNOWN", errors.Unknown),
        (Code.CANCELLED, "CANCELLED", errors.Cancelled),
        (Code.DATA_LOSS, "DIGEST_MISMATCH", errors.DataLoss),
    ],
)
def test_the_reason_says_which_exception_it_is(
    refusal: Callable[..., Refusal], code: grpc.StatusCode, reason: str, kind: type[errors.HiveError]
) -> None:
    made = refusal(code, reason)
    error = error_from_rpc(rpc_error(code, made.text, made.status))
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (code, reason, f"refused: {reason}")


def test_details_become_attributes(refusal: Callable[..., Refusal]) -> None:
    made = refusal(
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="spec.type", description="is missing")]
        ),
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
        metadata={"limit": "4"},
    )
    error = error_from_rpc(rpc_error(Code.INVALID_ARGUMENT, "no", made.status))
    assert error.retry_after == 1.5
    assert error.metadata == {"limit": "4"}
    assert error.field_violations == (("spec.type", "is missing"),)
    assert str(error) == "INVALID_ARGUMENT INVALID_FIELD: no; spec.type: is missing"


def test_a_compacted_cursor_names_the_oldest(refusal: Callable[..., Refusal]) -> None:
    made = refusal(Code.OUT_OF_RANGE, "CURSOR_COMPACTED", metadata={"oldest_cursor": "c-9"})
    error = error_from_rpc(rpc_error(Code.OUT_OF_RANGE, "", made.status))
    assert isinstance(error, errors.CursorCompacted)
    assert error.oldest_cursor == "c-9"


@pytest.mark.parametrize("status", [None, b"\xff\xff\xffgarbage"])
def test_without_readable_details_the_code_decides(status: bytes | None) -> None:
    error = error_from_rpc(rpc_error(Code.UNAVAILABLE, "proxy", status))
    assert type(error) is errors.Unavailable
    assert (error.reason, error.retry_after, str(error)) == ("", None, "UNAVAILABLE: proxy")
