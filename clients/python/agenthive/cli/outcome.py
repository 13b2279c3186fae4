"""How a task came out: its result on stdout, anything else on stderr, and the exit code that says which."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agenthive.cli.failures import ExitCode

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.task_pb2 import Task


def outcome_code(task: Task) -> ExitCode:
    """Return 0 for a task that succeeded, 1 for one that ended otherwise, 6 for one that has not ended."""
    from agenthive.tasks import TERMINAL_STATES
    from agenthive.v1 import task_pb2

    if task.state == task_pb2.TASK_STATE_SUCCEEDED:
        return ExitCode.OK
    return ExitCode.OUTCOME if task.state in TERMINAL_STATES else ExitCode.DEADLINE


async def tell_outcome(client: Client, terminal: Terminal, task: Task) -> ExitCode:
    """Write the result of a task, or why there is none, and return the exit code."""
    from agenthive.cli.task_views import error_text, task_state
    from agenthive.cli.text import clean

    code = outcome_code(task)
    if terminal.json:
        terminal.document(task)
    elif code is ExitCode.OK:
        await write_payload(client, terminal, task)
    elif code is ExitCode.DEADLINE:
        terminal.note(
            f"hive: task {task.task_id} has not ended, it is {task_state(task)} (DEADLINE_EXCEEDED);"
            f" it goes on: `hive tasks wait {task.task_id}`"
        )
    else:
        why = clean(error_text(task.error) or task.state_reason)
        terminal.note(f"hive: task {task.task_id} {task_state(task)}{f': {why}' if why else ''}")
    return code


async def write_payload(client: Client, terminal: Terminal, task: Task) -> None:
    """Write the result of a task: text with a line end, bytes as they are, unless a terminal would get them."""
    result = task.result
    data = result.data
    if result.HasField("blob_id"):
        data = await client.download_blob(result.blob_id)
    elif result.HasField("json"):
        from google.protobuf.json_format import MessageToJson

        data = MessageToJson(result.json).encode()
    if not data:
        return
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if sys.stdout.isatty():
            terminal.note(f"the result is {len(data)} bytes of {result.content_type or 'unknown type'}; redirect it")
        else:
            terminal.raw(data)
        return
    if sys.stdout.isatty():
        from agenthive.cli.text import clean

        text = clean(text, lines=True)
    terminal.raw((text if text.endswith("\n") else text + "\n").encode())
