"""Who belongs to a tree, and that a signal never reaches a stranger."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from agenthive_server.runner.tree import (
    MARKER,
    Process,
    ProcessId,
    find_marker,
    find_process,
    kill_tree,
    kill_tree_now,
    list_members,
    send_signal,
)


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[bytes]]:
    """A leader with a child, a child in another session, and one with another environment."""
    script = "sleep 600 & setsid sleep 600 & env -i sleep 600 & echo ready; wait"
    environment = {MARKER: f"tree.{os.getpid()}.1", "PATH": os.defpath}
    popen = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True, env=environment)
    assert popen.stdout
    popen.stdout.readline()
    yield popen
    kill_tree_now([leader_of(popen)], f"tree.{os.getpid()}")
    popen.wait()
    popen.stdout.close()


def leader_of(popen: subprocess.Popen[bytes]) -> ProcessId:
    process = find_process(popen.pid)
    return ProcessId(popen.pid, process.start_time if process else 0)


def must_find(pid: int) -> Process:
    process = find_process(pid)
    assert process is not None
    return process


def test_a_process_that_is_gone_is_not_found() -> None:
    assert find_process(2**22 + 1) is None
    assert find_marker(2**22 + 1) == ""


def test_oneself_is_found_whatever_its_name_is() -> None:
    process = must_find(os.getpid())
    assert process.parent == os.getppid()
    assert process.alive
    assert process.memory_bytes > 0


def test_descendants_session_and_mark_make_a_member(tree: subprocess.Popen[bytes]) -> None:
    by_leader = {process.pid for process in list_members([leader_of(tree)], "")}
    by_mark = {process.pid for process in list_members([], f"tree.{os.getpid()}")}
    assert tree.pid in by_leader
    assert len(by_leader) == 4
    assert by_mark == by_leader  # what has no mark still descends from what has one


def test_a_mark_is_matched_in_whole_words(tree: subprocess.Popen[bytes]) -> None:
    assert list_members([], f"tree.{os.getpid()}.1")
    assert list_members([], f"tree.{os.getpid() // 10}") == []
    assert list_members([], "") == []


def test_a_leader_with_another_start_time_is_a_stranger(tree: subprocess.Popen[bytes]) -> None:
    leader = leader_of(tree)
    assert list_members([ProcessId(leader.pid, leader.start_time - 1)], "") == []


async def test_the_whole_tree_is_killed_and_found_empty(tree: subprocess.Popen[bytes]) -> None:
    assert await kill_tree([leader_of(tree)], f"tree.{os.getpid()}") == []
    assert list_members([leader_of(tree)], f"tree.{os.getpid()}") == []
    assert tree.wait() == -signal.SIGKILL


def test_a_signal_for_an_earlier_owner_of_the_number_is_not_sent(tree: subprocess.Popen[bytes]) -> None:
    process = must_find(tree.pid)
    earlier = Process(**{name: getattr(process, name) for name in Process.__slots__} | {"start_time": 1})
    send_signal(earlier, signal.SIGKILL)
    assert tree.poll() is None


def test_a_process_that_forks_while_it_is_killed_is_outrun() -> None:
    script = "spawn() { while :; do sleep 600 & sleep 0.001; done; }; spawn & spawn & echo ready; wait"
    environment = {MARKER: f"fork.{os.getpid()}", "PATH": os.defpath}
    popen = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True, env=environment)
    assert popen.stdout
    popen.stdout.readline()
    assert kill_tree_now([leader_of(popen)], f"fork.{os.getpid()}") == []
    popen.wait()
    popen.stdout.close()


def test_the_caller_is_never_a_member() -> None:
    assert os.getpid() not in {process.pid for process in list_members([leader(os.getppid())], "")}


def leader(pid: int) -> ProcessId:
    return ProcessId(pid, must_find(pid).start_time)
