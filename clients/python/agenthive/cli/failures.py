"""What a failure looks like at a terminal: one sentence, or one JSON object, and an exit code."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agenthive.errors import HiveError


class ExitCode(IntEnum):
    """How `hive` ends. 130 is Ctrl-C, 141 a reader that went away."""

    OK = 0
    OUTCOME = 1
    """The operation was made and its outcome is a failure, for example a task that failed."""
    USAGE = 2
    """The command line or the request makes no sense. `hive health`: the server is down."""
    UNAVAILABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    """The state does not allow it, it conflicts with another change, or the id is in use."""
    DEADLINE = 6
    OTHER = 7
    DENIED = 8
    """The server does not know who calls, or does not let them do this."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class Failure(Exception):
    """A command cannot do what it was asked for; `reason` is a stable word for scripts."""

    def __init__(self, message: str, code: ExitCode, reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def exit_code(error: HiveError) -> ExitCode:
    """Return how `hive` ends after this error of a call."""
    from agenthive import errors

    kinds: tuple[tuple[type[HiveError] | tuple[type[HiveError], ...], ExitCode], ...] = (
        (errors.InvalidArgument, ExitCode.USAGE),
        ((errors.Unavailable, errors.Cancelled), ExitCode.UNAVAILABLE),
        (errors.NotFound, ExitCode.NOT_FOUND),
        ((errors.FailedPrecondition, errors.AlreadyExists, errors.Aborted), ExitCode.REFUSED),
        (errors.DeadlineExceeded, ExitCode.DEADLINE),
        ((errors.Unauthenticated, errors.PermissionDenied), ExitCode.DENIED),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), ExitCode.OTHER)


def sentence(error: HiveError) -> str:
    """Return an error of a call as one sentence with its reason and the fields that are wrong."""
    reason = error.reason or error.code.name
    fields = "; ".join(f"{field}: {why}" for field, why in error.field_violations)
    text = (error.message or "the call failed").strip().rstrip(".")
    if fields and all(why in text for _, why in error.field_violations):
        fields = ", ".join(field for field, _ in error.field_violations)
    hints = [f"{key} {value}" for key, value in sorted(error.metadata.items())]
    if error.retry_after is not None:
        hints.append(f"retry after {error.retry_after:g} s")
    whole = f"{text} ({reason}{f'; {fields}' if fields else ''}{''.join(f'; {hint}' for hint in hints)})"
    if reason == "PLUGIN_DISABLED" and "plugin" in error.metadata:
        whole += f"; `hive plugins enable {error.metadata['plugin']}` switches it on"
    return whole


def failure_document(error: HiveError | Failure) -> dict[str, Any]:
    """Return an error as the object scripts get."""
    if isinstance(error, Failure):
        return {"error": {"code": error.code.name, "reason": error.reason, "message": str(error)}}
    return {
        "error": {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "field_violations": [each._asdict() for each in error.field_violations],
            "metadata": dict(error.metadata),
            "retry_after": error.retry_after,
        }
    }
