"""A thread with a database connection of its own: what is handed to it runs there in order, off the event loop."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from agenthive_server.kernel.errors import StoreUnavailable

from .codec import Unreadable
from .transaction import InDoubt, sentence

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Lane:
    """Runs work in order in one thread. Its connection is made when it is needed and dropped when it fails."""

    def __init__(self, name: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A daemon: a process that forgot to close its store can still end.
        self._thread = threading.Thread(target=self._serve, name=f"store-{name}", daemon=True)
        self._open = False

    def start(self) -> None:
        """Start the thread."""
        self._open = True
        self._thread.start()

    def call(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Run work with the connection; as `submit`."""
        return self.submit(lambda: work(self.connection()))

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run work in the thread; the future has its result, or raises `StoreUnavailable` for an error of the database.

        Cancelling the future only stops the waiting.
        """
        if not self._open:
            raise StoreUnavailable("the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            result, error = self._attempt(work)
            # A loop that is closed has nobody left who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future, result, error)

        self._work.put(run)
        return future

    def post(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Run work with the connection when its turn comes; nobody waits for it, and a failure is only logged."""

        def run() -> None:
            _, error = self._attempt(lambda: work(self.connection()))
            if error is not None:
                _log.warning("store_housekeeping_failed", extra={"error": str(error)})

        if self._open:
            self._work.put(run)

    async def stop(self) -> None:
        """Finish what was handed in, close the connection and end the thread. Work handed in later is refused."""
        if self._open:
            ended = self.submit(self.drop)
            self._open = False
            self._work.put(None)
            await asyncio.shield(ended)
            self._thread.join()

    def connection(self) -> sqlite3.Connection:
        """Return the connection, made if need be. Only for work that runs in this lane."""
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def drop(self) -> None:
        """Close the connection; the next work gets a new one. Only for work that runs in this lane."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                _log.warning("store_close_failed", extra={"error": sentence(error)})

    def _serve(self) -> None:
        while (run := self._work.get()) is not None:
            run()

    def _attempt(self, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
        try:
            return work(), None
        except InDoubt as error:
            self.drop()
            return None, error
        except (sqlite3.Error, OSError) as error:
            self.drop()
            return None, StoreUnavailable(f"the database failed: {sentence(error)}")
        except Unreadable as error:
            return None, StoreUnavailable(f"what is stored cannot be understood: {error}")
        except Exception as error:  # noqa: BLE001 - whoever waits gets it; a lane that ends would leave all others waiting
            return None, error


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
