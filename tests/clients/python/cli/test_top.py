"""`hive top`: what it shows once; the live view is the same picture again and again."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from typing import Any

import pytest
from agenthive.cli.top_board import Board
from agenthive.cli.top_view import view
from agenthive.v1 import event_pb2, orchestrator_service_pb2
from rich.console import Console

Hive = Callable[..., Any]


@pytest.fixture
def busy(fake: Any) -> Any:
    fake.add_agent("a-1", "BUSY", role="reviewer", open_lease_count=1)
    fake.add_agent("a-2", "IDLE", role="builder")
    fake.add_task("t-1", "RUNNING", type="review").lease.agent_id = "a-1"
    fake.add_task("t-2", "QUEUED", type="build")
    fake.add_task("t-3", "SUCCEEDED")
    fake.health.queued_tasks = 1
    fake.health.components.add(name="notifier", status=orchestrator_service_pb2.HEALTH_STATUS_DEGRADED, reason="slow")
    fake.happen(task_id="t-1", task_progressed=event_pb2.TaskProgressed(attempt=1, fraction=0.4, text="reading"))
    return fake


def test_the_picture_has_agents_queue_and_health(hive: Hive, busy: Any) -> None:
    answer = hive("top", "--once")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0].startswith(f"hive {busy.target}  OK  version 9.9")
    assert "agents 2 (1 busy, 1 idle)   tasks 1 held, 1 queued" in lines[1]
    assert "DEGRADED notifier: slow" in lines
    assert any(line.split() == ["a-1", "BUSY", "1/1", "reviewer", "t-1", "review", "40%", "reading"] for line in lines)
    assert any(line.split()[:3] == ["t-2", "QUEUED", "build"] for line in lines)
    assert "t-3" not in answer.out


def test_replicas_come_before_agents_when_there_is_more_than_one(hive: Hive, busy: Any) -> None:
    busy.add_replica("r-1", held_tasks=1, roles=["dispatcher"])
    assert "REPLICA" not in hive("top", "--once").out
    busy.add_replica("r-2").troubles.add(
        name="tls", status=orchestrator_service_pb2.HEALTH_STATUS_DEGRADED, reason="old"
    )
    lines = hive("top", "--once").out.splitlines()
    begins = [line.split()[0] for line in lines if line]
    assert begins.index("REPLICA") < begins.index("r-1") < begins.index("r-2") < begins.index("AGENT")
    assert "DEGRADED tls of r-2: old" in lines
    assert "r-2" not in hive("top", "--once", "--replica").out
    assert len(hive("top", "--once", "-o", "json").json["health"]["replicas"]) == 2


def test_a_script_gets_the_board(hive: Hive, busy: Any) -> None:
    document = hive("top", "--once", "-o", "json").json
    assert [agent["agent_id"] for agent in document["agents"]] == ["a-1", "a-2"]
    assert [task["task_id"] for task in document["held_tasks"]] == ["t-1"]
    assert [task["task_id"] for task in document["waiting_tasks"]] == ["t-2"]
    assert document["health"]["status"] == "HEALTH_STATUS_OK"
    assert document["last_minute"]["events"] == 0


def event(sequence: int, at: int, fact: str) -> event_pb2.Event:
    made = event_pb2.Event(sequence=sequence)
    made.time.seconds = at
    getattr(made, fact).SetInParent()
    return made


def test_throughput_is_that_of_the_last_minute() -> None:
    board = Board()
    for sequence, at, fact in ((1, 100, "task_delegated"), (2, 130, "task_delegated"), (3, 140, "task_succeeded"),
                               (4, 150, "task_quarantined"), (5, 150, "agent_ready")):  # fmt: skip
        board.take_event(event(sequence, at, fact), 150.0)
    now = board.throughput(159.0)
    assert (now["events"], now["delegated"], now["succeeded"], now["failed"]) == (5, 2, 1, 1)
    later = board.throughput(195.0)
    assert (later["events"], later["delegated"], later["succeeded"]) == (3, 0, 1)
    assert board.throughput(500.0)["events"] == 0


@pytest.mark.parametrize("replicas", [0, 3, 50])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60)])
def test_the_picture_fits_the_terminal(fake: Any, width: int, height: int, replicas: int) -> None:
    board = Board()
    agents = [fake.add_agent(f"agent-{number}-with-a-long-name", "BUSY", role="reviewer") for number in range(100)]
    tasks = [fake.add_task(f"{number:032x}", "QUEUED") for number in range(100)]
    board.take_lists(agents, [], tasks)
    for number in range(1, 100):
        board.take_event(event(number, 100, "task_started"), 100.0)
    for number in range(replicas):
        ill = fake.add_replica(
            f"machine-{number}-with-a-long-name-123-abcdef01", roles=["dispatcher", "plugin/security"]
        )
        ill.troubles.add(name="store", status=orchestrator_service_pb2.HEALTH_STATUS_DEGRADED, reason="slow " * 50)
    board.health = fake.health
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view(board, "127.0.0.1:50051", 100.0, width=width, height=height))
    lines = captured.get().splitlines()
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    assert "more" in captured.get()
    assert ("REPLICA" in captured.get()) == (replicas > 0 and height > 10)


def test_the_live_view_ends_with_q_and_leaves_the_terminal_as_it_was(busy: Any) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    code = "import sys; from agenthive.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--server", busy.target, "top", "--interval", "200ms"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        seen = b""
        while b"reviewer" not in seen:
            seen += os.read(ours, 65536)
        os.write(ours, b"q")
        while b"\x1b[?1049l" not in seen:  # back from the alternate screen
            seen += os.read(ours, 65536)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_into_a_pipe_it_is_written_again_and_again(busy: Any) -> None:
    code = "import sys; from agenthive.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--server", busy.target, "top", "--interval", "200ms", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert b'"held_tasks"' in first
        assert b'"held_tasks"' in second
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
