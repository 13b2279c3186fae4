"""An agent in twenty lines. Start a server, run this, and delegate a task of type `review` to it."""

import sys
from typing import Any

from agenthive import TaskContext, Worker

worker = Worker(*sys.argv[1:], agent_id="reviewer-1", role="reviewer", capabilities=["review"])


@worker.task("review")
async def review(task: TaskContext) -> dict[str, list[int]]:
    """Return the numbers of the lines that are too long."""
    given: Any = task.input
    lines, found = given["text"].splitlines(), []
    for number, line in enumerate(lines, 1):
        await task.progress(number / len(lines), f"line {number}")
        if len(line) > given.get("limit", 120):
            found.append(number)
    return {"too_long": found}


if __name__ == "__main__":
    worker.main()
