"""How chains of audit records lie in the state: numbered blocks of records, and a row that says where they end.

A chain's blocks are numbered without holes, so that they can be read in both directions and a time found by halving.
Blocks and row are written in one change: the row is the anchor without which a chain cut off at its end would look
whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec
from agenthive_server.plugin.api import HookState, State

from .records import Act, Head, Record, Unreadable, decode, encode, head_after, link

BLOCK_RECORDS: Final = 256
BLOCK_BYTES: Final = 128 * 1024
_UNPACKED: Final = 8 * 1024 * 1024
_PLAIN: Final = b"1"
_ROWS: Final = "chain/"


class ChainRow(msgspec.Struct, frozen=True, kw_only=True):
    """A chain: up to where retention has removed it (`base`), and where it ends (`head`). Times in milliseconds."""

    chain: str
    base: Head = Head()
    base_block: int = 0
    base_time: int = 0
    head: Head = Head()
    head_block: int = 0
    head_time: int = 0
    # Bytes of the blocks that are kept.
    size: int = 0
    # Writers that have begun and not ended: none when the server is stopped, two while the plugin is opened anew.
    writers: int = 0


_rows: Final = msgspec.json.Decoder(ChainRow)


def pack(records: Sequence[Record]) -> bytes:
    """Return the bytes of a block."""
    return _PLAIN + zlib.compress(b"\n".join(map(encode, records)), 1)


def unpack(raw: bytes) -> list[Record]:
    """Return the records of a block; raises `Unreadable`."""
    if raw[:1] != _PLAIN:
        raise Unreadable("a block of an unknown kind")
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(raw[1:], _UNPACKED)
    except zlib.error as error:
        raise Unreadable(f"a damaged block: {error}") from None
    if not inflate.eof or inflate.unused_data:
        raise Unreadable("a block that is cut off, or followed by something")
    return [decode(line) for line in text.split(b"\n")]


def in_blocks(records: Sequence[Record]) -> list[bytes]:
    """Return records as blocks that are small enough to be stored."""
    blocks: list[bytes] = []
    for start in range(0, len(records), BLOCK_RECORDS):
        part = records[start : start + BLOCK_RECORDS]
        raw = pack(part)
        if len(raw) > BLOCK_BYTES and len(part) > 1:
            middle = len(part) // 2
            blocks += in_blocks(part[:middle]) + in_blocks(part[middle:])
        else:
            blocks.append(raw)
    return blocks


def block_key(chain: str, number: int) -> str:
    """Return the key of a block; keys sort as their numbers do."""
    return f"audit/{chain}/{number:010d}"


def read_row(rows: HookState, chain: str) -> ChainRow:
    """Return a chain's row inside a change; an empty chain where there is none. Raises `Unreadable`."""
    raw = rows.get(_ROWS + chain)
    return ChainRow(chain=chain) if raw is None else _row(raw)


def write_row(rows: HookState, row: ChainRow) -> None:
    """Write a chain's row inside a change."""
    rows.put(_ROWS + row.chain, msgspec.json.encode(row))


def append(rows: HookState, row: ChainRow, acts: Sequence[Act]) -> ChainRow:
    """Write acts behind a chain's head inside a change; returns the row, which is yet to be written."""
    records = link(row.chain, row.head, acts, since=row.head_time)
    number, size = row.head_block, row.size
    for raw in in_blocks(records):
        number += 1
        size += len(raw)
        rows.put(block_key(row.chain, number), raw)
    return msgspec.structs.replace(
        row,
        head=head_after(row.head, records),
        head_block=number,
        head_time=records[-1].time if records else row.head_time,
        size=size,
    )


class Chains:
    """Reads chains."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def rows(self) -> list[ChainRow]:
        """Return all chains by name. Raises `Unreadable` when a row is damaged."""
        found: list[ChainRow] = []
        after = ""
        while page := await self._state.scan(_ROWS, after=after):
            found += [_row(stored.value) for stored in page]
            after = page[-1].key
        return found

    async def row(self, chain: str) -> ChainRow:
        """Return a chain's row; an empty chain where there is none. Raises `Unreadable`."""
        stored = await self._state.get(_ROWS + chain)
        return ChainRow(chain=chain) if stored is None else _row(stored.value)

    async def block(self, chain: str, number: int) -> list[Record]:
        """Return the records of a block; nothing where there is none. Raises `Unreadable`."""
        stored = await self._state.get(block_key(chain, number))
        return [] if stored is None else unpack(stored.value)

    async def raw_blocks(self, chain: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return blocks in order with their numbers."""
        prefix = f"audit/{chain}/"
        page = await self._state.scan(prefix, after=block_key(chain, after), limit=limit)
        return [(int(stored.key.removeprefix(prefix)), stored.value) for stored in page]


def _row(raw: bytes) -> ChainRow:
    try:
        return _rows.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(f"a damaged row of a chain: {error}") from None
