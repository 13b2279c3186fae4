"""The global options, help, version and completion."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from agenthive.cli.commands import build_app
from typer.main import get_command

Hive = Callable[..., Any]


def all_commands() -> list[tuple[str, ...]]:
    root: Any = get_command(build_app())
    found: list[tuple[str, ...]] = []
    for name, command in root.commands.items():
        found += [(name, below) for below in getattr(command, "commands", {})] or [(name,)]
    return found


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_teaches_by_example(alone: Hive, words: tuple[str, ...]) -> None:
    answer = alone(*words, "--help")
    assert answer.code == 0
    assert "Example" in answer.out
    assert "list[str]" not in answer.out
    assert any(("hive " + " ".join(words)) in line for line in answer.out.splitlines()[1:])


def test_the_first_help_lists_commands_options_and_exit_codes(alone: Hive) -> None:
    out = alone("--help").out
    for word in ("run", "tasks", "events", "--server", "--output", "Exit codes"):
        assert word in out
    assert alone("-h").out == out


def test_global_options_stand_anywhere(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1")
    for words in (("-o", "json", "tasks", "get", "t-1"), ("tasks", "-o", "json", "get", "t-1"),
                  ("tasks", "get", "-o", "json", "t-1")):  # fmt: skip
        assert hive(*words).json["task_id"] == "t-1"


def test_the_last_word_counts(hive: Hive, fake: Any) -> None:
    fake.add_task("t-1")
    assert hive("-o", "table", "tasks", "get", "t-1", "-o", "json").json["task_id"] == "t-1"


def test_the_environment_counts_when_nothing_is_said(
    alone: Hive, hive: Hive, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add_task("t-1")
    monkeypatch.setenv("AGENTHIVE_SERVER", fake.target)
    assert alone("tasks", "get", "t-1").code == 0
    monkeypatch.setenv("AGENTHIVE_SERVER", "127.0.0.1:1")
    assert hive("tasks", "get", "t-1").code == 0


def test_namespace_and_token_travel_with_the_call(hive: Hive, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add_task("t-1")
    monkeypatch.setenv("AGENTHIVE_TOKEN", "sesame")
    answer = hive("tasks", "get", "t-1", "--namespace", "blue")
    assert fake.metadata["agenthive-namespace"] == "blue"
    assert fake.metadata["authorization"] == "Bearer sesame"
    assert "sesame" not in answer.out + answer.err


def test_the_token_is_never_shown(alone: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHIVE_TOKEN", "sesame")
    assert "sesame" not in alone("--help").out + alone("tasks", "get", "--help").out
    answer = alone("tasks", "get", "x", "--server", "127.0.0.1:1")
    assert "sesame" not in answer.out + answer.err


def test_a_token_comes_from_a_file_and_never_from_the_command_line(hive: Hive, fake: Any, tmp_path: Path) -> None:
    fake.add_task("t-1")
    (tmp_path / "token").write_text("sesame\n")
    assert hive("tasks", "get", "t-1", "--token-file", str(tmp_path / "token")).code == 0
    assert fake.metadata["authorization"] == "Bearer sesame"
    assert hive("tasks", "get", "t-1", "--token", "sesame").code == 2


def test_a_token_does_not_leave_this_machine_in_plain_text(alone: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHIVE_TOKEN", "sesame")
    answer = alone("tasks", "list", "--server", "hive.invalid:50051")
    assert answer.code == 2
    assert "a token would travel in plain text to hive.invalid:50051" in answer.err
    assert "sesame" not in answer.err
    answer = alone("tasks", "list", "--server", "hive.invalid:50051", "--insecure", "--timeout", "100ms")
    assert answer.code == 3


def test_there_is_no_colour_in_a_pipe(hive: Hive, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add_task("t-1")
    assert "\x1b" not in hive("tasks", "list").out
    assert "\x1b" not in hive("tasks", "list", "--no-color").out


def test_the_version_is_told(alone: Hive) -> None:
    assert alone("--version").out == f"hive {version('agenthive')}\n"
    assert alone("version").out == f"hive {version('agenthive')}\n"
    assert alone("version", "-o", "json").json == {"version": version("agenthive")}


def test_the_version_loads_nothing_heavy() -> None:
    code = (
        "import sys; from agenthive.cli.app import main; main(['--version']);"
        "print([name for name in ('typer', 'rich', 'grpc', 'google.protobuf', 'asyncio') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(alone: Hive, shell: str) -> None:
    answer = alone("completion", shell)
    assert answer.code == 0
    assert "_HIVE_COMPLETE" in answer.out


def test_a_shell_is_offered_commands_and_states(alone: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_HIVE_COMPLETE", "complete_bash")
    for line, offered in (("hive ta", ["tasks"]), ("hive tasks list --state qu", ["queued", "quarantined"])):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        assert alone().out.split() == offered


def test_a_group_alone_shows_its_commands(alone: Hive) -> None:
    answer = alone("tasks")
    assert answer.code == 2
    assert "delegate" in answer.err
