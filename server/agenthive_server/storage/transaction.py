"""Transactions of SQLite, and what becomes of its errors: nothing written, or not known."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from agenthive_server.kernel.errors import StoreUnavailable


class InDoubt(StoreUnavailable):
    """The database failed in the middle of COMMIT; the connection is of no more use."""


def sentence(error: Exception) -> str:
    """Return what went wrong in the database, for an operator."""
    name = getattr(error, "sqlite_errorname", "")
    return f"{error} ({name})" if name else str(error)


@contextmanager
def environment(db: sqlite3.Connection) -> Iterator[None]:
    """Undo the transaction when anything is raised; errors of the database become `StoreUnavailable`."""
    try:
        yield
    except sqlite3.Error as error:
        undo(db)
        raise StoreUnavailable(f"the database cannot be written: {sentence(error)}") from error
    except BaseException:
        undo(db)
        raise


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run statements in one transaction; raises `StoreUnavailable`."""
    with environment(db):
        db.execute("BEGIN IMMEDIATE")
        yield
    finish(db)


def undo(db: sqlite3.Connection) -> None:
    """Roll back, unless the database already has."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def finish(db: sqlite3.Connection) -> None:
    """Commit; raises `StoreUnavailable` when that surely failed, `InDoubt` when it may be there after a crash."""
    try:
        db.execute("COMMIT")
    except sqlite3.Error as error:
        message = f"the database cannot be written: {sentence(error)}"
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
            raise InDoubt(message) from error
        # The last page, which would make it valid, is written after all others: without space it is not there.
        undo(db)
        raise StoreUnavailable(message) from error
