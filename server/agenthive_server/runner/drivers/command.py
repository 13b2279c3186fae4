"""What a process agent is started as: program, arguments, environment, folder and limits, checked before the start."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agenthive.v1 import agent_pb2

from agenthive_server.runner.driver import Start, StartFailed
from agenthive_server.runner.launch import Command, Limits
from agenthive_server.runner.tree import MARKER

ARGUMENT_BYTES = 96 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACEHOLDER = re.compile(r"\{(task_id|type|attempt|input)\}")


class ArgumentTooLong(Exception):
    """A task does not fit into the arguments of the command; the text says so to people."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked specification."""

    start: Start
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    working_directory: Path | None
    limits: Limits

    def agent_command(self) -> Command:
        """The command of an agent that is one process; makes its temporary folder."""
        temporary = self.start.folder / "tmp"
        temporary.mkdir(mode=0o700, exist_ok=True)
        folder = self.working_directory or self.start.folder
        environment = self._environment(self.start.marker, temporary, {})
        return Command(self.arguments, environment, folder, self.limits, self.start.marker)

    def task_command(self, task: Mapping[str, Any], marker: str, folder: Path) -> Command:
        """The command for one task, given as the object the agent is given. Raises ArgumentTooLong."""
        words = {"task_id": task["task_id"], "type": task["type"], "attempt": str(task["attempt"])}
        arguments = [_filled(argument, words, task) for argument in self.arguments]
        identity = {
            "AGENTHIVE_TASK_ID": words["task_id"],
            "AGENTHIVE_ATTEMPT": words["attempt"],
            "AGENTHIVE_LEASE_EPOCH": str(task["lease_epoch"]),
        }
        environment = self._environment(marker, folder, identity)
        return Command(arguments, environment, self.working_directory or folder, self.limits, marker)

    def _environment(self, marker: str, temporary: Path, identity: Mapping[str, str]) -> dict[str, str]:
        return {
            "LANG": "C.UTF-8",
            "HOME": str(self.start.folder),
            "TMPDIR": str(temporary),
            **self.variables,
            MARKER: marker,
            "AGENTHIVE_AGENT_ID": self.start.agent_id,
            "AGENTHIVE_NAMESPACE": self.start.namespace,
            **identity,
        }


def _filled(argument: str, words: Mapping[str, str], task: Mapping[str, Any]) -> str:
    def word(match: re.Match[str]) -> str:
        name = match.group(1)
        return json.dumps(task["input"], separators=(",", ":")) if name == "input" else words[name]

    filled = _PLACEHOLDER.sub(word, argument)
    if len(filled.encode("utf-8", "replace")) > ARGUMENT_BYTES:
        raise ArgumentTooLong(
            f"The task makes an argument longer than {ARGUMENT_BYTES} bytes; read it from stdin instead."
        )
    return filled


def build_recipe(start: Start, search_path: str) -> Recipe:
    """Check a specification on this machine. Raises StartFailed with a sentence."""
    spec = start.spec.process
    if not spec.command or not spec.command[0]:
        raise StartFailed("The command is empty.")
    if any("\0" in text for text in (*spec.command, *(each.value for each in spec.environment))):
        raise StartFailed("A null byte cannot be part of a command or its environment.")
    for variable in spec.environment:
        if not _NAME.fullmatch(variable.name):
            raise StartFailed(f"'{variable.name}' is not the name of an environment variable.")
    variables = {"PATH": search_path} | {variable.name: variable.value for variable in spec.environment}
    directory = _working_directory(spec.working_directory)
    program = _find_program(spec.command[0], variables["PATH"], directory or start.folder)
    return Recipe(start, (program, *spec.command[1:]), variables, directory, _limits(spec.limits))


def _working_directory(text: str) -> Path | None:
    if not text:
        return None
    directory = Path(text)
    if not directory.is_absolute():
        raise StartFailed(f"The working directory '{text}' is not an absolute path.")
    if not directory.is_dir():
        raise StartFailed(f"The working directory '{text}' does not exist on this machine.")
    if not os.access(directory, os.X_OK):
        raise StartFailed(f"The working directory '{text}' cannot be entered.")
    return directory


def _find_program(name: str, search_path: str, folder: Path) -> str:
    if "/" not in name:
        if program := shutil.which(name, path=search_path):
            return os.path.abspath(program)
        raise StartFailed(f"The command '{name}' was not found in {search_path}.")
    path = folder / name
    if not path.is_file():
        raise StartFailed(f"The command '{name}' does not exist on this machine.")
    if not os.access(path, os.X_OK):
        raise StartFailed(f"The command '{name}' is not executable.")
    return str(path)


def _limits(limits: agent_pb2.ProcessLimits) -> Limits:
    wanted = (limits.memory_bytes, limits.cpu_seconds, limits.open_files, limits.file_bytes)
    if any(value < 0 for value in wanted):
        raise StartFailed("A resource limit is negative.")
    return Limits(*wanted)
