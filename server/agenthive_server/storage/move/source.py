"""The hive that is moved: a SQLite file, which a server may be serving.

It is read in short transactions, a page each: a server's write-ahead log does not grow for it, and nobody waits. So
what is read is not of one moment while a server runs; it is once the file is claimed, which only works without one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agenthive_server.kernel.errors import BadRequest, Refused
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.storage import statements
from agenthive_server.storage.columns import REVISION
from agenthive_server.storage.database import MOVED, Database
from agenthive_server.storage.transaction import transaction

from .parts import Part, Row

BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of rows that are held at once, and one row more."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a log stands: the store's own row."""

    log_id: str
    head: int
    head_time: float
    group_count: int


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What says of a hive that it was moved: by which move, to where."""

    move_id: str
    target: str


class Source:
    """A file that holds a hive, open for reading. Everything here blocks; raises what SQLite raises."""

    def __init__(self, path: Path) -> None:
        """Raises `BadRequest` when there is no hive at `path`, `Refused` when it is one of another version."""
        if not path.is_file():
            raise BadRequest(f"there is no database at {path}")
        self.path = path
        self._database = Database(path, "FULL", sqlite3.connect)
        self._claimed = False
        self._db = self._database.connect()
        try:
            self._require_ours()
        except BaseException:
            self._db.close()
            raise

    def _require_ours(self) -> None:
        if not {"meta", "alembic_version"} <= self._tables():
            raise BadRequest(f"{self.path} is not a database of Agent Hive")
        row = self._db.execute("SELECT version_num FROM alembic_version").fetchone()
        revision = row[0] if row else "unknown"
        if revision != REVISION:
            older = f"stop its server and run: agenthived migrate --store sqlite:///{self.path}"
            raise Refused(
                f"the tables of {self.path} are at {revision}, this version's at {REVISION};"
                f" {older if revision < REVISION else 'move it with the version that used it last'}"
            )

    def close(self) -> None:
        """Let go of it."""
        self._db.close()
        self._database.release()
        self._claimed = False

    def claim(self) -> bool:
        """Keep servers out until it is closed; False when one is in, or another program that writes."""
        if not self._claimed:
            try:
                self._database.lock()
            except StoreUnusable:
                return False
            self._claimed = True
        return True

    def standing(self) -> Standing:
        """Return where its log stands."""
        log_id, head, head_time, group_count = self._db.execute(statements.SELECT_META).fetchone()
        return Standing(log_id=log_id, head=head, head_time=head_time, group_count=group_count)

    # Rows

    def count(self, part: Part) -> int:
        """Return how many rows a part has, those among them that stay behind."""
        count: int = self._db.execute(f"SELECT count(*) FROM {part.name}").fetchone()[0]  # noqa: S608 - names of the schema
        return count

    def keys(self, part: Part) -> Iterator[Row]:
        """Yield the keys of all rows in order."""
        return self._pages(part, part.key)

    def rows(self, part: Part) -> Iterator[Row]:
        """Yield all rows in the order of their keys."""
        return self._pages(part, part.columns)

    def row(self, part: Part, key: Sequence[Any]) -> Row | None:
        """Return the row of a key, None when it is gone."""
        same = " AND ".join(f"{name} = ?" for name in part.key)
        found: Row | None = self._db.execute(
            f"SELECT {', '.join(part.columns)} FROM {part.name} WHERE {same}",  # noqa: S608 - names of the schema
            tuple(key),
        ).fetchone()
        return found

    def _pages(self, part: Part, columns: Sequence[str]) -> Iterator[Row]:
        left = {first for (first,) in self._db.execute(part.left)} if part.left else frozenset()
        last: tuple[Any, ...] | None = None
        while page := self._page(part, columns, last):
            yield from (row for row in page if row[0] not in left) if left else page
            last = part.key_of(page[-1])

    def _page(self, part: Part, columns: Sequence[str], after: Sequence[Any] | None) -> list[Row]:
        key = ", ".join(part.key)
        where = f" WHERE ({key}) > ({', '.join('?' * len(part.key))})" if after is not None else ""
        text = f"SELECT {', '.join(columns)} FROM {part.name}{where} ORDER BY {key}"  # noqa: S608 - names of the schema
        wide = [at for at, name in enumerate(columns) if part.is_bytes(name)]
        page: list[Row] = []
        size = 0
        # Closed before it has ended, so that no transaction stays open for what is done with the rows.
        with closing(self._db.execute(text, tuple(after or ()))) as found:
            for row in found:
                page.append(row)
                for at in wide:
                    size += len(row[at])
                if len(page) >= part.page or size >= BATCH_BYTES:
                    break
        return page

    # That it was moved

    def mark(self) -> Mark | None:
        """Return what says that it was moved; None when it was not."""
        if MOVED not in self._tables():
            return None
        move_id, target = self._db.execute(f"SELECT move_id, target FROM {MOVED}").fetchone()  # noqa: S608 - a constant
        return Mark(move_id=move_id, target=target)

    def set_mark(self, mark: Mark) -> None:
        """Say durably that it was moved: no server starts on it from then on. Only while it is claimed."""
        with closing(self._database.connect(writing=True)) as db, transaction(db):
            db.execute(f"CREATE TABLE IF NOT EXISTS {MOVED} (move_id TEXT NOT NULL, target TEXT NOT NULL)")
            db.execute(f"DELETE FROM {MOVED}")  # noqa: S608 - a constant
            db.execute(f"INSERT INTO {MOVED} VALUES (?, ?)", (mark.move_id, mark.target))  # noqa: S608 - a constant

    def remove_mark(self) -> None:
        """Let servers start on it again. Only while it is claimed."""
        with closing(self._database.connect(writing=True)) as db, transaction(db):
            db.execute(f"DROP TABLE IF EXISTS {MOVED}")

    def _tables(self) -> set[str]:
        return {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
