"""What goes wrong is told apart: connections that are gone, data that are refused, and what may pass."""

from __future__ import annotations

import socket
import ssl

import asyncpg  # type: ignore[import-untyped] # the driver has no types
import pytest
from agenthive_server.storage.postgres.failures import lost, passing, refused, sentence, unavailable

_ERRORS = asyncpg.exceptions


@pytest.mark.parametrize(
    ("error", "is_lost", "is_refused"),
    [
        (_ERRORS.ConnectionDoesNotExistError("x"), True, False),
        (_ERRORS.AdminShutdownError("x"), True, False),
        (_ERRORS.CannotConnectNowError("x"), True, False),
        (_ERRORS.IdleInTransactionSessionTimeoutError("x"), True, False),
        (_ERRORS.InFailedSQLTransactionError("x"), True, False),
        (_ERRORS.QueryCanceledError("x"), False, False),
        (_ERRORS.InterfaceError("connection is closed"), True, False),
        (ConnectionResetError("x"), True, False),
        (TimeoutError(), True, False),
        (_ERRORS.DiskFullError("x"), False, False),
        (_ERRORS.ReadOnlySQLTransactionError("x"), True, False),
        (_ERRORS.UndefinedTableError("x"), False, False),
        (_ERRORS.DeadlockDetectedError("x"), False, False),
        (_ERRORS.DataError("x"), False, True),
        (_ERRORS.CharacterNotInRepertoireError("x"), False, True),
        (_ERRORS.UntranslatableCharacterError("x"), False, True),
        (_ERRORS.ProgramLimitExceededError("x"), False, True),
        (_ERRORS.UniqueViolationError("x"), False, True),
        (TypeError("x"), False, True),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "x"), False, True),
        (KeyError("x"), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_errors_are_told_apart(error: Exception, is_lost: bool, is_refused: bool) -> None:
    assert (lost(error), refused(error)) == (is_lost, is_refused)


def test_a_transaction_that_lost_to_another_may_be_tried_again() -> None:
    assert passing(_ERRORS.DeadlockDetectedError("x"))
    assert passing(_ERRORS.SerializationError("x"))
    assert not passing(_ERRORS.QueryCanceledError("x"))


def test_every_failure_is_one_sentence() -> None:
    assert sentence(TimeoutError()) == "it did not answer in time"
    assert sentence(ConnectionResetError()) == "the connection was lost"
    assert sentence(_ERRORS.DiskFullError("no\nspace")) == "no space (53100)"
    assert sentence(socket.gaierror(-2, "Name or service not known")) == "Name or service not known"
    assert sentence(ssl.SSLError(1, "[SSL] bad")) == "[SSL] bad"
    assert unavailable(TimeoutError()).message == "the database failed: it did not answer in time"
