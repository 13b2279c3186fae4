"""What the driver and the database raise: whether the connection is gone, the data are at fault, or it may pass."""

from __future__ import annotations

import asyncpg  # type: ignore[import-untyped] # the driver has no types

from agenthive_server.kernel.errors import StoreUnavailable

FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError, TimeoutError)
"""All that a statement can fail with for reasons of the database, the network or the data."""

REFUSED = (TypeError, ValueError, OverflowError)
"""What the codec raises when the fault lies with the data; `refused` knows the rest."""

_DATA_CLASSES = frozenset({"22", "23", "54"})
"""Data exceptions, integrity constraints, limits of the program (as a row too wide for its index)."""

_AGAIN_CLASSES = frozenset({"40"})
"""Transactions that were rolled back for the sake of others, and would go through now."""

_LOST_CLASSES = frozenset({"08", "57"})
"""Connections that failed, and servers that stop or are not ready; a cancelled statement is told apart."""

STARTING = "57P03"
"""What a server says that is starting up, perhaps after a crash."""

NO_ROOM = "54000"
"""What COMMIT fails with when the queue of notifications is full: a session that listens stalls."""

_CANCELED = "57014"
_LOST_CODES = frozenset({"25006", "25P02", "25P03"})
"""Sessions of no more use: with a server that is read-only, so that another may be the primary now; with a failed
transaction; with one that was idle for too long."""


def code(error: BaseException) -> str:
    """Return the SQLSTATE of an error, empty when it has none."""
    return getattr(error, "sqlstate", None) or ""


def lost(error: BaseException) -> bool:
    """Whether the connection is of no more use."""
    if isinstance(error, asyncpg.PostgresError):
        return code(error) != _CANCELED and (code(error)[:2] in _LOST_CLASSES or code(error) in _LOST_CODES)
    return isinstance(error, FAILURES) and not isinstance(error, asyncpg.DataError)


def passing(error: BaseException) -> bool:
    """Whether the same transaction is worth another try at once, on a connection that works."""
    return lost(error) or code(error)[:2] in _AGAIN_CLASSES


def refused(error: BaseException) -> bool:
    """Whether the data are at fault: sent again, they would be refused again."""
    if isinstance(error, asyncpg.PostgresError):
        return code(error)[:2] in _DATA_CLASSES
    return isinstance(error, (asyncpg.DataError, *REFUSED)) and not isinstance(error, OSError)


def sentence(error: BaseException) -> str:
    """Return what went wrong, for an operator."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, OSError):
        return error.strerror or "the connection was lost"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} ({code(error)})" if code(error) else text


def unavailable(error: BaseException) -> StoreUnavailable:
    """Return the error a caller of the store gets."""
    return StoreUnavailable(f"the database failed: {sentence(error)}")
