"""The options every command takes, wherever on the line they stand, and the classes that give them to each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from agenthive.cli.values import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHOSEN: Final = "agenthive.cli.chosen"
_LATER: Final = "Global options (--server, --output, --timeout, ...) may stand anywhere; `hive --help` lists them."


class OutputFormat(StrEnum):
    """How answers are written."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the global options say."""

    server: str = "127.0.0.1:50051"
    namespace: str = "default"
    token_file: Path | None = None
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    insecure: bool = False
    timeout: float | None = None
    """Seconds; None: 30 for a call, for ever for a wait."""
    output: OutputFormat = OutputFormat.TABLE
    no_color: bool = False

    @property
    def json(self) -> bool:
        """Whether a script reads the answers."""
        return self.output is OutputFormat.JSON


def settings_of(context: typer.Context) -> Settings:
    """Return what the global options of this command line say."""
    return Settings(**_chosen(context.meta))


def _chosen(meta: Mapping[str, Any]) -> dict[str, Any]:
    return meta.get(_CHOSEN, {})  # type: ignore[no-any-return] # what _keep put there


def _keep(context: typer.Context, option: typer.CallbackParam, value: object) -> object:
    """Keep a global option. Said twice, the later one counts; the environment only when nothing was said."""
    chosen = context.meta.setdefault(_CHOSEN, {})
    source = context.get_parameter_source(option.name or "")
    if source is not None and source.name == "COMMANDLINE":
        chosen[option.name] = value
    elif source is not None and source.name == "ENVIRONMENT":
        chosen.setdefault(option.name, value)
    return value


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, callback=_keep, expose_value=False, show_default=False, **more)


def _declare(
    server: Annotated[
        str | None,
        _option("--server", metavar="HOST:PORT", envvar="AGENTHIVE_SERVER", help="Default 127.0.0.1:50051."),
    ] = None,
    namespace: Annotated[
        str | None,
        _option("--namespace", "-n", metavar="NAME", envvar="AGENTHIVE_NAMESPACE", help="Default `default`."),
    ] = None,
    token_file: Annotated[
        Path | None,
        _option(
            "--token-file", metavar="FILE", help="File with a bearer token; or AGENTHIVE_TOKEN, AGENTHIVE_TOKEN_FILE."
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        _option("--ca", metavar="FILE", help="Speak TLS, trusting this authority; or AGENTHIVE_CA."),
    ] = None,
    cert: Annotated[
        Path | None,
        _option("--cert", metavar="FILE", help="Certificate that says who you are; or AGENTHIVE_CERT."),
    ] = None,
    key: Annotated[
        Path | None,
        _option("--key", metavar="FILE", help="Private key of that certificate; or AGENTHIVE_KEY."),
    ] = None,
    tls: Annotated[bool, _option("--tls", help="Speak TLS, trusting the well-known authorities.")] = False,
    server_name: Annotated[
        str | None,
        _option("--server-name", metavar="NAME", help="Name to expect in the server's certificate."),
    ] = None,
    insecure: Annotated[
        bool, _option("--insecure", help="Send the token in plain text, even to another machine.")
    ] = False,
    timeout: Annotated[
        float | None,
        _option(
            "--timeout",
            metavar="DURATION",
            parser=duration,
            help="Longest call (default 30s) or wait (default for ever): 500ms, 90s, 10m, 2h.",
        ),
    ] = None,
    output: Annotated[
        OutputFormat | None,
        _option(
            "--output",
            "-o",
            metavar="table|json",
            help="json: one document, or a line for each item of a stream. Default table.",
        ),
    ] = None,
    no_color: Annotated[bool, _option("--no-color", help="No colours; the variable NO_COLOR does the same.")] = False,
) -> None:
    """Declare the global options; never called."""


@cache
def _global_params() -> tuple[Any, ...]:
    app = typer.Typer(add_completion=False)
    app.command()(_declare)
    return tuple(param for param in get_command(app).params if param.name != "help")


class HiveCommand(TyperCommand):
    """A command that takes the global options too; its help points to them."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        """Add the global options."""
        super().__init__(*positional, **named)
        self._own = self.params
        self.params = [*self._own, *_global_params()]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the command's own options and where the others are."""
        taken, self.params = self.params, self._own
        super().format_options(ctx, formatter)
        self.params = taken
        formatter.write_paragraph()
        formatter.write_text(_LATER)


class HiveGroup(TyperGroup):
    """A group of commands that takes the global options too; only the outermost lists them."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        """Add the global options."""
        super().__init__(*positional, **named)
        self._own = self.params
        self.params = [*self._own, *_global_params()]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, and the global options if this is the outermost group."""
        taken = self.params
        if ctx.parent is not None:
            self.params = self._own
        super().format_options(ctx, formatter)
        self.params = taken


def group(summary: str) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(
        cls=HiveGroup, help=summary, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )  # fmt: skip
