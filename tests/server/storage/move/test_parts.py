"""Every table is moved, or known not to be."""

from __future__ import annotations

from agenthive_server.kernel.records import Kind
from agenthive_server.storage.move.parts import OTHERS, PARTS
from agenthive_server.storage.schema import TABLES, metadata


def test_every_table_is_moved() -> None:
    """Who adds a table says in one place or the other what becomes of it."""
    assert {part.name for part in PARTS} | OTHERS == set(metadata.tables)


def test_keys_come_first() -> None:
    for part in PARTS:
        assert part.columns[: len(part.key)] == part.key


def test_rows_of_both_sides_are_sealed_alike() -> None:
    (part,) = [part for part in PARTS if part.table is TABLES[Kind.AGENT]]
    row = ("n", "a", 1, "READY", None, '{"b":"1","a":"ü"}', b"body")
    ours = part.sealer(bytes_too=True)(row)
    theirs = part.sealer(bytes_too=False)((*row[:5], '{"a": "ü", "b": "1"}', ours[6]))
    assert ours == theirs
    assert len(ours[6]) == 32
