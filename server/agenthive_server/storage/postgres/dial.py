"""Makes connections to PostgreSQL: with the settings every session of ours has, and with patience when it is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import asyncpg  # type: ignore[import-untyped] # the driver has no types

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.ports import Chance
from agenthive_server.storage.address import shown

from .failures import FAILURES, sentence

CONNECT_LIMIT: Final = 5.0
"""Seconds a connection may take to be made."""

FIRST_REST = 0.05
LONGEST_REST = 1.0
"""Seconds after a failure in which nobody tries to connect again: every caller is told at once."""

SESSION: Final = {
    "application_name": "agenthive",
    # A replica that stalls in the middle of a transaction lets the head of the log go.
    "idle_in_transaction_session_timeout": "2s",
    "statement_timeout": "10s",
    # A server whose client has vanished without a word finds out.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "default_transaction_isolation": "read committed",
    "timezone": "UTC",
    "jit": "off",
}
"""Settings of every session."""

BY_KEY: Final = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""For statements that only ever look rows up by an index, and are planned once for all values (see `Link.plan`)."""

Row = Sequence[Any]


class Connection(Protocol):
    """What of the driver's connection is used here."""

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement, or without arguments several; returns the tag of the last."""

    async def fetch(self, query: str, *args: object) -> list[Row]:
        """Run a statement and return its rows."""

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        """Run a statement and return its first row."""

    async def copy_records_to_table(self, table_name: str, *, records: Iterable[Row], columns: Sequence[str]) -> str:
        """Insert rows in bulk, all or none."""

    def cursor(self, query: str, *args: object, prefetch: int) -> AsyncIterator[Row]:
        """Run a statement and iterate over its rows; only within a transaction."""

    def transaction(self, *, isolation: str | None = None, readonly: bool = False) -> AbstractAsyncContextManager[Any]:
        """Run a block in a transaction."""

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        """Call back with every notification on a channel."""

    def add_termination_listener(self, callback: Callable[..., None]) -> None:
        """Call back when the connection ends."""

    def get_server_version(self) -> Sequence[Any]:
        """Return the version of the server, its major number first."""

    def is_closed(self) -> bool:
        """Whether it is of no more use."""

    async def close(self, *, timeout: float) -> None:  # noqa: ASYNC109 - the driver's signature
        """Say goodbye."""

    def terminate(self) -> None:
        """Hang up."""


class Dialer:
    """Connects to one database. After a failure it rests for a moment, longer each time, at most a second."""

    def __init__(self, url: str, clock: Clock, chance: Chance = random.random) -> None:
        self.url = url
        # Settings of every session, besides `SESSION`.
        self.needed: dict[str, str] = {}
        self._clock = clock
        self._chance = chance
        self._failures = 0
        self._rest_until = float("-inf")
        self._failure = ""

    async def dial(self, **settings: str) -> Connection:
        """Return a new connection; raises `StoreUnavailable`, at once while it rests after a failure."""
        if self._clock.monotonic() < self._rest_until:
            raise StoreUnavailable(self._failure)
        try:
            connection = await self.connect(**settings)
        except (*FAILURES, ValueError) as error:
            self._failures += 1
            rest = min(FIRST_REST * 2**self._failures, LONGEST_REST)
            self._rest_until = self._clock.monotonic() + rest * (0.5 + self._chance() / 2)
            self._failure = f"{shown(self.url)} cannot be reached: {sentence(error)}"
            raise StoreUnavailable(self._failure) from error
        self._failures = 0
        return connection

    async def connect(self, **settings: str) -> Connection:
        """Return a new connection; raises what the driver raises."""
        async with asyncio.timeout(CONNECT_LIMIT):
            connection: Connection = await asyncpg.connect(
                self.url,
                timeout=CONNECT_LIMIT,
                server_settings={**SESSION, **self.needed, **settings},
                statement_cache_size=256,
                max_cached_statement_lifetime=0,
            )
        return connection
