"""Finds out what became of a transaction whose COMMIT was not answered, before anyone else is."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import OutcomeUnknown, StoreUnavailable

from . import statements
from .draft import Draft
from .failures import FAILURES, refused, sentence
from .link import CALL_LIMIT, Link

FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 1.0
"""Seconds between looks."""

_log = logging.getLogger(__name__)


class Doubt:
    """Looks up transactions on the connection of whoever had them, whose turn it is meanwhile."""

    def __init__(self, link: Link, clock: Clock, closing: asyncio.Event) -> None:
        self._link = link
        self._clock = clock
        self._closing = closing
        # What it waits for, empty when there is no doubt.
        self.trouble = ""

    async def settle(self, draft: Draft, error: Exception) -> bool:
        """Return whether a transaction was committed, once that is known, however long it takes.

        Raises `OutcomeUnknown` when the store is closed before.
        """
        self.trouble = sentence(error)
        pause = FIRST_PAUSE
        try:
            while (committed := await self._outcome(draft)) is None:
                if self._closing.is_set():
                    raise OutcomeUnknown(f"the store was closed before it was known: {sentence(error)}") from error
                await self._pause(pause)
                pause = min(2 * pause, LAST_PAUSE)
        finally:
            self.trouble = ""
        _log.warning("store_commit_looked_up", extra={"committed": committed, "error": sentence(error)})
        return committed

    async def _outcome(self, draft: Draft) -> bool | None:
        """Return whether a transaction was committed; None as long as that cannot be told."""
        try:
            connection = await self._link.connection()
            async with asyncio.timeout(CALL_LIMIT):
                asked = (draft.transaction, draft.group_count, draft.time, draft.touched)
                row = await connection.fetchrow(statements.SELECT_OUTCOME, *asked)
        except StoreUnavailable as away:
            self.trouble = away.message
            return None
        except FAILURES as failure:
            self._link.drop()
            if refused(failure):
                # An id of the future: this database has never heard of the transaction.
                return False
            self.trouble = sentence(failure)
            return None
        status, log_id, group_count, mine = row if row is not None else ("aborted", "", 0, None)
        if status == "in progress":
            # Its session is there still: it commits, or is ended by the database for being idle.
            self.trouble = "the database has not finished the last commit"
            return None
        # A database that took the place of another may know a transaction by the same id; and one that was killed
        # gives the ids again that it had not written down, with the next number of a group, to another replica.
        same = log_id == draft.log_id and group_count >= draft.group_count and mine is not False
        return same and status != "aborted"

    async def _pause(self, seconds: float) -> None:
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((sleep, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            closing.cancel()
