"""Agent Hive: the client, the worker SDK and the generated stubs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agenthive import errors, payload
    from agenthive.client import Client
    from agenthive.errors import HiveError, TaskNotSucceeded
    from agenthive.events import EventStream
    from agenthive.task_context import TaskContext, TaskFailed
    from agenthive.worker import Worker

__all__ = [
    "Client",
    "EventStream",
    "HiveError",
    "TaskContext",
    "TaskFailed",
    "TaskNotSucceeded",
    "Worker",
    "errors",
    "payload",
]

_HOMES = {
    "Client": "agenthive.client",
    "EventStream": "agenthive.events",
    "HiveError": "agenthive.errors",
    "TaskContext": "agenthive.task_context",
    "TaskFailed": "agenthive.task_context",
    "TaskNotSucceeded": "agenthive.errors",
    "Worker": "agenthive.worker",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the stubs alone, which the server imports, stay light."""
    if name in ("errors", "payload"):
        return importlib.import_module(f"agenthive.{name}")
    if home := _HOMES.get(name):
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
