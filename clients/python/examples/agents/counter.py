"""An agent that counts: files, and lines of code, comment and nothing, below a folder.

Input: `{"folder": "server", "rest": 0.05}`; `rest` (optional) is a pause in seconds after each file, to be easy on a
busy disk. It tells its process id with its progress, and saves a checkpoint after each file: killed in the middle, the
next attempt goes on where this one was, in whatever agent that is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from protocol import Task, serve
from sources import COMMENT, folder_of, source_files


def count_lines(path: Path) -> dict[str, int]:
    """Return how many lines of a file are code, comment and blank."""
    lines = [line.strip() for line in path.read_text("utf-8", "replace").splitlines()]
    blank = lines.count("")
    comment = sum(line.startswith(COMMENT[path.suffix]) for line in lines)
    return {"code": len(lines) - blank - comment, "comment": comment, "blank": blank}


def count(task: Task) -> dict[str, Any]:
    """Count below the folder of the task, beginning where an earlier attempt was."""
    folder, rest = folder_of(task.input), float(task.input.get("rest", 0.0))
    files = source_files(folder)
    total = task.checkpoint or {"files": 0, "code": 0, "comment": 0, "blank": 0}
    for path in files[total["files"] :]:
        for kind, lines in count_lines(path).items():
            total[kind] += lines
        total["files"] += 1
        task.save(total)
        task.progress(total["files"] / len(files), f"pid {os.getpid()}: {path}", rest)
    return {"folder": str(folder), **total}


if __name__ == "__main__":
    serve(count)
