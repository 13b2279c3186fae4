"""The look of tables and of single records: no borders, a bold head, colour only where it says something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from rich.table import Table
from rich.text import Text

from agenthive.cli.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

STATE_STYLES: Final = {
    "SUCCEEDED": "green", "IDLE": "green", "OK": "green", "ENABLED": "green", "READ": "green",
    "RUNNING": "cyan", "BUSY": "cyan", "ASSIGNED": "cyan", "DELIVERED": "cyan",
    "STARTING": "blue", "QUEUED": "blue", "BLOCKED": "blue", "WAKING": "blue",
    "RETRY_WAIT": "yellow", "INPUT_REQUIRED": "yellow", "REPORTED": "yellow", "PAUSED": "yellow",
    "CANCEL_REQUESTED": "yellow", "DRAINING": "yellow", "AWAY": "red", "SUSPECT": "yellow", "DEGRADED": "yellow",
    "FAILED": "red", "EXPIRED": "red", "QUARANTINED": "red", "LOST": "red", "DOWN": "red",
    "CANCELED": "magenta", "STOPPED": "dim", "SLEEPING": "dim", "DISABLED": "dim",
    "ACTIVE": "green", "USED": "dim", "REVOKED": "magenta",
    "OPEN": "red", "FIRING": "red", "ACKNOWLEDGED": "yellow", "RESOLVED": "green",
    "MET": "green", "MISSED": "red", "BURNING": "yellow",
    "COMPLETE": "cyan", "VERIFIED": "green", "DAMAGED": "red", "INTACT": "green",
    "HEALTHY": "green", "UNHEALTHY": "red", "CRITICAL": "bold red", "DENIED": "yellow",
}  # fmt: skip

SEVERITY_STYLES: Final = {"CRITICAL": "bold red", "HIGH": "red", "MEDIUM": "yellow", "LOW": "cyan", "INFO": "dim"}

RIGHT: Final = ">"
WIDE: Final = "*"
SPARE: Final = "?"


class Listing(Table):
    """A table without borders whose spare columns are left out where there is little space."""

    def __init__(self, columns: Iterable[str], *, narrow: bool) -> None:
        """Begin without rows; see `new_table` for the columns."""
        super().__init__(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
        self._kept = [not (narrow and SPARE in column) for column in columns]
        for column, kept in zip(columns, self._kept, strict=True):
            if kept:
                # Only columns that could wrap shrink; their cells are cut instead, see `plain`.
                wide = WIDE in column
                justify: Literal["left", "right"] = "right" if RIGHT in column else "left"
                name = column.lstrip(RIGHT + WIDE + SPARE)
                self.add_column(Text(name, no_wrap=True, overflow="ellipsis"), justify=justify, no_wrap=not wide)

    def add(self, *cells: str | Text) -> None:
        """Add a row with a cell for each column, also for those left out."""
        self.add_row(*(cell for cell, kept in zip(cells, self._kept, strict=True) if kept))


def new_table(*columns: str, narrow: bool = False) -> Listing:
    """Return an empty table. A column `>NAME` is aligned right, `*NAME` is cut and `?NAME` left out to save space."""
    return Listing(columns, narrow=narrow)


def state(name: str) -> Text:
    """Return a state in its colour."""
    return Text(name, style=STATE_STYLES.get(name, ""))


def severity(name: str) -> Text:
    """Return how bad something is, in its colour."""
    return Text(name.lower(), style=SEVERITY_STYLES.get(name, ""))


def plain(text: str, style: str = "") -> Text:
    """Return text from elsewhere as one harmless line."""
    return Text(clean(text), style=style, no_wrap=True, overflow="ellipsis")


def record(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Return the fields of one thing, one a line; empty ones are left out."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if isinstance(value, str):
            value = Text(clean(value, lines=True))
        if not (isinstance(value, Text) and not value.plain):
            table.add_row(name, value)
    return table


def or_nothing(table: Table, nothing: str) -> RenderableType:
    """Return the table, or a sentence when it has no rows."""
    return table if table.row_count else Text(nothing, style="dim")


def short_id(whole: str, *, narrow: bool) -> str:
    """Return an id, or where space is short the beginning of a long one."""
    return f"{whole[:8]}…" if narrow and len(whole) > 20 else whole


def words(values: Iterable[str]) -> str:
    """Return values separated by commas."""
    return ", ".join(values)


def labels(values: Sequence[tuple[str, str]] | Iterable[tuple[str, str]]) -> str:
    """Return labels as `key=value`, by key."""
    return " ".join(f"{key}={value}" for key, value in sorted(values))
