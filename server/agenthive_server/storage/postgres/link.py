"""One connection at a time, used by one after the other: made when it is needed, dropped when it fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.storage.codec import Unreadable

from .dial import Connection, Dialer
from .failures import FAILURES, lost, unavailable

T = TypeVar("T")

CALL_LIMIT = 15.0
"""Seconds after which a database that does not answer is given up; its own bound on a statement is shorter."""

GOODBYE_LIMIT = 2.0

FIRST_REPLAN, LAST_REPLAN = 8, 4_096
"""Uses of a connection after which its statements are planned anew; then after as many again, until it is the last."""

_log = logging.getLogger(__name__)

Work = Callable[[Connection], Awaitable[T]]


class Link:
    """A place for one connection. What is called here is finished, whoever stops waiting for it."""

    def __init__(self, dialer: Dialer, name: str, **settings: str) -> None:
        """`settings` are those of its session, `name` tells operators what it is for."""
        self._dialer = dialer
        self._settings = {"application_name": f"agenthive {name}", **settings}
        self._connection: Connection | None = None
        self._uses, self._replan_at = 0, FIRST_REPLAN
        self._lock = asyncio.Lock()
        self._open = self._stopped = False
        self._under_way: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Let it be used; it connects when it is."""
        self._open = True

    async def stop(self) -> None:
        """Finish what was handed in and say goodbye; calls that come later are refused."""
        self._open = False
        async with self._lock:
            self._stopped = True
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    await connection.close(timeout=GOODBYE_LIMIT)
                except FAILURES as error:
                    _log.info("store_close_failed", extra={"error": str(error)})
                    connection.terminate()

    async def call(self, work: Work[T], *, limit: float = CALL_LIMIT) -> T:
        """Run work that may be repeated harmlessly; raises `StoreUnavailable`.

        It is run again when the connection turns out to have been lost since it was used last.
        """
        return await self.finish(self.run(work, limit))

    def post(self, work: Work[object]) -> None:
        """Run work when its turn comes; nobody waits for it, and a failure is only logged."""
        if not self._open:
            return
        task = asyncio.create_task(self.run(work, CALL_LIMIT))
        self._under_way.add(task)
        task.add_done_callback(self._posted)

    def _posted(self, task: asyncio.Task[Any]) -> None:
        self._done(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("store_housekeeping_failed", extra={"error": str(error)})

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; cancelling this only stops the waiting. Raises `StoreUnavailable` when closed."""
        if not self._open:
            work.close()
            raise closed()
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Looked at, so that nobody warns of an error that those who would have heard it do not wait for.
            task.exception()

    async def run(self, work: Work[T], limit: float) -> T:
        """As `call`, for who sees to it that it is finished."""
        async with self.turn():
            used = self.connected
            try:
                return await self._work(work, limit)
            except FAILURES as error:
                if not (used and lost(error)) or isinstance(error, TimeoutError):
                    raise unavailable(error) from error
            try:
                return await self._work(work, limit)
            except FAILURES as error:
                raise unavailable(error) from error

    async def _work(self, work: Work[T], limit: float) -> T:
        connection = await self.connection()
        try:
            async with asyncio.timeout(limit):
                await self.plan(connection)
                return await work(connection)
        except Unreadable as error:
            raise StoreUnavailable(f"what is stored cannot be understood: {error}") from error
        except BaseException as error:
            if lost(error) or not isinstance(error, Exception):
                self.drop()
            raise

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Be the only one to use the connection."""
        async with self._lock:
            if self._stopped:
                raise closed()
            yield

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as this side knows."""
        return self._connection is not None and not self._connection.is_closed()

    async def connection(self) -> Connection:
        """Return the connection, made if need be; only for whose turn it is. Raises `StoreUnavailable`."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._dialer.dial(**self._settings)
            self._uses, self._replan_at = 0, FIRST_REPLAN
        return self._connection

    async def plan(self, connection: Connection) -> None:
        """Have statements planned anew when it is time: a plan is kept, and tables that were small grow.

        For an empty table any index is as good as the right one; of a full one, the wrong one was read whole.
        """
        self._uses += 1
        if self._uses >= self._replan_at:
            self._replan_at += min(self._uses, LAST_REPLAN)
            await connection.execute("DISCARD PLANS")

    def drop(self) -> None:
        """Hang up; the next call gets a new connection. Only for whose turn it is."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def closed() -> StoreUnavailable:
    """Return the error for whoever comes before a store is open, or after it was closed."""
    return StoreUnavailable("the store is closed")


class Links:
    """Several connections, of which each call takes one: that used last, so that few are made where few are needed."""

    def __init__(self, dialer: Dialer, name: str, count: int, **settings: str) -> None:
        self._links = [Link(dialer, name, **settings) for _ in range(count)]
        self._free: asyncio.LifoQueue[Link] = asyncio.LifoQueue()
        for link in self._links:
            self._free.put_nowait(link)

    def start(self) -> None:
        """Let them be used."""
        for link in self._links:
            link.start()

    async def stop(self) -> None:
        """As `Link.stop`."""
        for link in self._links:
            await link.stop()

    async def call(self, work: Work[T], *, limit: float = CALL_LIMIT) -> T:
        """As `Link.call`, once one of them is free."""
        link = await self._free.get()
        return await link.finish(self._run(link, work, limit))

    async def _run(self, link: Link, work: Work[T], limit: float) -> T:
        try:
            return await link.run(work, limit)
        finally:
            self._free.put_nowait(link)
