"""The statements that make the tables, and that look whether they are there and fit."""

from __future__ import annotations

from typing import Final

from sqlalchemy import insert
from sqlalchemy.schema import CreateIndex, CreateTable

from agenthive_server.storage.columns import REVISION
from agenthive_server.storage.schema import META, metadata

from .statements import compiled


def create_all() -> list[str]:
    """Return the statements that make all tables and indexes, and say at which migration they stand."""
    tables = [compiled(CreateTable(table)) for table in metadata.sorted_tables]
    indexes = [index for table in metadata.sorted_tables for index in table.indexes]
    made = []
    for index in sorted(indexes, key=lambda index: str(index.name)):
        # The schema narrows them for SQLite; the migrations do so for both.
        where = index.dialect_options["sqlite"]["where"]
        made.append(compiled(CreateIndex(index)) + (f" WHERE {compiled(where)}" if where is not None else ""))
    version = "CREATE TABLE alembic_version (version_num VARCHAR(32) CONSTRAINT alembic_version_pkc PRIMARY KEY)"
    return [*tables, *made, version, f"INSERT INTO alembic_version VALUES ('{REVISION}')"]  # noqa: S608 - a constant


MOVING: Final = "agenthive_move"
"""The table that is there while a hive is moved here (`move/`), and cannot be served yet."""

TABLES_HERE: Final = """
SELECT current_schema(), array(
  SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema() AND tablename = ANY ($1::text[]))
"""
"""Select the schema in use, and those of so many tables that are in it: names."""

REVISION_HERE: Final = "SELECT version_num FROM alembic_version"
"""Select the migration at which the tables stand."""

FITNESS: Final = """
SELECT current_setting('server_encoding'), pg_is_in_recovery(), current_setting('fsync'),
  current_setting('synchronous_commit')
"""
"""Select what a database must have to be fit."""

INSERT_META: Final = compiled(insert(META), *META.c.keys())
"""Insert the store's own row: id, log id, head, head time, group count."""
