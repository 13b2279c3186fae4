"""The look of tables and of single records: no borders, a bold head, colour only where it says something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
    "CANCEL_REQUESTED": "yellow", "DRAINING": "yellow", "SUSPECT": "yellow", "DEGRADED": "yellow",
    "FAILED": "red", "EXPIRED": "red", "QUARANTINED": "red", "LOST": "red", "DOWN": "red",
    "CANCELED": "magenta", "STOPPED": "dim", "SLEEPING": "dim", "DISABLED": "dim",
}  # fmt: skip

RIGHT: Final = ">"
WIDE: Final = "*"


def new_table(*columns: str) -> Table:
    """Return an empty table. A column `>NAME` is aligned right, `*NAME` is the first to be cut when space is short."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", collapse_padding=True)
    for column in columns:
        name = column.lstrip(RIGHT + WIDE)
        wide = column.startswith(WIDE)
        table.add_column(
            name,
            justify="right" if column.startswith(RIGHT) else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=4 if wide else None,
            ratio=None,
        )
    return table


def state(name: str) -> Text:
    """Return a state in its colour."""
    return Text(name, style=STATE_STYLES.get(name, ""))


def plain(text: str, style: str = "") -> Text:
    """Return text from elsewhere as one harmless line."""
    return Text(clean(text), style=style)


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


def listing(table: Table, nothing: str) -> RenderableType:
    """Return the table, or a sentence when it has no rows."""
    return table if table.row_count else Text(nothing, style="dim")


def words(values: Iterable[str]) -> str:
    """Return values separated by commas."""
    return ", ".join(values)


def labels(values: Sequence[tuple[str, str]] | Iterable[tuple[str, str]]) -> str:
    """Return labels as `key=value`, by key."""
    return " ".join(f"{key}={value}" for key, value in sorted(values))
