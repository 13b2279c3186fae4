"""The tables of a hive as they are moved: by which key they are ordered, and what of a row is compared.

Rows are compared sealed: bytes as their SHA-256, labels as sorted JSON. So the database computes the digests of what it
keeps, every byte of it is read, and yet little is sent. Keys sort by code point in both databases, as in Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import LargeBinary, Table

from agenthive_server.storage.schema import BLOB, BLOB_CHUNK, CHANGE, EVENT, META, TABLES

Row = Sequence[Any]

_LABELS: Final = "labels"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One table. `immutable`: a row never changes once it is there, so that its key says all. `left` selects from the
    source by the first column of the key what stays behind; `page` is how many rows are compared at once."""

    table: Table
    immutable: bool = False
    left: str = ""
    page: int = 2_000

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    @property
    def columns(self) -> list[str]:
        """All columns, in the order of rows."""
        return list(self.table.c.keys())

    @property
    def key(self) -> list[str]:
        """The columns of the key; they come first."""
        return [column.name for column in self.table.primary_key.columns]

    def key_of(self, row: Row) -> tuple[Any, ...]:
        """Return the key of a row."""
        return tuple(row[: len(self.key)])

    def sealed_columns(self) -> list[str]:
        """Return what PostgreSQL is asked for instead of each column, so that it is sealed but for its labels."""
        return [self._sealed(column) for column in self.columns]

    def _sealed(self, name: str) -> str:
        if self.is_bytes(name):
            return f"sha256({name})"
        return f"{name}::text" if name == _LABELS else name

    def is_bytes(self, name: str) -> bool:
        """Whether a column holds bytes."""
        return isinstance(self.table.c[name].type, LargeBinary)

    def sealer(self, *, bytes_too: bool) -> Callable[[Row], tuple[Any, ...]]:
        """Return what seals rows; `bytes_too` unless the database has sealed those."""
        digested = [at for at, name in enumerate(self.columns) if bytes_too and self.is_bytes(name)]
        sorted_json = [at for at, name in enumerate(self.columns) if name == _LABELS]

        def seal(row: Row) -> tuple[Any, ...]:
            sealed = list(row)
            for at in digested:
                sealed[at] = hashlib.sha256(row[at]).digest()
            for at in sorted_json:
                sealed[at] = _sorted(row[at])
            return tuple(sealed)

        return seal


def _sorted(labels: str | None) -> bytes | None:
    return None if labels is None else msgspec.json.encode(msgspec.json.decode(labels), order="sorted")


PARTS: Final = (
    *(Part(table=table) for table in TABLES.values()),
    Part(table=EVENT, immutable=True),
    # What an upload left that never became a blob stays behind.
    Part(
        table=BLOB_CHUNK,
        immutable=True,
        left="SELECT DISTINCT upload_id FROM blob_chunk WHERE upload_id NOT IN (SELECT upload_id FROM blob)",
        page=256,
    ),
    Part(table=BLOB),
)
"""All that is moved row by row."""

OTHERS: Final = frozenset({META.name, CHANGE.name})
"""The tables that are not: the store's own row comes last, by itself, and makes the rest a hive; what groups changed is
of no use but to the replicas that were there."""
