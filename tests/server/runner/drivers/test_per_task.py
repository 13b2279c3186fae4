"""One process for each task: its endings, its streams, its tree, its confinement. All with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agenthive.v1 import agent_pb2, message_pb2, payload_pb2, task_pb2
from agenthive_server.runner.driver import Outcome, TaskKey
from agenthive_server.runner.drivers.process import ProcessDriver
from agenthive_server.runner.launch import Launcher
from agenthive_server.runner.tree import find_process
from agenthive_server.testing.driver_stage import DEADLINE, KEY, RecordedReport, Stage, eventually, gone, new_task

STUBBORN = 'trap "" INT TERM; echo here; while :; do sleep 60; done'


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(ProcessDriver(Launcher(patience=0.2)), tmp_path)
    yield stage
    await stage.close()


def command(*words: str, **fields: object) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=words, **fields))  # type: ignore[arg-type]


def shell(script: str, **fields: object) -> agent_pb2.AgentSpec:
    return command("sh", "-c", script, **fields)


def python(code: str, **fields: object) -> agent_pb2.AgentSpec:
    return command(sys.executable, "-I", "-S", "-c", code, **fields)


async def run(stage: Stage, spec: agent_pb2.AgentSpec, **task: object) -> tuple[Outcome, RecordedReport]:
    job, report = stage.begin(await stage.start(spec), new_task(**task))  # type: ignore[arg-type]
    return await job, report


def error_of(outcome: Outcome) -> task_pb2.TaskError:
    assert outcome.error is not None
    return outcome.error


def result_of(outcome: Outcome) -> payload_pb2.Payload:
    assert outcome.result is not None
    return outcome.result


async def test_exit_zero_without_a_result_succeeds_with_the_output(stage: Stage) -> None:
    outcome, report = await run(stage, shell("echo one; echo two >&2; printf three"))
    assert result_of(outcome).data == b"one\nthree"
    assert result_of(outcome).content_type == "text/plain"
    assert (bytes(report.content), bytes(report.errors)) == (b"one\nthree", b"two\n")


async def test_another_exit_fails_with_the_end_of_standard_error(stage: Stage) -> None:
    outcome, _ = await run(stage, shell("echo what went wrong >&2; exit 3"))
    error = error_of(outcome)
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_TOOL, "EXIT_CODE")
    assert error.message == "what went wrong"


async def test_exit_75_asks_for_a_retry(stage: Stage) -> None:
    error = error_of((await run(stage, shell("exit 75")))[0])
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_TOOL, "EX_TEMPFAIL")


async def test_a_signal_is_the_machines_fault(stage: Stage) -> None:
    error = error_of((await run(stage, shell("kill -SEGV $$")))[0])
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_INFRA, "SIGNAL")
    assert "SIGSEGV" in error.message


async def test_a_result_line_counts_whatever_the_exit_code(stage: Stage) -> None:
    outcome, report = await run(stage, shell("""echo '{"result": {"answer": 42}}'; echo more; exit 1"""))
    assert json.loads(result_of(outcome).data) == {"answer": 42}
    assert result_of(outcome).content_type == "application/json"
    assert report.content == b"more\n"


async def test_an_error_line_says_how_it_failed(stage: Stage) -> None:
    line = '{"error": {"class": "RATE_LIMITED", "reason": "SLOW_DOWN", "message": "later", "next_retry_delay": 1.5}}'
    error = error_of((await run(stage, shell(f"echo '{line}'")))[0])
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_RATE_LIMITED, "SLOW_DOWN")
    assert error.next_retry_delay.ToMilliseconds() == 1500


async def test_progress_checkpoint_and_usage_are_reported(stage: Stage) -> None:
    lines = (
        '{"progress": 0.25, "text": "reading"}',
        '{"checkpoint": "so far"}',
        '{"usage": {"input_tokens": 7, "cost_micros": 9}}',
        '{"context_usage": 0.5}',
        '{"output": "said"}',
    )
    _, report = await run(stage, command("printf", "%s\\n", *lines))
    assert (report.fractions, report.texts) == ([0.25], ["reading"])
    assert report.checkpoints == [b"so far"]
    assert (report.usages[0].input_tokens, report.usages[0].cost_micros) == (7, 9)
    assert report.shares == [0.5]
    assert report.content == b"said"


async def test_the_task_is_one_json_object_on_stdin(stage: Stage) -> None:
    outcome, _ = await run(stage, command("cat"), title="a title", labels={"key": "value"})
    assert json.loads(result_of(outcome).data) == {
        "task_id": "task-1",
        "type": "probe",
        "title": "a title",
        "attempt": 1,
        "lease_epoch": 1,
        "namespace": "default",
        "input": {"n": 1},
        "checkpoint": None,
        "answers": [],
        "labels": {"key": "value"},
    }


async def test_placeholders_are_replaced_once_and_nothing_else(stage: Stage) -> None:
    tricky = payload_pb2.Payload(content_type="text/plain", data=b"{task_id} $(id)")
    spec = command("printf", "%s|", "{task_id}", "{type}/{attempt}", "{input}", "{other} {", "{TASK_ID}")
    outcome, _ = await run(stage, spec, input=tricky)
    assert result_of(outcome).data == b'task-1|probe/1|"{task_id} $(id)"|{other} {|{TASK_ID}|'


async def test_an_input_too_long_for_an_argument_is_invalid(stage: Stage) -> None:
    long = payload_pb2.Payload(content_type="text/plain", data=b"x" * 200_000)
    error = error_of((await run(stage, command("echo", "{input}"), input=long))[0])
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_INVALID, "ARGUMENT_TOO_LONG")


async def test_a_null_byte_in_an_argument_is_invalid(stage: Stage) -> None:
    error = error_of((await run(stage, command("echo", "{type}"), type="a\0b"))[0])
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_INVALID, "NOT_AN_ARGUMENT")


async def test_bytes_that_are_no_text_are_output(stage: Stage) -> None:
    outcome, report = await run(stage, shell(r"printf '\377\376\n{\377}\n\000'"))
    assert result_of(outcome).data == report.content == b"\xff\xfe\n{\xff}\n\x00"


async def test_a_flood_of_output_takes_bounded_memory(stage: Stage) -> None:
    class Counting(RecordedReport):
        count = 0

        async def output(self, content: bytes, stream: int) -> None:
            assert len(content) <= 64 * 1024
            self.count += len(content)
            await asyncio.sleep(0)

    report = Counting()
    handle = await stage.start(shell("head -c 100000000 /dev/zero | tr '\\0' 'x'"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = await asyncio.wait_for(stage.driver.run_task(handle, new_task(), report), 60)
    assert report.count == 100_000_000
    assert len(result_of(outcome).data) == 64 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB


async def test_a_slow_reader_holds_the_process_back(stage: Stage) -> None:
    class Slow(RecordedReport):
        release = asyncio.Event()

        async def output(self, content: bytes, stream: int) -> None:
            self.news.set()
            await self.release.wait()

    report = Slow()
    handle = await stage.start(shell("head -c 3000000 /dev/zero; touch $HOME/done"))
    job = asyncio.create_task(stage.driver.run_task(handle, new_task(), report))
    await asyncio.wait_for(report.news.wait(), DEADLINE)
    assert not list(stage.folder.glob("*/done"))
    report.release.set()
    assert (await asyncio.wait_for(job, DEADLINE)).result is not None
    assert list(stage.folder.glob("*/done"))


async def test_a_line_longer_than_a_mebibyte_is_output(stage: Stage) -> None:
    code = "import sys; sys.stdout.write('{\"result\": \"' + 'x' * 2_000_000 + '\"}\\n'); print('{\"result\": 1}')"
    outcome, report = await run(stage, python(code))
    assert result_of(outcome).data == b"1"
    assert len(report.content) == 2_000_000 + 15


async def test_a_result_without_a_newline_at_the_end_counts(stage: Stage) -> None:
    outcome, _ = await run(stage, command("printf", "%s", '{"result": true}'))
    assert result_of(outcome).data == b"true"


async def test_a_result_that_grows_too_long_fails(stage: Stage) -> None:
    code = "print('{\"result\": [' + '1e9,' * 250_000 + '1]}')"
    assert error_of((await run(stage, python(code)))[0]).reason == "RESULT_TOO_LONG"


async def test_a_process_that_does_not_read_hurts_nobody(stage: Stage) -> None:
    big = payload_pb2.Payload(content_type="text/plain", data=b"x" * 3_000_000)
    stuck, said = stage.begin(await stage.start(shell("echo here; exec sleep 60")), new_task(input=big))
    await said.until(lambda report: bool(report.content))
    outcome, _ = await run(stage, command("true"), input=big)
    assert outcome.result is not None
    assert not stuck.done()
    stage.driver.cancel_task(stage.handles[0], KEY, 0.1)
    assert (await stuck).canceled is not None


async def test_cancel_is_sigint_first_and_a_result_still_counts(stage: Stage) -> None:
    script = """trap 'echo "{\\"result\\": \\"saved\\"}"; exit 0' INT; echo here; while :; do sleep 0.05; done"""
    handle = await stage.start(shell(script))
    job, report = stage.begin(handle)
    await report.until(lambda said: bool(said.content))
    stage.driver.cancel_task(handle, KEY, 60)
    assert result_of(await job).data == b'"saved"'


async def test_a_checkpoint_on_cancellation_is_heard(stage: Stage) -> None:
    script = """trap 'echo "{\\"checkpoint\\": \\"half\\"}"; exit 130' INT; echo here; while :; do sleep 0.05; done"""
    handle = await stage.start(shell(script))
    job, report = stage.begin(handle)
    await report.until(lambda said: bool(said.content))
    stage.driver.cancel_task(handle, KEY, 60)
    assert (await job).canceled is not None
    assert report.checkpoints == [b"half"]


async def test_the_ladder_ends_what_ignores_sigint_and_sigterm(stage: Stage) -> None:
    handle = await stage.start(shell(STUBBORN))
    job, report = stage.begin(handle)
    await report.until(lambda said: bool(said.content))
    stage.driver.cancel_task(handle, KEY, 0.1)
    outcome = await job
    assert outcome.canceled is not None
    assert "SIGKILL" in outcome.canceled


async def test_a_second_cancel_can_only_shorten_the_first(stage: Stage) -> None:
    handle = await stage.start(shell(STUBBORN))
    job, report = stage.begin(handle)
    await report.until(lambda said: bool(said.content))
    for grace in (3600, 0.1, 3600):
        stage.driver.cancel_task(handle, KEY, grace)
    assert (await job).canceled is not None


async def test_a_paused_process_can_still_be_canceled(stage: Stage) -> None:
    # No shell: between vfork and exec of a command, a stopped child keeps its parent in another state than stopped.
    waiting = "import signal, sys, time\nsignal.signal(2, lambda *_: sys.exit(0))\nprint('here', flush=True)\n"
    handle = await stage.start(python(waiting + "while True: time.sleep(0.05)"))
    job, report = stage.begin(handle)
    await report.until(lambda said: bool(said.content))
    await stage.driver.pause_task(handle, KEY, False)
    await eventually(lambda: (process := find_process(stage.processes[0])) and process.state == "T")
    stage.driver.cancel_task(handle, KEY, 60)
    assert (await job).canceled is not None


async def test_grandchildren_end_with_the_task(stage: Stage) -> None:
    _, report = await run(stage, shell("sleep 600 & echo $!; (sleep 600 & echo $!)"))
    for pid in report.content.split():
        await gone(int(pid))


DAEMON = """
import os, sys, time
for step in range(2):
    if os.fork():
        os._exit(0) if step else os.wait() and sys.exit(0)
    os.setsid()
if {scrub}:
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", {loop!r}], {{}})
exec({loop!r})
"""
LOOP = "import os, signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
LOOP += "print(os.getpid(), flush=True)\nwhile True: time.sleep(60)\n"


async def test_a_daemon_that_left_tree_and_session_ends_with_the_task(stage: Stage) -> None:
    _, report = await run(stage, python(DAEMON.format(scrub=False, loop=LOOP)))
    if report.content:
        await gone(int(report.content))


async def test_a_daemon_ends_when_its_task_is_canceled(stage: Stage) -> None:
    code = DAEMON.format(scrub=False, loop=LOOP).replace("sys.exit(0)", "time.sleep(600)")
    handle = await stage.start(python(code))
    job, report = stage.begin(handle)
    await report.until(lambda said: b"\n" in said.content)
    stage.driver.cancel_task(handle, KEY, 0.1)
    await job
    await gone(int(report.content))


async def test_only_the_canceled_one_of_two_tasks_is_stopped(stage: Stage) -> None:
    handle = await stage.start(shell("echo here; exec sleep 600"))
    (first, said), (second, heard) = stage.begin(handle), stage.begin(handle, new_task("task-2"))
    for report in (said, heard):
        await report.until(lambda each: bool(each.content))
    stage.driver.cancel_task(handle, KEY, 0.1)
    await first
    assert not second.done()
    stage.driver.cancel_task(handle, TaskKey("task-2", 1), 0.1)
    await second


async def test_the_environment_is_made_from_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECRET", "do-not-show")
    variables = [
        agent_pb2.EnvironmentVariable(name="MINE", value="yes"),
        agent_pb2.EnvironmentVariable(name="AGENTHIVE_HANDLE", value="stolen"),
    ]
    outcome, report = await run(stage, command("env", environment=variables))
    seen = dict(line.split("=", 1) for line in report.content.decode().splitlines())
    assert b"do-not-show" not in report.content
    assert seen.keys() == {
        "PATH",
        "LANG",
        "HOME",
        "TMPDIR",
        "MINE",
        "AGENTHIVE_HANDLE",
        "AGENTHIVE_AGENT_ID",
        "AGENTHIVE_NAMESPACE",
        "AGENTHIVE_TASK_ID",
        "AGENTHIVE_ATTEMPT",
        "AGENTHIVE_LEASE_EPOCH",
    }
    assert seen["MINE"] == "yes"
    assert seen["AGENTHIVE_HANDLE"].startswith("suite.")
    assert seen["HOME"].startswith(str(stage.folder))
    assert outcome.result is not None


async def test_its_folder_is_private_and_removed_with_the_task(stage: Stage) -> None:
    _, report = await run(stage, shell("pwd; stat -c %a .; touch file; stat -c %a file; mkdir a; touch a/b; chmod 0 a"))
    folder, mode, file_mode = report.content.decode().split()
    assert (mode, file_mode) == ("700", "600")
    assert folder.startswith(str(stage.folder))
    assert not os.access(folder, os.F_OK)


async def test_no_descriptor_of_the_runner_is_inherited(stage: Stage, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        _, report = await run(stage, shell("ls /proc/self/fd | wc -l"))
    assert int(report.content) == 4  # the three streams, and the folder that ls reads


async def test_new_privileges_and_core_files_are_off(stage: Stage) -> None:
    _, report = await run(stage, shell("ulimit -c; grep NoNewPrivs /proc/self/status"))
    assert report.content.decode().split() == ["0", "NoNewPrivs:", "1"]


@pytest.mark.parametrize("programs", [True, False])
async def test_limits_are_set_with_and_without_helper_programs(tmp_path: Path, programs: bool) -> None:
    launcher = Launcher(patience=0.2)
    if not programs:
        launcher._programs = []
    stage = Stage(ProcessDriver(launcher), tmp_path)
    limits = agent_pb2.ProcessLimits(memory_bytes=2**30, cpu_seconds=7, open_files=64, file_bytes=2**20)
    _, report = await run(stage, shell("ulimit -v; ulimit -t; ulimit -n; ulimit -f; ulimit -c", limits=limits))
    assert report.content.decode().split() == [str(2**20), "7", "64", str(2**20 // 512), "0"]
    await stage.close()


async def test_the_cpu_limit_is_not_taken_for_the_machines_fault(stage: Stage) -> None:
    limits = agent_pb2.ProcessLimits(cpu_seconds=1)
    error = error_of((await run(stage, shell("while :; do :; done", limits=limits)))[0])
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_TOOL, "CPU_LIMIT")


async def test_the_memory_limit_fails_the_task(stage: Stage) -> None:
    limits = agent_pb2.ProcessLimits(memory_bytes=200 * 2**20)
    error = error_of((await run(stage, python("x = bytearray(400 * 2**20)", limits=limits)))[0])
    assert error.reason == "EXIT_CODE"
    assert "MemoryError" in error.message


async def test_the_file_limit_fails_the_task(stage: Stage) -> None:
    limits = agent_pb2.ProcessLimits(file_bytes=1000)
    error = error_of((await run(stage, shell("exec head -c 5000 /dev/zero > big", limits=limits)))[0])
    assert (error.error_class, error.reason) == (task_pb2.TASK_ERROR_CLASS_TOOL, "FILE_LIMIT")


async def test_signals_begin_with_their_default_meaning(stage: Stage) -> None:
    code = "import signal; print([n.name for n in signal.Signals if signal.getsignal(n) == signal.SIG_IGN])"
    _, report = await run(stage, python(code))
    assert report.content == b"['SIGPIPE', 'SIGXFSZ']\n"  # these two the interpreter ignores by itself


async def test_messages_are_left_undelivered(stage: Stage) -> None:
    handle = await stage.start(command("cat"))
    assert not stage.driver.deliver(handle, message_pb2.Message(message_id="m"))


async def test_a_process_that_goes_on_after_its_result_is_stopped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive_server.runner.drivers.per_task._LINGER", 0.1)
    outcome, _ = await run(stage, shell("""echo '{"result": 1}'; exec sleep 600"""))
    assert result_of(outcome).data == b"1"


async def test_a_killed_leader_takes_its_children_along(stage: Stage) -> None:
    handle = await stage.start(shell("sleep 600 & echo $!; wait"))
    job, report = stage.begin(handle)
    await report.until(lambda said: b"\n" in said.content)
    os.kill(stage.processes[0], signal.SIGKILL)
    assert error_of(await job).reason == "SIGNAL"
    await gone(int(report.content))
