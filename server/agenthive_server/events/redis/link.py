"""The way to a Redis server: connections that notice when it hangs, and what is wrong with it at present."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.health import Reading, Status

ANSWER_LIMIT: Final = 1.5
"""Seconds without an answer after which Redis is taken to hang."""

FIRST_BACKOFF: Final = 0.1
MAX_BACKOFF: Final = 2.0

FAILURES: Final = (RedisError, OSError, TimeoutError, EOFError)
"""What a connection raises when it does not work, or not any more."""

WITHOUT: Final = (
    "readers look for events once a second, output of agents on other servers is missing, rate limits are each server's"
)

Command = tuple[str | bytes | int, ...]

_log = logging.getLogger(__name__)


class RedisAway(Exception):
    """Redis does not do what it is asked at present: a sentence."""


class RedisLink:
    """What is known of one Redis: where it is, the prefix of everything in it, and which parts have trouble with it."""

    def __init__(self, url: str, clock: Clock) -> None:
        """Raises `ValueError` for a URL that cannot be understood; looks for nobody yet."""
        self.place = place(url)
        self.clock = clock
        # Set before anything is asked: the keys and channels of a hive begin with the identity of its log.
        self.prefix = ""
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_connect_timeout=ANSWER_LIMIT,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            client_name="agenthive",
        )
        # Bounded here, for whole exchanges. The client does it by `asyncio.wait_for`: a task for every command, which
        # on Python 3.11 may overlook that it was cancelled.
        self._pool.connection_kwargs["socket_timeout"] = None
        try:
            self.connection()
        except (TypeError, RedisError) as error:
            raise ValueError(str(error)) from None
        self._troubles: dict[str, str] = {}

    def connection(self) -> AbstractConnection:
        """Return a connection that is not open yet."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]  # the client has no type there
        return connection

    def begin(self, log_id: str) -> None:
        """Name the hive; before anything is asked."""
        self.prefix = f"agenthive:{{{log_id}}}:"

    @property
    def trouble(self) -> str:
        """Why something does not work at present; empty while all is well."""
        return next(iter(self._troubles.values()), "")

    def failed(self, part: str, error: Exception) -> None:
        """Note that a part cannot do its work; the first to fail is logged."""
        why = sentence(error)
        if not self._troubles:
            _log.warning("redis_failed", extra={"part": part, "place": self.place, "error": why})
        self._troubles[part] = why

    def well(self, part: str) -> None:
        """Note that a part does its work."""
        self._troubles.pop(part, None)

    def probe(self) -> list[tuple[str, Reading]]:
        """Return a reading: DEGRADED, with the reason and what it means, while a part cannot do its work."""
        if not self._troubles:
            return [("redis", Reading())]
        parts = ", ".join(sorted(self._troubles))
        return [("redis", Reading(Status.DEGRADED, f"{self.place}: {self.trouble} ({parts}); until then {WITHOUT}"))]


class Line:
    """A connection for commands: one batch at a time, opened when it is needed and again after a failure."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._connection: AbstractConnection | None = None
        self._turn = asyncio.Lock()

    async def ask(self, *commands: Command, tolerated: str = "") -> list[Any]:
        """Send commands and return their answers.

        Raises `RedisAway` when one fails, or when there is no answer in time; what was sent may have been done then.
        An answer that is an error with `tolerated` in it is returned as None. Cancelling it closes the connection.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_LIMIT):
                    return await self._exchange(commands, tolerated)
            except BaseException as error:
                await self.close()
                if isinstance(error, FAILURES):
                    raise RedisAway(sentence(error)) from error
                raise

    async def _exchange(self, commands: Sequence[Command], tolerated: str) -> list[Any]:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._link.connection()
            await connection.connect()  # type: ignore[no-untyped-call]  # the client has no type there
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await self._answer(connection, tolerated) for _ in commands]

    @staticmethod
    async def _answer(connection: AbstractConnection, tolerated: str) -> Any:
        try:
            return await connection.read_response()
        except ReadOnlyError:
            # A primary that became a replica: the name may lead to another one next time.
            raise
        except ResponseError as error:
            if tolerated and tolerated in str(error):
                return None
            raise

    async def close(self) -> None:
        """Close the connection; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


class Backoff:
    """Waits between attempts, longer each time, with jitter."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._span = FIRST_BACKOFF

    def reset(self) -> None:
        """Begin with the shortest wait again."""
        self._span = FIRST_BACKOFF

    async def wait(self) -> None:
        """Wait before the next attempt."""
        span, self._span = self._span, min(2 * self._span, MAX_BACKOFF)
        await self._clock.sleep(span * random.uniform(0.5, 1.0))


def place(url: str) -> str:
    """Return where a URL leads, without its secrets. Raises `ValueError` for one that cannot be understood."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return f"unix://{parts.path}"
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("expected redis://HOST:PORT/NUMBER, rediss:// for TLS, or unix:///PATH")
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError(f"{parts.path}: expected the number of a database")
    return f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}"


def sentence(error: BaseException) -> str:
    """Return what went wrong, in a few words."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within {ANSWER_LIMIT:g} s"
    return str(error) or type(error).__name__
