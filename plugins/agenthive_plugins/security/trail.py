"""Reads the audit trail: newest first, oldest first, whether it holds; and removes its oldest part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from agenthive_server.plugin.api import HookState, State

from .chains import ChainRow, Chains, append, block_key, read_row, unpack, write_row
from .records import Act, Category, Ending, Fault, FaultKind, Head, Record, Unreadable, Verifier

REMOVED: Final = "audit.removed"
"""Method of the record that tells what retention has removed; it names the last record that is gone."""

_PAGE_BLOCKS: Final = 256
_READ_AT_ONCE: Final = 16
_REMOVED_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which records are wanted; what is empty is not asked for. Times in milliseconds, the end exclusive."""

    principal: str = ""
    methods: frozenset[str] = frozenset()
    outcomes: frozenset[Ending] = frozenset()
    categories: frozenset[Category] = frozenset()
    peer: str = ""
    start: int = 0
    end: int = 0

    def wants(self, record: Record) -> bool:
        """Whether a record is one of them."""
        return (
            record.time >= self.start
            and (not self.end or record.time < self.end)
            and (not self.principal or record.principal == self.principal)
            and (not self.peer or record.peer == self.peer)
            and (not self.outcomes or record.outcome in self.outcomes)
            and (not self.categories or record.category in self.categories)
            and (not self.methods or record.method in self.methods or record.method.rpartition("/")[2] in self.methods)
        )


EVERYTHING: Final = Filter()

Position = Mapping[str, tuple[int, int]]
"""Where a page begins: for each chain a block, and the sequence in it below which records come. Zero: done with it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Records newest first, and where the next page begins; None on the last."""

    records: list[Record]
    after: Position | None


@dataclass(slots=True)
class Found:
    """What verifying came to."""

    rows: list[tuple[ChainRow, int]] = field(default_factory=list)
    """Each chain with the number of records read."""
    faults: list[Fault] = field(default_factory=list)

    def intact(self, chain: str) -> bool:
        """Whether nothing is wrong with a chain."""
        return not any(fault.chain == chain for fault in self.faults)


class Reader:
    """Reads all chains of the trail. Records that are not written yet are not there yet."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._chains = Chains(state)

    async def rows(self) -> list[ChainRow]:
        """Return all chains. Raises `Unreadable`."""
        return await self._chains.rows()

    # Newest first ---------------------------------------------------------------------------------------------------

    async def page(self, wanted: Filter, size: int, after: Position | None = None) -> Page:
        """Return records newest first. The work is bounded: a page may be short or empty and still have a next one."""
        walks = [await self._walk(row, wanted, after) for row in await self._chains.rows()]
        records: list[Record] = []
        budget = _PAGE_BLOCKS
        for walk in walks:
            budget -= await walk.fill(self._chains)
        while len(records) < size and budget > 0:
            ready = [walk for walk in walks if walk.records]
            if not ready:
                return Page(records, None)
            newest = max(ready, key=lambda walk: (walk.records[-1].time, walk.row.chain))
            record = newest.take()
            if record.time < wanted.start:
                newest.end()
            elif wanted.wants(record):
                records.append(record)
            budget -= await newest.fill(self._chains)
        if not any(walk.records or walk.block > walk.row.base_block for walk in walks):
            return Page(records, None)
        return Page(records, {walk.row.chain: walk.position for walk in walks})

    async def _walk(self, row: ChainRow, wanted: Filter, after: Position | None) -> _Walk:
        if after is not None:
            block, sequence = after.get(row.chain, (0, 0))
            return _Walk(row, min(block, row.head_block), sequence)
        if not wanted.end or row.head_time < wanted.end:
            return _Walk(row, row.head_block, row.head.sequence + 1)
        return _Walk(row, await self._first_after(row, wanted.end), row.head.sequence + 1)

    async def _first_after(self, row: ChainRow, time: int) -> int:
        """Return the first block whose records are all at or after a time, or the last block. Found by halving."""
        low, high = row.base_block + 1, row.head_block
        while low < high:
            middle = (low + high) // 2
            if await self._began(row.chain, middle) < time:
                low = middle + 1
            else:
                high = middle
        return low

    async def _began(self, chain: str, block: int) -> int:
        try:
            records = await self._chains.block(chain, block)
        except Unreadable:
            records = []
        return records[0].time if records else 0

    # Oldest first ---------------------------------------------------------------------------------------------------

    async def export(self, wanted: Filter = EVERYTHING) -> AsyncIterator[list[Record]]:
        """Yield records chain by chain, oldest first, in blocks. What cannot be read is left out."""
        for row in await self._chains.rows():
            first = row.base_block
            if wanted.start and row.head_block > row.base_block:
                first = max(row.base_block, await self._first_after(row, wanted.start) - 2)
            async for records in self._blocks(row, first, lambda _: None):
                found = [record for record in records if wanted.wants(record)]
                if found:
                    yield found
                if wanted.end and records[-1].time >= wanted.end:
                    break

    async def verify(self, expected: Mapping[str, Sequence[Head]] | None = None) -> Found:
        """Read everything and say whether it holds; `expected` are heads by chain that were kept elsewhere."""
        heads, found = expected or {}, Found()
        try:
            rows = await self._chains.rows()
        except Unreadable as error:
            found.faults.append(Fault(FaultKind.UNREADABLE, "", 0, str(error)))
            return found
        for row in rows:
            await self._verify(row, heads.get(row.chain, ()), found)
        for chain in sorted(heads.keys() - {row.chain for row in rows}):
            found.faults.append(Fault(FaultKind.HEAD_MISSING, chain, 0, "there is no such chain"))
        return found

    async def _verify(self, row: ChainRow, expected: Sequence[Head], found: Found) -> None:
        verifier = Verifier(row.chain, row.base, expected)
        removed = Head()
        async for records in self._blocks(row, row.base_block, verifier.unreadable):
            for record in records:
                verifier.take(record)
                if record.method == REMOVED:
                    removed = _removed(record)
            # Hashing is work for the event loop's thread: let others have their turn.
            await asyncio.sleep(0)
        verifier.finish(row.head)
        if removed != row.base:
            text = "the chain does not begin where it says its oldest part was removed"
            verifier.faults.append(Fault(FaultKind.WRONG_BEGINNING, row.chain, row.base.sequence, text))
        found.rows.append((row, verifier.count))
        found.faults += verifier.faults

    async def _blocks(
        self, row: ChainRow, after: int, unreadable: Callable[[str], None]
    ) -> AsyncIterator[list[Record]]:
        """Yield the records of each block up to the head the row has; what is written meanwhile is left out."""
        while after < row.head_block:
            page = await self._chains.raw_blocks(row.chain, after, _READ_AT_ONCE)
            if not page:
                return
            for number, raw in page:
                if number > row.head_block:
                    return
                try:
                    yield unpack(raw)
                except Unreadable as error:
                    unreadable(f"block {number}: {error}")
                after = number

    # Retention ------------------------------------------------------------------------------------------------------

    async def remove(self, now: int, *, before: int, most_bytes: int) -> int:
        """Remove the oldest blocks: those with nothing at or after a time, and what is too much. Returns how many.

        The last block of a chain stays. What is removed, and a record that tells of it, is one change.
        """
        count = 0
        rows = await self._chains.rows()
        share = most_bytes // max(1, len(rows))
        for row in rows:
            # Removing is recorded, in blocks that come behind what was there at first: those are not for now.
            while removed := await self._remove_some(row.chain, row.head_block, now, before, share):
                count += removed
        return count

    async def _remove_some(self, chain: str, end: int, now: int, before: int, most_bytes: int) -> int:
        row = await self._chains.row(chain)
        excess = row.size - most_bytes
        gone: list[tuple[int, int]] = []
        last: Record | None = None
        for number, raw in await self._chains.raw_blocks(chain, row.base_block, _REMOVED_AT_ONCE):
            try:
                records = unpack(raw)
            except Unreadable:
                # What nobody can read is not removed either: verifying has to find it.
                break
            if number >= end or (records[-1].time >= before and excess <= 0):
                break
            gone.append((number, len(raw)))
            last, excess = records[-1], excess - len(raw)
        if last is None:
            return 0
        await self._state.change(lambda rows: _remove(rows, row, gone, last, now))
        return len(gone)


class _Walk:
    """One chain, read backwards."""

    def __init__(self, row: ChainRow, block: int, below: int) -> None:
        self.row = row
        self.block = block
        """The block to read next, downwards."""
        self.records: list[Record] = []
        self._below = below

    @property
    def position(self) -> tuple[int, int]:
        """Where to go on later."""
        return (self.block + 1, self._below) if self.records else (self.block, self._below)

    def take(self) -> Record:
        """Return the newest record that is left."""
        record = self.records.pop()
        self._below = record.sequence
        return record

    def end(self) -> None:
        """Have nothing more."""
        self.records, self.block = [], self.row.base_block

    async def fill(self, chains: Chains) -> int:
        """Read a block if none is left; returns how many were read. Leaves none when a block has nothing to show."""
        read = 0
        while not self.records and self.block > self.row.base_block:
            read += 1
            try:
                records = await chains.block(self.row.chain, self.block)
            except Unreadable:
                records = []
            self.records = [record for record in records if record.sequence < self._below]
            self.block -= 1
        return read


def _remove(rows: HookState, seen: ChainRow, gone: Sequence[tuple[int, int]], last: Record, now: int) -> None:
    row = read_row(rows, seen.chain)
    if row.base_block != seen.base_block:
        return
    for number, _ in gone:
        rows.delete(block_key(row.chain, number))
    act = Act(
        time=now,
        category=Category.AUDIT_TRAIL,
        outcome=Ending.OK,
        method=REMOVED,
        resources=(("sequence", str(last.sequence)), ("hash", last.hash)),
        count=last.sequence - row.base.sequence,
    )
    row = append(rows, row, [act])
    base = Head(last.sequence, last.hash)
    size = row.size - sum(size for _, size in gone)
    write_row(rows, msgspec.structs.replace(row, base=base, base_block=gone[-1][0], base_time=last.time, size=size))


def _removed(record: Record) -> Head:
    named = dict(record.resources)
    sequence = named.get("sequence", "")
    return Head(int(sequence) if sequence.isascii() and sequence.isdigit() else 0, named.get("hash", ""))
