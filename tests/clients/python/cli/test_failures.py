"""What goes wrong: one sentence or one object on stderr, an exit code, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # no py.typed in that wheel

Hive = Callable[..., Any]


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.NOT_FOUND, 4),
        (grpc.StatusCode.FAILED_PRECONDITION, 5),
        (grpc.StatusCode.ALREADY_EXISTS, 5),
        (grpc.StatusCode.ABORTED, 5),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 6),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 7),
        (grpc.StatusCode.PERMISSION_DENIED, 8),
        (grpc.StatusCode.UNAUTHENTICATED, 8),
        (grpc.StatusCode.INTERNAL, 7),
    ],
)
def test_the_exit_code_says_what_kind_of_failure_it_is(hive: Hive, fake: Any, code: Any, ends: int) -> None:
    fake.refusal = (code, "SOME_REASON", "it is so", ())
    answer = hive("tasks", "get", "t-1")
    assert (answer.code, answer.out) == (ends, "")
    assert answer.err == "hive: it is so (SOME_REASON)\n"


def test_the_field_that_is_wrong_is_named(hive: Hive, fake: Any) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="spec.type", description="must not be empty")
    fake.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "The request is not valid.", (bad,))
    assert hive("run", "").err == "hive: The request is not valid (INVALID_FIELD; spec.type: must not be empty)\n"


def test_a_script_gets_an_object(hive: Hive, fake: Any) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2))
    fake.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_LOW", "the disk is full", (retry,))
    error = json.loads(hive("tasks", "get", "t-1", "-o", "json").err)["error"]
    assert error == {
        "code": "RESOURCE_EXHAUSTED", "reason": "DISK_LOW", "message": "the disk is full", "field_violations": [],
        "metadata": {}, "retry_after": 2.0,
    }  # fmt: skip


def test_nobody_there_is_told_quickly(alone: Hive) -> None:
    answer = alone("tasks", "get", "t-1", "--server", "127.0.0.1:1")
    assert answer.code == 3
    assert answer.err.startswith("hive: no connection to 127.0.0.1:1: Connection refused")
    assert answer.err.count("\n") == 1
    document = json.loads(alone("tasks", "list", "--server", "127.0.0.1:1", "--output=json").err)
    assert document["error"]["reason"] == "UNAVAILABLE"


def test_a_deadline_ends_a_call(hive: Hive, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add_task("t-1")
    held = fake.changed
    held.acquire()  # the server cannot answer while the test holds this
    try:
        answer = hive("tasks", "get", "t-1", "--timeout", "200ms")
    finally:
        held.release()
    assert answer.code == 6
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("nonsense",), ("tasks", "get"), ("tasks", "get", "--nonsense", "x"), ("tasks", "list", "--limit", "x")]
)
def test_a_wrong_command_line_is_one_sentence(alone: Hive, words: tuple[str, ...]) -> None:
    answer = alone(*words)
    assert answer.code == 2
    assert answer.err.startswith("hive: ")
    assert "(USAGE)" in answer.err
    assert answer.err.count("\n") == 1
    assert json.loads(alone(*words, "-o", "json").err)["error"]["reason"] == "USAGE"


def test_an_authority_that_cannot_be_read_is_named(alone: Hive, tmp_path: Path) -> None:
    answer = alone("health", "--ca", str(tmp_path / "ca.pem"))
    assert answer.code == 2
    assert "ca.pem: No such file" in answer.err


def test_a_server_without_tls_is_not_reached_with_it(hive: Hive) -> None:
    answer = hive("tasks", "list", "--tls", "--timeout", "5s")
    assert answer.code == 3
    assert "it does not speak TLS" in answer.err
