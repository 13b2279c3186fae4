"""What is seen of the hive: a live picture in a terminal, one line for each event elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from showcase.picture import TERMINAL, AgentSeen, Picture

FILE_WIDTH = 120
OTHER_LINES = 10
STYLES = {
    "succeeded": "green",
    "failed": "bold red",
    "canceled": "yellow",
    "requested": "yellow",
    "restarting": "yellow",
}


class Screen:
    """Shows a picture again whenever it has changed."""

    def __init__(self, picture: Picture, *, plain: bool) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = FILE_WIDTH
        self._picture = picture
        self._live = None if plain or not self.console.is_terminal else Live(console=self.console, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    def say(self, text: str, style: str = "bold") -> None:
        """Say what the demo itself does."""
        self.console.print(Text(f"» {text}", style=style), soft_wrap=True)

    def event(self, fact: str) -> None:
        """Tell of the last event, where there is no live picture."""
        if self._live is None and fact:
            seconds, _, said = self._picture.last[-1]
            self.console.print(f"{seconds:7.2f} s  {said}", markup=False, soft_wrap=True)

    def refresh(self) -> None:
        """Draw the live picture."""
        if self._live:
            self._live.update(Group(self._agents(), self._tasks(), self._events()), refresh=True)

    def _agents(self) -> Table:
        table = Table(title="Agents", expand=True, title_justify="left")
        for column in ("agent", "state", "does", "progress", "done"):
            table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=2 if column == "progress" else None)
        for agent in sorted(self._picture.agents.values(), key=lambda each: each.agent_id):
            state = "WORKING" if agent.task_id and agent.state == "READY" else agent.state
            color = {"WORKING": "cyan", "READY": "green", "STARTING": "yellow"}.get(state, "red")
            table.add_row(agent.agent_id, Text(state, color), agent.task_id, _progress(agent), str(agent.done))
        return table

    def _tasks(self) -> Group:
        counts, total = self._picture.counts, len(self._picture.tasks)
        ended = sum(counts[state] for state in TERMINAL)
        words = [f"{number} {state.lower().replace('_', ' ')}" for state, number in sorted(counts.items())]
        line = Text(f"Tasks  {ended} of {total}   " + "  ".join(words) + f"   events {self._picture.events}")
        return Group(line, ProgressBar(total=total, completed=ended))

    def _events(self) -> Panel:
        room = max(3, self.console.height - len(self._picture.agents) - OTHER_LINES)
        lines = [Text(f"{s:7.2f} s  {said}", style=_style(fact), overflow="ellipsis", no_wrap=True)
                 for s, fact, said in list(self._picture.last)[-room:]]  # fmt: skip
        return Panel(Group(*lines), title="Events", title_align="left")


def _progress(agent: AgentSeen) -> Text:
    return Text(f"{agent.fraction:4.0%} {agent.text}" if agent.task_id and agent.text else "")


def _style(fact: str) -> str:
    return STYLES.get(fact.rpartition("_")[2], "")
