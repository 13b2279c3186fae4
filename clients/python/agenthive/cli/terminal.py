"""Where a command writes: answers to stdout, everything about them to stderr; tables for people, JSON for scripts."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from rich.console import Console, RenderableType

    from agenthive.cli.options import Settings

_UNBOUNDED: Final = 100_000
"""Width where nobody looks: what goes into a file or a pipe is never cut."""


def let_go_of_stdout() -> None:
    """Forget what was not written yet: the reader went away, and Python would complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """The two streams of one command and the way it writes to them."""

    def __init__(self, settings: Settings) -> None:
        """Keep the settings; rich is loaded by the first table."""
        self.json = settings.json
        self._no_color = settings.no_color

    @cached_property
    def out(self) -> Console:
        """The console of answers."""
        return self._console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        """The console of everything else."""
        return self._console(sys.stderr)

    def _console(self, stream: TextIO) -> Console:
        from rich.console import Console

        watched = stream.isatty()

        class PipedConsole(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # rich would end the program itself, as a failure

        return PipedConsole(
            file=stream,
            no_color=self._no_color or None,
            width=None if watched else _UNBOUNDED,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=not watched,
        )

    @property
    def narrow(self) -> bool:
        """Whether somebody looks at it in less than 100 columns."""
        return self.out.is_terminal and self.out.width < 100

    def show(self, value: object, view: Callable[[], RenderableType]) -> None:
        """Write an answer: the value as JSON for scripts, else what `view` makes of it."""
        if self.json:
            self.document(value)
        else:
            self.table(view())

    def table(self, table: RenderableType) -> None:
        """Write something for people; without the padding where it goes into a file."""
        if self.out.is_terminal:
            self.out.print(table)
            return
        with self.out.capture() as captured:
            self.out.print(table, soft_wrap=False)
        text = "\n".join(line.rstrip() for line in captured.get().splitlines())
        sys.stdout.write(text + "\n" if text else "")
        sys.stdout.flush()

    def document(self, value: object) -> None:
        """Write one JSON document, indented."""
        from agenthive.cli.json_form import dumps

        sys.stdout.write(dumps(value, indent=2) + "\n")
        sys.stdout.flush()

    def line(self, value: object) -> None:
        """Write one JSON document on one line."""
        from agenthive.cli.json_form import dumps

        sys.stdout.write(dumps(value) + "\n")
        sys.stdout.flush()

    def raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def note(self, text: str, *, interrupted: bool = False) -> None:
        """Write a remark for people to stderr, below the ^C of a terminal; scripts do not get it."""
        if not self.json:
            sys.stderr.write(("\n" if interrupted and sys.stderr.isatty() else "") + text + "\n")
            sys.stderr.flush()

    def remark(self, text: str, document: object) -> None:
        """Write something to stderr that scripts want too, as one line of JSON for them."""
        if self.json:
            text = json.dumps(document)
        elif sys.stderr.isatty():
            text = "\n" + text
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def fail(self, text: str, document: object) -> None:
        """Write a failure to stderr."""
        with suppress(BrokenPipeError):
            sys.stderr.write((json.dumps(document) if self.json else f"hive: {text}") + "\n")
            sys.stderr.flush()
