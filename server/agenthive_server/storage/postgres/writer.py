"""Writes groups of change sets, each in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Outcome, Rejected
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.records import Kind, Ref
from agenthive_server.storage.fold import Fold, expectations
from agenthive_server.telemetry import Histogram

from . import bulk, statements
from .dial import Connection
from .doubt import Doubt
from .draft import Draft
from .failures import FAILURES, NO_ROOM, REFUSED, code, lost, passing, refused, sentence, unavailable
from .link import Link

T = TypeVar("T")

GROUP_LIMIT: Final = 15.0
"""Seconds a transaction may take, and again its COMMIT; the database's own bound on each statement is shorter."""

MUTE_SECONDS: Final = 60.0
"""Seconds without notifications after the database had no room for one more: readers look by themselves meanwhile."""

Fence = tuple[Ref, int]

_WENT_BACK: Final = (
    "the database is not as this server left it: it was restored, or another one took its place that lacks what was"
    " committed; start the server again"
)


class Fenced(StoreUnavailable):
    """The row under which this server may write is not as it was: others have taken its work over."""


class WentBack(StoreUnavailable):
    """The database has forgotten groups that were committed."""


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
        self._doubt = Doubt(link, clock, closing)
        self.fence: Fence | None = None
        self.channel = ""
        self.log_id = ""
        self.group_count = 0
        # The number of groups before the last commit of this server, and with it.
        self.written = (0, 0)
        self._trouble = ""
        self._muted, self._muted_until = False, 0.0
        # How long COMMIT takes: all but a little of it is the sync of the disk.
        self.syncs = Histogram()

    @property
    def trouble(self) -> str:
        """Why the last commit failed, or is not finished; empty when it went well."""
        return self._doubt.trouble or self._trouble

    @property
    def in_doubt(self) -> str:
        """Why it is not known what became of the commit under way; empty otherwise."""
        return self._doubt.trouble

    async def commit(self, group: Sequence[ChangeSet]) -> list[Outcome]:
        """Write a group and return its outcomes; it is finished whoever stops waiting.

        Raises `StoreUnavailable` when nothing was written, `OutcomeUnknown` when the store is closed before that could
        be found out.
        """
        return await self._link.finish(self._commit(group))

    async def _commit(self, group: Sequence[ChangeSet]) -> list[Outcome]:
        async with self._link.turn():
            try:
                connection, draft = await self._write(group)
                if draft.transaction:
                    await self._finish(connection, draft)
                    self.group_count = draft.group_count
                    self.written = (draft.groups_before, draft.group_count)
                    draft.stamp()
                else:
                    self.written = (self.group_count, self.group_count)
            except StoreUnavailable as error:
                self._trouble = error.message
                raise
            self._trouble = ""
            return draft.outcomes

    # Until COMMIT: whatever fails, nothing is written

    async def _write(self, group: Sequence[ChangeSet]) -> tuple[Connection, Draft]:
        """Leave a transaction open in which a group is written; or none, when there is nothing to commit.

        Returns the connection it is open on: on another one, COMMIT would commit nothing and say that all is well.
        """
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

    async def _attempt(self, group: Sequence[ChangeSet]) -> tuple[Connection, Draft]:
        connection = await self._link.connection()
        try:
            async with asyncio.timeout(GROUP_LIMIT):
                await self._link.plan(connection)
                if self._muted and self._clock.monotonic() >= self._muted_until:
                    await connection.execute(statements.MAKE_ROOM)
                    self._muted = False
                try:
                    draft = await self._write_whole(connection, group)
                except _DataRefused:
                    await _undo(connection)
                    draft = await self._write_one_by_one(connection, group)
                if not draft.transaction:
                    await _undo(connection)
                return connection, draft
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
            try:
                text, arguments = bulk.revisions(known)
            except REFUSED as error:
                raise _DataRefused from error
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
            return bulk.build(fold, members, fence=self.fence, channel="" if self._muted else self.channel, now=now)
        except REFUSED as error:
            raise _DataRefused from error

    async def _run(self, connection: Connection, made: bulk.Bulk, outcomes: list[Outcome]) -> Draft:
        """Run the statement of a group; raises `_Stale` when nothing was written for that reason."""
        found = bulk.read(await _sent(connection.fetch(made.text, *made.arguments)))
        draft = Draft(outcomes=outcomes)
        if isinstance(found, bulk.Written):
            self._require_same_log(found)
            draft.take(made, found)
        elif self.fence is not None and found.get(self.fence[0], self.fence[1]) != self.fence[1]:
            raise Fenced("this server was away, and others have taken its work over")
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
                changes.void = True
                cause = refusal.__cause__
                whole.outcomes.append(Rejected(f"{type(cause).__name__}: {sentence(cause) if cause else ''}"))
            else:
                whole.outcomes += alone.outcomes
                if alone.transaction:
                    whole.told += alone.told
                    whole.transaction, whole.log_id = alone.transaction, alone.log_id
                    whole.groups_before = min(whole.groups_before, alone.groups_before)
                    whole.group_count, whole.time, whole.touched = alone.group_count, alone.time, alone.touched
            await connection.execute("RELEASE member")
        return whole

    async def _finish(self, connection: Connection, draft: Draft) -> None:
        """Commit; raises `StoreUnavailable` once it is known that this failed."""
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(GROUP_LIMIT):
                done = await connection.execute("COMMIT")
        except BaseException as error:
            self._link.drop()
            if not isinstance(error, FAILURES):
                raise
            if code(error) == NO_ROOM:
                self._muted, self._muted_until = True, self._clock.monotonic() + MUTE_SECONDS
            if not await self._doubt.settle(draft, error):
                raise unavailable(error) from error
        else:
            # A transaction that the server has given up answers so, without an error.
            if done != "COMMIT":
                raise StoreUnavailable(f"the database answered COMMIT with {done}")
            self.syncs.observe(self._clock.monotonic() - began)


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
