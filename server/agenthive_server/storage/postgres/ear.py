"""Hears of every commit on a database, whoever made it: a connection that listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from . import statements
from .dial import Connection, Dialer
from .failures import FAILURES, unavailable

LOOK_LIMIT: Final = 5.0
"""Seconds without an answer after which a connection is taken to be dead, though nobody has said so."""


class Ear:
    """A connection that listens on a channel. Made by `listen`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def look(self) -> int:
        """Return the head of the log; raises `StoreUnavailable` when nothing can be heard any more."""
        try:
            async with asyncio.timeout(LOOK_LIMIT):
                row = await self._connection.fetchrow(statements.SELECT_HEAD)
        except FAILURES as error:
            raise unavailable(error) from error
        return int(row[0]) if row is not None else 0

    def close(self) -> None:
        """Listen no more."""
        self._connection.terminate()


async def listen(dialer: Dialer, channel: str, heard: Callable[[int], None]) -> Ear:
    """Call `heard` with the head of the log after every commit from now on; raises `StoreUnavailable`."""

    def notified(_connection: object, _pid: int, _channel: str, payload: str) -> None:
        # Anybody who may use the database may say anything there.
        with suppress(ValueError):
            heard(int(payload))

    connection = await dialer.dial(application_name="agenthive listener")
    try:
        async with asyncio.timeout(LOOK_LIMIT):
            await connection.add_listener(channel, notified)
    except FAILURES as error:
        connection.terminate()
        raise unavailable(error) from error
    return Ear(connection)
