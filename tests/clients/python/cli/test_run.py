"""`hive run` and `hive tasks output`: work that ends well, badly, late; output as it comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from agenthive.v1 import event_pb2, task_pb2

Hive = Callable[..., Any]


def output(fake: Any, task: Any, data: bytes, offset: int, attempt: int = 1) -> None:
    fake.happen(
        task_id=task.task_id,
        agent_id="a-1",
        task_output=event_pb2.TaskOutput(attempt=attempt, offset=offset, data=data),
    )


def work(fake: Any, task: Any) -> None:
    """What an agent does to a task."""
    fake.happen(task_id=task.task_id, agent_id="a-1", task_started=event_pb2.TaskStarted(attempt=1))
    fake.move(task, "RUNNING")
    fake.happen(
        task_id=task.task_id, agent_id="a-1",
        task_progressed=event_pb2.TaskProgressed(attempt=1, fraction=0.5, text="halfway"),
    )  # fmt: skip
    output(fake, task, b"one\ntw", 0)
    output(fake, task, b"o\n", 6)
    task.attempt = 1
    task.result.data = b'{"ok": true}'
    task.result.content_type = "application/json"
    fake.happen(task_id=task.task_id, agent_id="a-1", task_succeeded=event_pb2.TaskSucceeded(attempt=1))
    fake.move(task, "SUCCEEDED")


def fail(fake: Any, task: Any) -> None:
    error = task_pb2.TaskError(error_class=task_pb2.TASK_ERROR_CLASS_TOOL, reason="EXIT_CODE", message="exit 2")
    task.error.CopyFrom(error)
    fake.happen(task_id=task.task_id, task_failed=event_pb2.TaskFailed(attempt=1, error=error))
    fake.move(task, "FAILED")


def test_the_result_goes_to_stdout_and_the_story_to_stderr(hive: Hive, fake: Any) -> None:
    fake.worker = work
    answer = hive("run", "review", "text", "-c", "python")
    assert answer.code == 0
    assert answer.out == '{"ok": true}\n'
    told = answer.err.splitlines()
    assert "delegated" in told[0]
    assert "started by a-1" in told[1]
    assert told[2] == "50% halfway"
    assert told[3:5] == ["one", "two"]
    assert "succeeded" in told[5]


def test_a_failed_task_ends_with_1_and_says_why(hive: Hive, fake: Any) -> None:
    fake.worker = fail
    answer = hive("run", "review")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.endswith("hive: task task-1 FAILED: TOOL EXIT_CODE: exit 2\n")


def test_a_quiet_run_shows_only_the_result(hive: Hive, fake: Any) -> None:
    fake.worker = work
    answer = hive("run", "review", "--quiet")
    assert (answer.code, answer.out, answer.err) == (0, '{"ok": true}\n', "")
    assert "StreamEventsRequest" not in fake.requests


def test_a_script_gets_the_task_as_one_document(hive: Hive, fake: Any) -> None:
    fake.worker = fail
    answer = hive("run", "review", "-o", "json")
    assert answer.code == 1
    assert answer.err == ""
    assert answer.json["state"] == "TASK_STATE_FAILED"
    assert answer.json["error"]["reason"] == "EXIT_CODE"


def test_no_follow_prints_the_id_and_ends(hive: Hive, fake: Any) -> None:
    answer = hive("run", "review", "--no-follow", "--id", "mine")
    assert (answer.code, answer.out, answer.err) == (0, "mine\n", "")


def test_a_run_that_takes_too_long_ends_with_6_and_leaves_the_task(hive: Hive, fake: Any) -> None:
    answer = hive("run", "review", "--timeout", "300ms")
    assert answer.code == 6
    assert "has not ended" in answer.err
    assert "CancelTaskRequest" not in fake.requests


def test_output_that_came_late_is_taken_from_what_was_kept(hive: Hive, fake: Any) -> None:
    def late(fake: Any, task: Any) -> None:
        task.output_blob_id = fake.add_blob(b"one\ntwo\nthree\n")
        work(fake, task)

    fake.worker = late
    told = hive("run", "review").err.splitlines()
    assert [line for line in told if line in ("one", "two", "three")] == ["one", "two", "three"]


def test_a_question_says_how_to_answer(hive: Hive, fake: Any) -> None:
    def ask(fake: Any, task: Any) -> None:
        fake.happen(task_id=task.task_id, task_input_requested=event_pb2.TaskInputRequested(question="Which branch?"))
        work(fake, task)

    fake.worker = ask
    told = hive("run", "review").err
    assert "Which branch?" in told
    assert "hive tasks respond task-1 ANSWER" in told


def test_the_kept_output_of_an_ended_task_is_written_as_it_is(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "SUCCEEDED")
    task.output_blob_id = fake.add_blob(b"\x1b[1mbold\x1b[0m\n")
    answer = hive("tasks", "output", "t-1")
    assert (answer.code, answer.out) == (0, "\x1b[1mbold\x1b[0m\n")


def test_a_task_without_output_says_so(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1", "SUCCEEDED")
    answer = hive("tasks", "output", "t-1")
    assert (answer.code, answer.out, answer.err) == (0, "", "task t-1 has no output\n")


def test_the_output_so_far_comes_without_waiting(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "RUNNING")
    task.attempt = 1
    output(fake, task, b"abc", 0)
    output(fake, task, b"bcd", 1)
    assert hive("tasks", "output", "t-1", "--no-follow").out == "abcd"


def test_live_output_ends_with_the_task(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "RUNNING")
    task.attempt = 1
    output(fake, task, b"old ", 0)

    def end() -> None:
        fake.wait_for(lambda: "StreamEventsRequest" in fake.requests)
        output(fake, task, b"new", 4)
        fake.happen(task_id="t-1", task_succeeded=event_pb2.TaskSucceeded(attempt=1))
        task.output_blob_id = fake.add_blob(b"old new!")
        fake.move(task, "SUCCEEDED")

    ending = threading.Thread(target=end)
    ending.start()
    answer = hive("tasks", "output", "t-1")
    ending.join()
    assert (answer.code, answer.out) == (0, "old new!")


def test_a_new_attempt_and_a_gap_are_told(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "RUNNING")
    task.attempt = 1
    output(fake, task, b"first", 0)
    fake.happen(task_id="t-1", output_gap=event_pb2.OutputGap(attempt=2, from_offset=0, to_offset=10))
    output(fake, task, b"second", 10, attempt=2)
    answer = hive("tasks", "output", "t-1", "--no-follow")
    assert answer.out == "firstsecond"
    assert answer.err == "[attempt 2]\n[some output is not available any more]\n"


def test_output_as_json_lines(hive: Hive, fake: Any) -> None:
    task = fake.add_task("t-1", "RUNNING")
    task.attempt = 1
    output(fake, task, b"text", 0)
    output(fake, task, b"\xff", 4)
    first, second = hive("tasks", "output", "t-1", "--no-follow", "-o", "json").lines
    assert first["task_output"]["data"] == "text"
    assert second["task_output"]["data_base64"] == "/w=="
