"""Errors and the details that travel with them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from agenthive_server.kernel import errors
from agenthive_server.kernel.errors import KernelError
from agenthive_server.rpc.status import CODES, DETAILS_KEY, cut, reason_of, seen_by_caller, trailers
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships without types

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KernelError)]


def details(error: KernelError) -> dict[str, Any]:
    _, _, ((key, raw),) = trailers(error)
    assert key == DETAILS_KEY
    found = {}
    for entry in status_pb2.Status.FromString(raw).details:
        name = entry.type_url.rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert entry.Unpack(found[name])
    return found


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_of_error_has_a_code(kind: type[KernelError]) -> None:
    code, text, _ = trailers(kind("why"))
    assert code is CODES[kind.reason]
    assert text == "why"
    assert details(kind("why"))["ErrorInfo"].reason == kind.reason


def test_a_reason_that_is_not_in_the_catalogue_gives_way_to_that_of_the_class() -> None:
    error = errors.NotFound("no", reason="SOMETHING_ELSE")
    assert reason_of(error) == "TASK_NOT_FOUND"
    assert trailers(error)[0] is grpc.StatusCode.NOT_FOUND


def test_a_field_at_fault_is_named() -> None:
    error = errors.BadRequest("too long", field="spec.type")
    assert trailers(error)[1] == "spec.type: too long"
    (violation,) = details(error)["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("spec.type", "too long")


def test_who_may_come_back_is_told_when() -> None:
    told = details(errors.Overloaded("busy", retry_after=2.5))["RetryInfo"]
    assert told.retry_delay.ToMilliseconds() == 2_500
    assert details(errors.Draining("bye"))["RetryInfo"].retry_delay.ToMilliseconds() == 500
    assert details(errors.Overloaded("busy", retry_after=-1.0))["RetryInfo"].retry_delay.ToMilliseconds() == 0
    assert "RetryInfo" not in details(errors.BadRequest("no"))


def test_a_quota_a_state_and_a_resource_are_named() -> None:
    quota = errors.Overloaded("full", reason="QUOTA_EXCEEDED", metadata={"quota": "tasks"})
    assert details(quota)["QuotaFailure"].violations[0].subject == "tasks"
    refused = errors.Refused("no", metadata={"task_id": "t", "state": "FAILED"})
    (violation,) = details(refused)["PreconditionFailure"].violations
    assert (violation.type, violation.subject) == ("ILLEGAL_TRANSITION", "t")
    exists = errors.Exists("in use", reason="AGENT_EXISTS", metadata={"agent_id": "a"})
    info = details(exists)["ResourceInfo"]
    assert (info.resource_type, info.resource_name) == ("agent", "a")


def test_trailers_stay_small_whatever_is_in_the_error() -> None:
    many = {f"key{n}" * 100: "😀" * 1_000 for n in range(100)}
    error = errors.BadRequest("😀" * 10_000, field="f" * 10_000, metadata=many)
    _, text, ((_, raw),) = trailers(error)
    assert len(text.encode()) <= 1_000
    assert len(raw) < 8_000


def test_a_text_is_cut_between_characters() -> None:
    assert cut("ääää", 5) == "ää"
    assert cut("a\udc80b") == "a?b"


def test_a_defect_shows_nothing_but_its_call_id() -> None:
    seen = seen_by_caller(KeyError("secret"), None, "c-1")
    assert (seen.reason, seen.metadata) == ("INTERNAL", {"call_id": "c-1"})
    assert "secret" not in seen.message
