"""The trail is read in both directions, by any filter; damage is found wherever it is; retention leaves proof."""

from __future__ import annotations

import random

import msgspec
import pytest
from agenthive_plugins.security.chains import ChainRow, append, block_key, pack, read_row, unpack, write_row
from agenthive_plugins.security.records import Act, Category, Ending, FaultKind, Head, Record
from agenthive_plugins.security.trail import EVERYTHING, REMOVED, Filter, Position, Reader
from agenthive_server.plugin.api import HookState
from agenthive_server.plugin.state import PluginState

METHODS = ("/S/Spawn", "/S/Cancel", "/T/Issue")


def acts(count: int, seed: int = 1, start: int = 0) -> list[Act]:
    draw = random.Random(seed)
    return [
        Act(
            time=start + n * 10,
            category=draw.choice(list(Category)),
            outcome=draw.choice(list(Ending)),
            principal=draw.choice(["ann", "bob", ""]),
            method=draw.choice(METHODS),
            peer=draw.choice(["10.0.0.1", "10.0.0.2"]),
        )
        for n in range(count)
    ]


async def write(state: PluginState, chain: str, made: list[Act], size: int = 7) -> ChainRow:
    def change(rows: HookState) -> ChainRow:
        row = read_row(rows, chain)
        for start in range(0, len(made), size):
            row = append(rows, row, made[start : start + size])
        write_row(rows, row)
        return row

    return await state.change(change)


async def everything(state: PluginState, wanted: Filter = EVERYTHING) -> list[Record]:
    return [record async for block in Reader(state).export(wanted) for record in block]


async def pages(state: PluginState, wanted: Filter, size: int) -> list[Record]:
    found: list[Record] = []
    after: Position | None = None
    for _ in range(1_000):
        page = await Reader(state).page(wanted, size, after)
        assert len(page.records) <= size
        found += page.records
        after = page.after
        if after is None:
            return found
    raise AssertionError("the pages have no end")


@pytest.mark.parametrize("size", [1, 3, 50, 1_000])
@pytest.mark.parametrize(
    "wanted",
    [
        EVERYTHING,
        Filter(principal="ann"),
        Filter(methods=frozenset({"Spawn", "/T/Issue"})),
        Filter(outcomes=frozenset({Ending.DENIED, Ending.FAILED}), peer="10.0.0.1"),
        Filter(categories=frozenset({Category.DATA_ACCESS})),
        Filter(start=405, end=900),
        Filter(end=0, start=1_500),
        Filter(end=5),
        Filter(principal="nobody"),
    ],
)
async def test_pages_hold_what_the_filter_wants_newest_first(state: PluginState, wanted: Filter, size: int) -> None:
    await write(state, "a", acts(150, seed=1))
    await write(state, "b", acts(60, seed=2, start=3))
    everywhere = await everything(state)
    assert len(everywhere) == 210
    expected = sorted((r for r in everywhere if wanted.wants(r)), key=lambda r: (r.time, r.chain), reverse=True)
    assert await pages(state, wanted, size) == expected
    assert await everything(state, wanted) == [record for record in everywhere if wanted.wants(record)]


async def test_pages_go_on_where_they_were_while_the_trail_grows(state: PluginState) -> None:
    await write(state, "a", acts(50))
    page = await Reader(state).page(EVERYTHING, 20)
    await write(state, "a", acts(50, start=10_000))
    rest: list[Record] = []
    after = page.after
    while after is not None:
        following = await Reader(state).page(EVERYTHING, 7, after)
        rest += following.records
        after = following.after
    assert [record.sequence for record in page.records + rest] == list(range(50, 0, -1))


async def test_a_page_costs_a_bounded_number_of_reads(state: PluginState) -> None:
    await write(state, "a", acts(600), size=1)
    page = await Reader(state).page(Filter(principal="nobody"), 50)
    assert page.records == []
    assert page.after is not None
    assert await pages(state, Filter(principal="nobody"), 50) == []


async def test_an_empty_trail_is_whole(state: PluginState) -> None:
    assert (await Reader(state).page(EVERYTHING, 10)).after is None
    found = await Reader(state).verify()
    assert (found.rows, found.faults) == ([], [])


async def test_verifying_counts_what_it_read_and_finds_heads_kept_elsewhere(state: PluginState) -> None:
    row = await write(state, "a", acts(100))
    later = await write(state, "a", acts(10, start=5_000))
    found = await Reader(state).verify({"a": [row.head, later.head]})
    assert [(row.chain, row.head.sequence, count) for row, count in found.rows] == [("a", 110, 110)]
    assert found.faults == []
    assert found.intact("a")
    found = await Reader(state).verify({"a": [Head(100, "f" * 64)], "gone": [row.head]})
    assert [(fault.kind, fault.chain) for fault in found.faults] == [
        (FaultKind.HEAD_MISSING, "a"),
        (FaultKind.HEAD_MISSING, "gone"),
    ]


async def test_a_flipped_bit_anywhere_in_a_stored_block_is_found(state: PluginState) -> None:
    await write(state, "a", acts(100))
    draw = random.Random(3)
    for _ in range(60):
        key = block_key("a", draw.randint(1, 15))
        stored = await state.get(key)
        assert stored is not None
        raw = bytearray(stored.value)
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        await state.put(key, bytes(raw))
        found = await Reader(state).verify()
        assert found.faults or unpack(bytes(raw)) == unpack(stored.value)
        await state.put(key, stored.value)
    assert (await Reader(state).verify()).faults == []


async def test_a_record_rewritten_with_a_right_hash_breaks_the_link(state: PluginState) -> None:
    await write(state, "a", acts(30))
    stored = await state.get(block_key("a", 2))
    assert stored is not None
    records = unpack(stored.value)
    forged = msgspec.structs.replace(records[3], principal="somebody else")
    await state.put(block_key("a", 2), pack([*records[:3], forged, *records[4:]]))
    assert [fault.kind for fault in (await Reader(state).verify()).faults] == [FaultKind.CHANGED]


@pytest.mark.parametrize(
    ("gone", "kind"),
    [(1, FaultKind.WRONG_BEGINNING), (3, FaultKind.BROKEN_LINK), (5, FaultKind.TRUNCATED)],
)
async def test_a_block_taken_out_is_found(state: PluginState, gone: int, kind: FaultKind) -> None:
    await write(state, "a", acts(35))
    await state.delete(block_key("a", gone))
    assert kind in [fault.kind for fault in (await Reader(state).verify()).faults]


async def test_blocks_exchanged_are_found_and_so_is_a_head_set_back(state: PluginState) -> None:
    row = await write(state, "a", acts(35))
    two, three = await state.get(block_key("a", 2)), await state.get(block_key("a", 3))
    assert two is not None
    assert three is not None
    await state.put_many({two.key: three.value, three.key: two.value})
    assert FaultKind.BROKEN_LINK in [fault.kind for fault in (await Reader(state).verify()).faults]
    await state.put_many({two.key: two.value, three.key: three.value})
    # Cut off together with its anchor: only a head that was kept elsewhere tells.
    last = unpack(three.value)[-1]
    short = msgspec.structs.replace(row, head=Head(last.sequence, last.hash), head_block=3)
    await state.change(lambda rows: write_row(rows, short))
    assert (await Reader(state).verify()).faults == []
    found = await Reader(state).verify({"a": [row.head]})
    assert [fault.kind for fault in found.faults] == [FaultKind.HEAD_MISSING]


async def test_a_damaged_row_is_a_finding(state: PluginState) -> None:
    await write(state, "a", acts(5))
    await state.put("chain/a", b"no row")
    assert [fault.kind for fault in (await Reader(state).verify()).faults] == [FaultKind.UNREADABLE]


async def test_retention_removes_what_is_old_and_leaves_proof_of_it(state: PluginState) -> None:
    row = await write(state, "a", acts(100))
    reader = Reader(state)
    removed = await reader.remove(2_000, before=405, most_bytes=10**9)
    assert removed == 5
    left = await everything(state)
    assert left[0].sequence == 36
    assert left[0].time < 405 <= left[6].time
    told = left[-1]
    assert (told.method, told.count, dict(told.resources)["sequence"]) == (REMOVED, 35, "35")
    found = await reader.verify({"a": [row.head]})
    assert found.faults == []
    assert found.rows[0][0].base.sequence == 35
    # Nothing more is old.
    assert await reader.remove(2_000, before=405, most_bytes=10**9) == 0
    assert await reader.remove(2_000, before=450, most_bytes=10**9) == 1
    assert (await reader.verify()).faults == []
    assert len(await pages(state, EVERYTHING, 9)) == len(await everything(state))


async def test_what_was_removed_cannot_be_claimed_to_be_more(state: PluginState) -> None:
    await write(state, "a", acts(100))
    reader = Reader(state)
    await reader.remove(2_000, before=405, most_bytes=10**9)
    row = (await reader.verify()).rows[0][0]
    block = await state.get(block_key("a", row.base_block + 1))
    assert block is not None
    last = unpack(block.value)[-1]
    forged = msgspec.structs.replace(row, base=Head(last.sequence, last.hash), base_block=row.base_block + 1)
    await state.change(lambda rows: write_row(rows, forged))
    await state.delete(block.key)
    assert [fault.kind for fault in (await reader.verify()).faults] == [FaultKind.WRONG_BEGINNING]


async def test_retention_keeps_within_the_size_and_always_keeps_the_last_block(state: PluginState) -> None:
    row = await write(state, "a", acts(100))
    reader = Reader(state)
    await reader.remove(2_000, before=0, most_bytes=row.size // 2)
    half = (await reader.verify()).rows[0][0]
    assert row.size // 3 < half.size <= row.size // 2 + 1_000
    await reader.remove(3_000, before=10**9, most_bytes=0)
    found = await reader.verify()
    assert found.faults == []
    assert found.rows[0][1] >= 1


async def test_a_block_nobody_can_read_is_not_removed(state: PluginState) -> None:
    await write(state, "a", acts(50))
    await state.put(block_key("a", 3), b"1 damaged")
    reader = Reader(state)
    assert await reader.remove(2_000, before=10**9, most_bytes=10**9) == 2
    assert FaultKind.UNREADABLE in [fault.kind for fault in (await reader.verify()).faults]
