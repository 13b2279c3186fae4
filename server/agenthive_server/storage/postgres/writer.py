"""Writes groups of change sets, each in one transaction, and finds out what became of one when nobody says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Outcome, Rejected
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import OutcomeUnknown, StoreUnavailable
from agenthive_server.kernel.records import Kind, Ref
from agenthive_server.storage.fold import Fold, expectations
from agenthive_server.telemetry import Histogram

from . import bulk, statements
from .dial import Connection
from .failures import FAILURES, REFUSED, lost, passing, refused, sentence, unavailable
from .link import Link

T = TypeVar("T")

GROUP_LIMIT: Final = 15.0
"""Seconds a transaction may take, and again its COMMIT; the database's own bound on each statement is shorter."""

FIRST_LOOK, LAST_LOOK = 0.05, 1.0
"""Seconds between looks after a transaction whose outcome is not known."""

Fence = tuple[Ref, int]

_WENT_BACK: Final = (
    "the database is not as this server left it: it was restored, or another one took its place that lacks what was"
    " committed; start the server again"
)

_log = logging.getLogger(__name__)


class Fenced(StoreUnavailable):
    """The row under which this server may write is not as it was: another server writes now."""


class WentBack(StoreUnavailable):
    """The database has forgotten groups that were committed."""


@dataclass(slots=True)
class Draft:
    """What a transaction has written but not committed, and what will be answered."""

    outcomes: list[Outcome] = field(default_factory=list)
    # Members with events, the head of the log before them, their time.
    told: list[tuple[Sequence[ChangeSet], int, float]] = field(default_factory=list)
    group_count: int = 0
    log_id: str = ""
    transaction: str = ""

    def take(self, members: Sequence[ChangeSet], written: bulk.Written) -> None:
        """Note what a statement has written."""
        self.told.append((members, written.head, written.time))
        self.group_count, self.log_id = written.group_count + 1, written.log_id
        self.transaction = written.transaction

    def stamp(self) -> None:
        """Set what the events got in the transaction, now that it is committed."""
        for members, sequence, time in self.told:
            for changes in members:
                last = sequence + len(changes.events)
                for event in changes.events:
                    sequence += 1
                    event.sequence, event.last, event.time = sequence, last, time


class _Stale(Exception):
    """Rows are not as the group takes them to be."""


class _DataRefused(Exception):
    """The codec or the database refuse the data of a group."""


class Writer:
    """Writes groups on one connection.

    `fence` is a row every group rests on besides its own. `now` says what time it is, None asks the database's clock.
    """

    def __init__(self, link: Link, clock: Clock, now: Callable[[], float] | None, closing: asyncio.Event) -> None:
        self._link = link
        self._clock = clock
        self._now = now
        self._closing = closing
        self.fence: Fence | None = None
        self.channel = ""
        self.log_id = ""
        self.group_count = 0
        self.trouble = ""
        # How long COMMIT takes: all but a little of it is the sync of the disk.
        self.syncs = Histogram()

    async def commit(self, group: Sequence[ChangeSet]) -> list[Outcome]:
        """Write a group and return its outcomes; it is finished whoever stops waiting.

        Raises `StoreUnavailable` when nothing was written, `OutcomeUnknown` when the store is closed before that could
        be found out.
        """
        return await self._link.finish(self._commit(group))

    async def _commit(self, group: Sequence[ChangeSet]) -> list[Outcome]:
        async with self._link.turn():
            try:
                draft = await self._write(group)
                if draft.transaction:
                    await self._finish(draft)
                    self.log_id, self.group_count = draft.log_id, draft.group_count
                    draft.stamp()
            except StoreUnavailable as error:
                self.trouble = error.message
                raise
            self.trouble = ""
            return draft.outcomes

    # Until COMMIT: whatever fails, nothing is written

    async def _write(self, group: Sequence[ChangeSet]) -> Draft:
        """Leave a transaction open in which a group is written; or none, when there is nothing to commit."""
        used = self._link.connected
        try:
            return await self._attempt(group)
        except FAILURES as error:
            # A connection that was lost since it was used last is nobody's business.
            if not passing(error) or (lost(error) and not used) or isinstance(error, TimeoutError):
                raise unavailable(error) from error
        try:
            return await self._attempt(group)
        except FAILURES as error:
            raise unavailable(error) from error

    async def _attempt(self, group: Sequence[ChangeSet]) -> Draft:
        connection = await self._link.connection()
        try:
            async with asyncio.timeout(GROUP_LIMIT):
                try:
                    draft = await self._write_whole(connection, group)
                except _DataRefused:
                    await _undo(connection)
                    draft = await self._write_one_by_one(connection, group)
                if not draft.transaction:
                    await _undo(connection)
                return draft
        except BaseException as error:
            await self._give_up(connection, error)
            raise

    async def _give_up(self, connection: Connection, error: BaseException) -> None:
        """Undo a transaction that failed; without an answer to that the connection goes."""
        if isinstance(error, Exception) and not lost(error):
            with suppress(*FAILURES):
                async with asyncio.timeout(GROUP_LIMIT):
                    await _undo(connection)
                return
        self._link.drop()

    async def _write_whole(self, connection: Connection, group: Sequence[ChangeSet]) -> Draft:
        """Write a group in one statement; when rows are not as expected, judge it by the rows as they are."""
        try:
            guessed = self._together(group)
        except _Stale:
            guessed = None
        await connection.execute(statements.BEGIN)
        if guessed is not None:
            try:
                return await self._run(connection, guessed, [COMMITTED] * len(group))
            except _Stale:
                pass
        outcomes, exact = await self._validated(connection, group)
        return await self._run(connection, exact, outcomes)

    def _together(self, group: Sequence[ChangeSet]) -> bulk.Bulk:
        """Return a group as if every row were as the first expects who names it."""
        fold = Fold()
        for changes in group:
            if fold.add(changes):
                raise _Stale
        return self._bulk(fold, group)

    async def _validated(self, connection: Connection, group: Sequence[ChangeSet]) -> tuple[list[Outcome], bulk.Bulk]:
        """Judge every change set by the rows as they are; returns the verdicts, and those that stand as a statement."""
        known: dict[Ref, int] = dict.fromkeys((ref for changes in group for ref, _ in expectations(changes)), 0)
        if known:
            text, arguments = bulk.revisions(known)
            for kind, namespace, name, revision in await _sent(connection.fetch(text, *arguments)):
                known[Kind(kind), (namespace, name)] = revision
        fold, stand, outcomes = Fold(known), [], list[Outcome]()
        for changes in group:
            stale = fold.add(changes)
            outcomes.append(Conflicted(stale) if stale else COMMITTED)
            if not stale:
                stand.append(changes)
        return outcomes, self._bulk(fold, stand)

    def _bulk(self, fold: Fold, members: Sequence[ChangeSet]) -> bulk.Bulk:
        now = self._now() if self._now else None
        try:
            return bulk.build(fold, members, fence=self.fence, channel=self.channel, now=now)
        except REFUSED as error:
            raise _DataRefused from error

    async def _run(self, connection: Connection, made: bulk.Bulk, outcomes: list[Outcome]) -> Draft:
        """Run the statement of a group; raises `_Stale` when nothing was written for that reason."""
        found = bulk.read(await _sent(connection.fetch(made.text, *made.arguments)))
        draft = Draft(outcomes=outcomes)
        if isinstance(found, bulk.Written):
            self._require_same_log(found)
            draft.take(made.members, found)
        elif self.fence is not None and found.get(self.fence[0], self.fence[1]) != self.fence[1]:
            raise Fenced("another server has taken over this database")
        elif found:
            raise _Stale
        elif made.written:
            raise WentBack(_WENT_BACK)
        return draft

    def _require_same_log(self, found: bulk.Written) -> None:
        if found.log_id != self.log_id or found.group_count < self.group_count:
            raise WentBack(_WENT_BACK)

    async def _write_one_by_one(self, connection: Connection, group: Sequence[ChangeSet]) -> Draft:
        """Write change sets one after the other, so that only the one is refused whose data the database refuses."""
        await connection.execute(statements.BEGIN)
        whole = Draft()
        for changes in group:
            await connection.execute("SAVEPOINT member")
            try:
                outcomes, exact = await self._validated(connection, [changes])
                alone = await self._run(connection, exact, outcomes)
            except _DataRefused as refusal:
                await connection.execute("ROLLBACK TO member")
                cause = refusal.__cause__
                whole.outcomes.append(Rejected(f"{type(cause).__name__}: {sentence(cause) if cause else ''}"))
            else:
                whole.outcomes += alone.outcomes
                if alone.transaction:
                    whole.told += alone.told
                    whole.transaction, whole.log_id = alone.transaction, alone.log_id
                    whole.group_count = alone.group_count
            await connection.execute("RELEASE member")
        return whole

    # COMMIT, and what became of it

    async def _finish(self, draft: Draft) -> None:
        """Commit; raises `StoreUnavailable` once it is known that this failed."""
        connection = await self._link.connection()
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(GROUP_LIMIT):
                done = await connection.execute("COMMIT")
        except BaseException as error:
            self._link.drop()
            if not isinstance(error, FAILURES):
                raise
            self.trouble = sentence(error)
            await self._look_up(draft, error)
        else:
            # A transaction that the server has given up answers so, without an error.
            if done != "COMMIT":
                raise StoreUnavailable(f"the database answered COMMIT with {done}")
            self.syncs.observe(self._clock.monotonic() - began)

    async def _look_up(self, draft: Draft, error: Exception) -> None:
        """Return when a transaction was committed; raises `StoreUnavailable` when it was not."""
        pause = FIRST_LOOK
        while (committed := await self._outcome(draft)) is None:
            if self._closing.is_set():
                raise OutcomeUnknown(f"the store was closed before it was known: {sentence(error)}") from error
            await self._pause(pause)
            pause = min(2 * pause, LAST_LOOK)
        _log.warning("store_commit_looked_up", extra={"committed": committed, "error": sentence(error)})
        if not committed:
            raise unavailable(error) from error

    async def _outcome(self, draft: Draft) -> bool | None:
        """Return whether a transaction was committed; None as long as that cannot be told."""
        try:
            connection = await self._link.connection()
            async with asyncio.timeout(GROUP_LIMIT):
                row = await connection.fetchrow(statements.SELECT_OUTCOME, draft.transaction)
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
        status, log_id, group_count = row if row is not None else ("aborted", "", 0)
        if status == "in progress":
            # Its session is there still: it commits, or is ended by the database for being idle.
            self.trouble = "the database has not finished the last commit"
            return None
        # A database that took the place of another may know a transaction by the same id.
        same = log_id == draft.log_id and group_count >= draft.group_count
        return same and status != "aborted"

    async def _pause(self, seconds: float) -> None:
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((sleep, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            closing.cancel()


async def _sent(answer: Awaitable[T]) -> T:
    """Wait for an answer; raises `_DataRefused` when the data are at fault."""
    try:
        return await answer
    except Exception as error:
        if refused(error):
            raise _DataRefused from error
        raise


async def _undo(connection: Connection) -> None:
    await connection.execute("ROLLBACK")
