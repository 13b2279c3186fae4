"""An agent written with the SDK, in a process of its own: it adds up the results of other tasks.

Input: `{"tasks": ["task-id", …]}`; delegate it with `depends_on`, so that they have ended when it begins.
"""

from __future__ import annotations

import sys
from typing import Any

from agenthive import Client, TaskContext, TaskNotSucceeded, Worker

SERVER = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
worker = Worker(SERVER, agent_id="summarist-1", role="summarist", capabilities=["summary"])
client = Client(SERVER)


@worker.task("summary")
async def summarize(task: TaskContext) -> dict[str, Any]:
    """Return the sums of all numbers, the ten worst functions, and the tasks that brought nothing."""
    given: Any = task.input
    sums: dict[str, Any] = {"worst": [], "missing": []}
    for number, task_id in enumerate(given["tasks"], 1):
        try:
            result: Any = await client.result(task_id, timeout=60)
        except TaskNotSucceeded as error:
            sums["missing"].append(str(error))
            continue
        for name, value in result.items():
            if isinstance(value, int | list):
                sums[name] = sums.get(name, type(value)()) + value
        await task.progress(number / len(given["tasks"]), f"read {task_id}")
    sums["worst"] = sorted(sums["worst"], key=lambda each: -each["complexity"])[:10]
    return sums


if __name__ == "__main__":
    worker.main()
