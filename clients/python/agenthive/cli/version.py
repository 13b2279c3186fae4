"""`hive version`."""

from __future__ import annotations

import typer

from agenthive.cli.app import version
from agenthive.cli.options import settings_of
from agenthive.cli.terminal import Terminal


def show_version(context: typer.Context) -> None:
    """Print the version of this client; `hive health` has the server's.

    \b
    Example:
      hive version
    """
    terminal = Terminal(settings_of(context))
    if terminal.json:
        terminal.document({"version": version()})
    else:
        print(f"hive {version()}")
