"""A worker for tests, in a process of its own: `python -m agenthive_server.testing.worker_program TARGET AGENT_ID`.

What it does with a task follows from the task's type:

| type | what it does |
|---|---|
| `echo` | returns the input with who did it: `{"input", "agent_id", "attempt", "lease_epoch", "pid", "checkpoint"}` |
| `until` | the same, once the file `input["file"]` exists, and saves a checkpoint when it begins |
| `pulse` | `until`, reporting progress all the while |
| `fail` | fails with the class and reason of the input |
| `job` | takes `input["seconds"]`, and fails if `input["fails"]`; else returns `{"number", "lease_epoch"}` |

The journal is a file of JSON lines: what really ran, whatever the hive believes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from agenthive import Worker
from agenthive.task_context import TaskContext, TaskFailed
from agenthive.v1 import task_pb2

_LOOK = 0.02


class Tasks:
    """The handlers, and their journal."""

    def __init__(self, agent_id: str, journal: Path | None) -> None:
        self._agent_id = agent_id
        self._journal = journal

    async def echo(self, task: TaskContext) -> dict[str, Any]:
        """Answer at once."""
        self._note(task, "begins")
        return self._answer(task)

    async def until(self, task: TaskContext) -> dict[str, Any]:
        """Answer when the file is there, without a word before."""
        return await self._wait(task, progress=False)

    async def pulse(self, task: TaskContext) -> dict[str, Any]:
        """Answer when the file is there, and tell of progress meanwhile."""
        return await self._wait(task, progress=True)

    async def fail(self, task: TaskContext) -> None:
        """Fail as told."""
        self._note(task, "begins")
        given = _fields(task)
        name = f"TASK_ERROR_CLASS_{given.get('class', 'TOOL')}"
        raise TaskFailed(
            "as told", error_class=task_pb2.TaskErrorClass.Value(name), reason=str(given.get("reason", "AS_TOLD"))
        )

    async def job(self, task: TaskContext) -> dict[str, Any]:
        """Take a while, then answer or fail as told."""
        self._note(task, "begins")
        given = _fields(task)
        task.report(0.5, "half")
        await asyncio.sleep(float(given["seconds"]))
        if given["fails"]:
            raise TaskFailed("as told", reason="AS_TOLD")
        # Before anybody can hear of it.
        self._note(task, "ends")
        return {"number": given["number"], "lease_epoch": task.assignment.lease_epoch}

    async def _wait(self, task: TaskContext, *, progress: bool) -> dict[str, Any]:
        self._note(task, "begins")
        task.save_checkpoint(f"attempt {task.attempt}".encode())
        file = str(_fields(task)["file"])
        try:
            while not os.path.exists(file):  # noqa: ASYNC240 - a look at a local file
                if progress:
                    task.report(0.5, "waiting")
                await asyncio.sleep(_LOOK)
        except asyncio.CancelledError:
            self._note(task, "stopped")
            raise
        self._note(task, "ends")
        return self._answer(task)

    def _note(self, task: TaskContext, what: str) -> None:
        if self._journal is not None:
            with self._journal.open("a", encoding="utf-8") as file:
                # The loop's clock is the machine's: journals of several workers can be compared.
                at = asyncio.get_running_loop().time()
                file.write(json.dumps({"what": what, "at": at, **self._identity(task)}) + "\n")

    def _identity(self, task: TaskContext) -> dict[str, Any]:
        epoch = task.assignment.lease_epoch
        return {"task_id": task.task_id, "agent_id": self._agent_id, "attempt": task.attempt, "lease_epoch": epoch}

    def _answer(self, task: TaskContext) -> dict[str, Any]:
        return {
            "input": task.input,
            "pid": os.getpid(),
            "checkpoint": task.checkpoint.decode(),
            **self._identity(task),
        }


def _fields(task: TaskContext) -> dict[str, Any]:
    return task.input if isinstance(task.input, dict) else {}


def build_worker(target: str, agent_id: str, *, journal: Path | None = None, **fields: Any) -> Worker:
    """Return the worker; `fields` are those of `Worker`."""
    worker = Worker(target, agent_id=agent_id, **fields)
    tasks = Tasks(agent_id, journal)
    worker.task("echo")(tasks.echo)
    worker.task("until")(tasks.until)
    worker.task("pulse")(tasks.pulse)
    worker.task("fail")(tasks.fail)
    worker.task("job")(tasks.job)
    return worker


def main() -> None:
    """Be the worker until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("agent_id")
    parser.add_argument("--role", default="")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--capability", action="append", default=[])
    parser.add_argument("--journal", type=Path)
    options = parser.parse_args()
    build_worker(
        options.target,
        options.agent_id,
        journal=options.journal,
        role=options.role,
        slots=options.slots,
        capabilities=options.capability,
    ).main()


if __name__ == "__main__":
    main()
