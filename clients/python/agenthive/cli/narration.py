"""Telling on stderr what becomes of one task: a line that moves for people, plain lines for a log."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.text import Text

from agenthive.cli import text
from agenthive.cli.event_text import fact_of, what
from agenthive.cli.follow import OutputWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress

    from agenthive.cli.terminal import Terminal
    from agenthive.v1.event_pb2 import Event
    from agenthive.v1.task_pb2 import Task

_LONGEST_LINE: Final = 16 * 1024
_AGENT_WORDS: Final = {"task_assigned": " to", "task_started": " by"}


class Narration:
    """What a watcher of one task is told; output line by line."""

    def __init__(self, task: Task, say: Callable[[Text], None]) -> None:
        """`say` writes one line."""
        self.output = OutputWriter(self._write, lambda note: self._tell(note, "yellow"))
        self._task = task
        self._say = say
        self._partial = b""
        self._told = ""

    def see(self, event: Event) -> None:
        """Take an event of the task."""
        fact = fact_of(event)
        if fact in ("task_output", "output_gap"):
            self.output.see(event)
        elif fact == "task_progressed":
            self.progress(event.task_progressed.fraction, event.task_progressed.text)
        else:
            self.step(event, fact)

    def step(self, event: Event, fact: str) -> None:
        """Tell a step of its life."""
        word = fact.removeprefix("task_").replace("_", " ")
        agent = f"{_AGENT_WORDS[fact]} {event.agent_id}" if event.agent_id and fact in _AGENT_WORDS else ""
        said = what(event)
        self._tell(f"{text.clock_time(event.time)} {word}{agent}{f'  {said}' if said else ''}", "dim")
        if fact == "task_input_requested":
            self._tell(f"answer with: hive tasks respond {self._task.task_id} ANSWER", "bold yellow")
        elif fact == "task_reported":
            self._tell(f"review it with: hive tasks review {self._task.task_id} --accept", "bold yellow")

    def progress(self, fraction: float, doing: str) -> None:
        """Tell how far it is, each tenth once."""
        told = f"{int(fraction * 10) * 10}% {doing}".strip()
        if told != self._told:
            self._told = told
            self._tell(f"{fraction:.0%} {doing}".strip(), "cyan")

    def finish(self) -> None:
        """Write what is left of the last line."""
        if self._partial:
            self._line(self._partial)
            self._partial = b""

    def _tell(self, line: str, style: str) -> None:
        self._say(Text(text.clean(line), style=style))

    def _write(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._partial) > _LONGEST_LINE:
            self.finish()

    def _line(self, line: bytes) -> None:
        self._say(Text.from_ansi(line.decode(errors="replace")))


class LiveNarration(Narration):
    """The same with a line at the bottom that shows state and progress."""

    def __init__(self, task: Task, progress: Progress) -> None:
        """Write above the line of `progress`."""
        super().__init__(task, progress.console.print)
        self._progress = progress
        self._bar = progress.add_task("waiting for an agent", total=None)

    def step(self, event: Event, fact: str) -> None:
        """Tell a step, and show the state it leads to."""
        if fact == "task_started":
            self._progress.update(self._bar, description=f"running on {text.clean(event.agent_id)}")
        elif fact in ("task_requeued", "task_retry_scheduled", "task_retried"):
            self._progress.update(self._bar, description="waiting for the next attempt", total=None, completed=0)
        super().step(event, fact)

    def progress(self, fraction: float, doing: str) -> None:
        """Move the bar."""
        self._progress.update(
            self._bar, total=1.0 if fraction else None, completed=fraction, description=text.clean(doing) or "running"
        )


@contextmanager
def open_narration(terminal: Terminal, task: Task) -> Iterator[Narration]:
    """Return the narration that fits stderr: it moves where somebody looks."""
    if not terminal.err.is_terminal:
        narration = Narration(task, terminal.err.print)
        try:
            yield narration
        finally:
            narration.finish()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    doing = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (SpinnerColumn("line"), TimeElapsedColumn(), BarColumn(20), doing)
    with Progress(*columns, console=terminal.err, transient=True, expand=True) as progress:
        narration = LiveNarration(task, progress)
        try:
            yield narration
        finally:
            narration.finish()
