"""`hive`: the entry point. Nothing heavy is imported before the command line asks for it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; failures are told on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # The transport reports to stderr what we say ourselves, better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251 - it is read by gRPC, not by us
    try:
        if words == ["--version"]:
            print(f"hive {version()}")
            return 0
        return _run(words)
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:  # how typer ends after it has answered a shell
        return ended.code if isinstance(ended.code, int) else 0
    except BrokenPipeError:
        from agenthive.cli.terminal import let_go_of_stdout

        let_go_of_stdout()
        return 141


def version() -> str:
    """Return the version of this package."""
    from importlib.metadata import version as version_of

    return version_of("agenthive")


def _run(words: list[str]) -> int:
    import typer
    from typer.main import get_command

    from agenthive.cli.commands import build_app
    from agenthive.cli.completion import VARIABLE, load_shells

    if VARIABLE in os.environ:  # noqa: TID251 - how a shell asks for completion, not a setting
        load_shells()
    # Of the errors in a command line typer exports this one; its parent is what they all are.
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        code = get_command(build_app()).main(args=words, prog_name="hive", standalone_mode=False)
        sys.stdout.flush()
    except usage_error as error:
        return _tell_usage(error, words)
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _tell_usage(error: Any, words: list[str]) -> int:
    from agenthive.cli.failures import ExitCode, Failure, failure_document

    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(text + "\n")
    elif _wants_json(words):
        import json

        sys.stderr.write(json.dumps(failure_document(Failure(text, ExitCode.USAGE, "USAGE"))) + "\n")
    else:
        path = error.ctx.command_path if error.ctx is not None else "hive"
        sys.stderr.write(f"hive: {text.rstrip('.')} (USAGE); `{path} --help` says more\n")
    return ExitCode.USAGE


def _wants_json(words: list[str]) -> bool:
    """Whether a script reads the answer, as far as that shows in a command line that cannot be parsed."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return (
        "--output=json" in words
        or "-ojson" in words
        or any(name in ("--output", "-o") and value == "json" for name, value in pairs)
    )
