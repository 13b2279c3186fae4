"""The line protocol of a long-lived process agent: tasks come in as JSON lines, news and results go out as JSON lines.

Copy it: standard library only, no threads. A task that is to end shows when its work next calls `progress`.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any

STDIN = 0


class Canceled(Exception):
    """The task is to end."""


class BadInput(Exception):
    """The input makes no sense, and would not in another attempt either."""


class Inbox:
    """Lines from the runner, read when we ask for them."""

    def __init__(self) -> None:
        self.tasks: deque[dict[str, Any]] = deque()
        self.canceled: set[str] = set()
        self.ended = False
        self._rest = b""

    def read(self, seconds: float | None) -> None:
        """Take what is there, or comes within `seconds` (None: wait for ever)."""
        if self.ended:
            time.sleep(seconds or 0)
        elif select.select([STDIN], [], [], seconds)[0]:
            block = os.read(STDIN, 65536)
            self.ended = not block
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in map(json.loads, lines):
                if "type" in line:
                    self.tasks.append(line)
                elif line.get("control") == "cancel":
                    self.canceled.add(line["task_id"])


class Task:
    """One attempt of a task."""

    def __init__(self, line: dict[str, Any], inbox: Inbox) -> None:
        self.task_id = line["task_id"]
        self.input: dict[str, Any] = line["input"] or {}
        self.checkpoint = json.loads(line["checkpoint"] or "null")
        self._lease_epoch = line["lease_epoch"]
        self._inbox = inbox

    def progress(self, fraction: float, text: str = "", rest: float = 0.0) -> None:
        """Tell how far it is, then rest for some seconds. Raises `Canceled` when the task is to end."""
        self.say(progress=fraction, text=text)
        self._inbox.read(rest)
        if self.task_id in self._inbox.canceled:
            raise Canceled

    def save(self, checkpoint: Any) -> None:
        """Keep what another attempt should go on from, should this process die: it finds it in `checkpoint`."""
        self.say(checkpoint=json.dumps(checkpoint))

    def say(self, **line: Any) -> None:
        """Say a line about this attempt."""
        say(task_id=self.task_id, lease_epoch=self._lease_epoch, **line)


def say(**line: Any) -> None:
    """Say a line to the runner."""
    print(json.dumps(line), flush=True)


def serve(work: Callable[[Task], Any]) -> None:
    """Do one task after the other, until the input ends or SIGINT comes; what `work` returns is the result."""
    inbox = Inbox()
    say(ready=True)
    try:
        while inbox.tasks or not inbox.ended:
            if inbox.tasks:
                attempt(Task(inbox.tasks.popleft(), inbox), work)
            else:
                inbox.read(None)
    except KeyboardInterrupt:
        return


def attempt(task: Task, work: Callable[[Task], Any]) -> None:
    """Try a task, and say how that ended."""
    try:
        task.say(result=work(task))
    except Canceled:
        task.say(error={"reason": "CANCELED", "message": "ended in the middle, as asked"})
    except BadInput as error:
        task.say(error={"class": "INVALID", "reason": "BAD_INPUT", "message": str(error)})
    except Exception as error:  # noqa: BLE001 - one bad task must not take down the agent
        task.say(error={"class": "TOOL", "reason": "EXCEPTION", "message": f"{type(error).__name__}: {error}"})
