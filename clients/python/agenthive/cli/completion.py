"""What shells offer: the script that makes them ask, and the names of states and events."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import EnumDescriptor

VARIABLE: Final = "_HIVE_COMPLETE"
"""Where a shell puts its question; the scripts and typer agree on it."""


class Shell(StrEnum):
    """Shells that can be completed in."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="Your shell.", show_default=False)],
) -> None:
    """Print what makes a shell complete `hive`.

    \b
    Examples:
      eval "$(hive completion bash)"
      hive completion zsh > ~/.zfunc/_hive
      hive completion fish > ~/.config/fish/completions/hive.fish
    """
    from typer.completion import shell_complete

    load_shells()
    shell_complete(context.find_root().command, {}, "hive", VARIABLE, f"source_{shell.value}")


def load_shells() -> None:
    """Let typer know the shells; it does so by itself only where it offers to install their scripts."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()


def agent_states(incomplete: str) -> list[str]:
    """Return the states of agents that begin so."""
    from agenthive.v1.agent_pb2 import AgentState

    return _names(AgentState.DESCRIPTOR, incomplete)


def task_states(incomplete: str) -> list[str]:
    """Return the states of tasks that begin so."""
    from agenthive.v1.task_pb2 import TaskState

    return _names(TaskState.DESCRIPTOR, incomplete)


def event_types(incomplete: str) -> list[str]:
    """Return the types of events that begin so."""
    from agenthive.v1.event_pb2 import EventType

    return _names(EventType.DESCRIPTOR, incomplete)


def enum_completion(contract: str, enum: str) -> Callable[[str], list[str]]:
    """Return what offers the values of an enum of `agenthive/v1/CONTRACT.proto`; it is loaded when a shell asks."""

    def offered(incomplete: str) -> list[str]:
        from importlib import import_module

        kind: EnumDescriptor = getattr(import_module(f"agenthive.v1.{contract}_pb2"), enum).DESCRIPTOR
        return _names(kind, incomplete)

    return offered


def _names(kind: EnumDescriptor, incomplete: str) -> list[str]:
    from agenthive.cli.values import enum_names

    return [name for name in enum_names(kind) if name.startswith(incomplete.lower())]
