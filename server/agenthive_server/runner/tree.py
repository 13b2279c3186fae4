"""Process trees: who belongs to an agent, and how all of them are ended.

A process belongs to an agent when it descends from one of the agent's leaders, is in a leader's group or session, or
carries the agent's marker in its environment. The three overlap on purpose: a daemon leaves tree, group and session
but keeps the environment; a scrubbed environment does not help a process that stays in the tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARKER = "AGENTHIVE_HANDLE"
PATIENCE = 5.0
_POLL = 0.01
_SCANS = 20
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process id that is never mistaken for its next owner: with the start time of the process, in ticks."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    session: int
    state: str
    start_time: int
    cpu_seconds: float
    memory_bytes: int

    @property
    def alive(self) -> bool:
        """Whether it is more than an entry that waits for its parent."""
        return self.state not in "ZX"


def find_process(pid: int) -> Process | None:
    """Read one process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    words = text[text.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(words[1]),
        group=int(words[2]),
        session=int(words[3]),
        state=words[0].decode(),
        start_time=int(words[19]),
        cpu_seconds=(int(words[11]) + int(words[12])) / _TICKS,
        memory_bytes=int(words[21]) * _PAGE,
    )


def list_processes() -> dict[int, Process]:
    """Read the process table."""
    found = (find_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def find_marker(pid: int) -> str:
    """The marker in the environment of a process; empty when it has none or belongs to another user."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    for variable in environment.split(b"\0"):
        if variable.startswith(MARKER.encode() + b"="):
            return variable.partition(b"=")[2].decode("utf-8", "replace")
    return ""


def list_members(leaders: Iterable[ProcessId], marker: str) -> list[Process]:
    """Every living process of the tree: of these leaders, or marked with `marker` or `marker` and a suffix after a dot.

    An empty marker means none. The calling process is never a member.
    """
    table = list_processes()
    starts = {leader.pid: leader.start_time for leader in sorted(leaders, key=lambda each: each.start_time)}
    members = {pid for pid, process in table.items() if _belongs(process, starts, table)}
    if marker:
        members |= {pid for pid in table if _is_marked(pid, marker)}
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    fresh = list(members)
    while fresh:
        found = [child for child in children.get(fresh.pop(), ()) if child not in members]
        members.update(found)
        fresh.extend(found)
    members -= {os.getpid(), 1}
    return [table[pid] for pid in members if table[pid].alive]


def _belongs(process: Process, starts: dict[int, int], table: dict[int, Process]) -> bool:
    for pid in {process.pid, process.group, process.session} & starts.keys():
        owner = table.get(pid)
        # While a group lives its number is not given to a new process: another start time means another story.
        if owner.start_time == starts[pid] if owner else process.start_time >= starts[pid]:
            return True
    return False


def _is_marked(pid: int, marker: str) -> bool:
    found = find_marker(pid)
    return found == marker or found.startswith(marker + ".")


def send_signal(process: Process, number: int) -> None:
    """Send a signal to exactly this process; one that is gone, or may not be signalled, is left alone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        now = find_process(process.pid)
        if now is not None and now.start_time == process.start_time:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def signal_members(leaders: Iterable[ProcessId], marker: str, number: int) -> list[Process]:
    """Send a signal to every member of the tree and return whom it was sent to."""
    members = list_members(leaders, marker)
    for process in members:
        send_signal(process, number)
    return members


def kill_members(leaders: Iterable[ProcessId], marker: str) -> list[Process]:
    """Freeze the tree until nobody new appears in it, then kill all of it; returns who was found alive."""
    leaders = list(leaders)
    frozen: dict[ProcessId, Process] = {}
    for _ in range(_SCANS):
        fresh = {ProcessId(each.pid, each.start_time): each for each in list_members(leaders, marker)}
        if fresh.keys() <= frozen.keys():
            break
        for process in fresh.values():
            send_signal(process, signal.SIGSTOP)
        frozen |= fresh
    for process in frozen.values():
        send_signal(process, signal.SIGKILL)
    return list(frozen.values())


async def kill_tree(leaders: Iterable[ProcessId], marker: str, patience: float = PATIENCE) -> list[Process]:
    """Kill the tree and verify that it is empty; returns what is left after `patience` seconds, normally nothing."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while alive := await asyncio.to_thread(kill_members, leaders, marker):
        if loop.time() > deadline:
            return alive
        await asyncio.sleep(_POLL)
    return []


def kill_tree_now(leaders: Iterable[ProcessId], marker: str, patience: float = PATIENCE) -> list[Process]:
    """The same for a process without an event loop; blocks."""
    alive: list[Process] = []
    for _ in range(int(patience / _POLL)):
        if not (alive := kill_members(leaders, marker)):
            break
        time.sleep(_POLL)
    return alive
