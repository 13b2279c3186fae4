"""`hive tasks` against a hive in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agenthive.v1 import orchestrator_service_pb2, payload_pb2, task_pb2

Hive = Callable[..., Any]


def test_tasks_are_listed_with_why_they_failed(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "FAILED", type="review", title="Look")
    task.error.CopyFrom(task_pb2.TaskError(error_class=task_pb2.TASK_ERROR_CLASS_TOOL, reason="EXIT_CODE", message="2"))
    task.attempts.add(number=1, agent_id="a-1")
    task.attempt = 1
    _, line = hive("tasks", "list").out.splitlines()
    assert line.split()[:6] == ["t-1", "FAILED", "review", "3", "1", "a-1"]
    assert line.endswith("Look: TOOL EXIT_CODE: 2")


def test_the_list_ends_at_its_limit_and_says_so(hive: Hive, fake: Any) -> None:
    for number in range(5):
        fake.add_task(f"t-{number}")
    answer = hive("tasks", "list", "--limit", "2")
    assert len(answer.out.splitlines()) == 3
    assert "--limit 0 shows all" in answer.err
    assert len(hive("tasks", "list", "--limit", "0", "-o", "json").json) == 5


def test_open_tasks_are_asked_for_by_their_states(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1", "RUNNING")
    fake.add_task("t-2", "SUCCEEDED")
    assert [task["task_id"] for task in hive("tasks", "list", "--open", "-o", "json").json] == ["t-1"]
    assert hive("tasks", "list", "--open", "--state", "failed").code == 2


def test_a_payload_is_readable_in_json(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "SUCCEEDED")
    task.spec.input.CopyFrom(payload_pb2.Payload(content_type="text/plain", data="grün".encode()))
    task.result.CopyFrom(payload_pb2.Payload(content_type="application/json", data=b'{"n": [1, 2]}'))
    task.progress.checkpoint = b"\xff\x00"
    document = hive("tasks", "get", "t-1", "-o", "json").json
    assert document["spec"]["input"]["data"] == "grün"
    assert document["result"]["data"] == {"n": [1, 2]}
    assert document["progress"]["checkpoint_base64"] == "/wA="
    assert document["counted_attempts"] == 0


def test_content_cannot_steer_the_terminal(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1", title="red \x1b[31m alert\nnext")
    out = hive("tasks", "list").out
    assert "\x1b" not in out
    assert "red \\x1b[31m alert next" in out


def test_delegate_prints_the_id_alone(hive: Hive, fake: Any) -> None:
    answer = hive(
        "tasks", "delegate", "review", '{"pr": 7}', "--id", "t-9", "-p", "1", "-c", "python", "--role", "reviewer",
        "--agent", "a-1", "--strategy", "round-robin", "--label", "x=1", "--parent", "t-0", "--depends-on", "t-1",
        "--attempts", "5", "--attempt-timeout", "10m", "--queue-timeout", "1h", "--review", "--exclusive",
        "--request-id", "r-1",
    )  # fmt: skip
    assert answer.out == "t-9\n"
    [asked] = fake.requests["DelegateTaskRequest"]
    assert asked.request_id == "r-1"
    spec = asked.spec
    assert (spec.type, spec.priority, spec.role, spec.agent_id) == ("review", 1, "reviewer", "a-1")
    assert spec.input == payload_pb2.Payload(content_type="application/json", data=b'{"pr": 7}')
    assert spec.routing_strategy == task_pb2.ROUTING_STRATEGY_ROUND_ROBIN
    assert spec.retry_policy.maximum_attempts == 5
    assert spec.timeouts.start_to_close_timeout.seconds == 600
    assert spec.timeouts.schedule_to_start_timeout.seconds == 3600
    assert spec.requires_review
    assert spec.exclusive
    assert (spec.parent_task_id, list(spec.depends_on)) == ("t-0", ["t-1"])


def test_input_comes_from_a_file_or_stdin(hive: Hive, fake: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text("# notes")
    hive("tasks", "delegate", "work", f"@{file}")
    hive("tasks", "delegate", "work", "-", stdin=b"\xff\xfe")
    hive("tasks", "delegate", "work", "@@home")
    first, second, third = (request.spec.input for request in fake.requests["DelegateTaskRequest"])
    assert first == payload_pb2.Payload(content_type="text/plain; charset=utf-8", data=b"# notes")
    assert second == payload_pb2.Payload(content_type="application/octet-stream", data=b"\xff\xfe")
    assert third.data == b"@home"


def test_a_missing_input_file_is_one_sentence(hive: Hive, fake: Any) -> None:
    answer = hive("tasks", "delegate", "work", "@/nowhere/file")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "/nowhere/file" in answer.err
    assert "DelegateTaskRequest" not in fake.requests


def test_large_input_travels_as_a_blob(hive: Hive, fake: Any) -> None:
    data = b"x" * (1024 * 1024 + 1)
    assert hive("tasks", "delegate", "work", "-", stdin=data).code == 0
    blob_id = fake.requests["DelegateTaskRequest"][0].spec.input.blob_id
    assert fake.blobs[blob_id] == data


def test_wait_prints_the_result(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "SUCCEEDED")
    task.result.data = b"done"
    answer = hive("tasks", "wait", "t-1")
    assert (answer.code, answer.out, answer.err) == (0, "done\n", "")


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "EXPIRED", "QUARANTINED"])
def test_wait_ends_with_1_when_the_task_did_not_succeed(hive: Hive, fake: Any, state: str) -> None:
    task = fake.add_task("t-1", state)
    task.state_reason = "because"
    answer = hive("tasks", "wait", "t-1")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"hive: task t-1 {state}: because\n"


def test_wait_ends_with_6_when_the_task_has_not_ended_in_time(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1", "RUNNING")
    answer = hive("tasks", "wait", "t-1", "--timeout", "100ms")
    assert answer.code == 6
    assert "t-1 has not ended, it is RUNNING (DEADLINE_EXCEEDED)" in answer.err


def test_wait_for_attention_shows_the_question(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "INPUT_REQUIRED")
    task.input_request.question = "Which branch?"
    answer = hive("tasks", "wait", "t-1", "--attention")
    assert answer.code == 0
    assert "Which branch?" in answer.out


def test_steering_commands_reach_the_task(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1", "RUNNING")
    for verb in ("retry", "pause", "resume"):
        assert hive("tasks", verb, "t-1").code == 0
        assert fake.requests[f"{verb.capitalize()}TaskRequest"][0].request_id
    assert "CANCELED" in hive("tasks", "cancel", "t-1", "--reason", "enough").out
    assert fake.requests["CancelTaskRequest"][0].reason == "enough"


def test_an_answer_is_json_when_it_is_json(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1", "INPUT_REQUIRED")
    hive("tasks", "respond", "t-1", "true")
    hive("tasks", "respond", "t-1", "yes, do")
    first, second = (request.answer for request in fake.requests["RespondToTaskRequest"])
    assert (first.content_type, first.data) == ("application/json", b"true")
    assert (second.content_type, second.data) == ("text/plain; charset=utf-8", b"yes, do")


def test_a_review_says_one_thing(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1", "REPORTED")
    assert hive("tasks", "review", "t-1").code == 2
    assert hive("tasks", "review", "t-1", "--accept", "--send-back").code == 2
    assert hive("tasks", "review", "t-1", "--send-back", "--comment", "tests").code == 0
    [asked] = fake.requests["ReviewTaskRequest"]
    assert asked.verdict == orchestrator_service_pb2.REVIEW_VERDICT_SEND_BACK
    assert asked.comment == "tests"
