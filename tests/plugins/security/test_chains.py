"""Blocks come back as they were written, fit into the state, and damage of any kind is noticed."""

from __future__ import annotations

from contextlib import suppress

import pytest
from agenthive_plugins.security.chains import (
    BLOCK_BYTES,
    ChainRow,
    Chains,
    append,
    in_blocks,
    pack,
    read_row,
    unpack,
    write_row,
)
from agenthive_plugins.security.records import Act, Category, Ending, Head, Record, Unreadable, link
from agenthive_server.plugin.api import HookState
from agenthive_server.plugin.state import PluginState
from hypothesis import given
from hypothesis import strategies as st


def acts(count: int, text: str = "") -> list[Act]:
    return [Act(time=n, category=Category.DATA_ACCESS, outcome=Ending.OK, text=text) for n in range(count)]


def records(count: int) -> list[Record]:
    return link("c", Head(), acts(count))


@given(st.integers(0, 700))
def test_records_come_back_in_order_from_their_blocks(count: int) -> None:
    made = records(count)
    assert [record for raw in in_blocks(made) for record in unpack(raw)] == made


def test_blocks_stay_small_whatever_is_in_them() -> None:
    # Hexadecimal digits of hashes do not compress well.
    noise = "".join(record.hash for record in records(16))
    made = link("c", Head(), [act for n in range(300) for act in acts(1, noise + str(n))])
    blocks = in_blocks(made)
    assert all(len(raw) <= BLOCK_BYTES for raw in blocks)
    assert [record for raw in blocks for record in unpack(raw)] == made


@given(st.data())
def test_damage_of_a_block_is_noticed(data: st.DataObject) -> None:
    made = records(20)
    raw = bytearray(pack(made))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(Unreadable):
        assert unpack(bytes(raw)) == made, "other records than were written"
    for damaged in (bytes(pack(made)[:-3]), pack(made) + b"x", b"", b"2" + pack(made)[1:]):
        with pytest.raises(Unreadable):
            unpack(damaged)


async def test_a_chain_is_written_and_read_by_numbers(state: PluginState) -> None:
    chains = Chains(state)
    row = await chains.row("c")
    assert row == ChainRow(chain="c")

    def add(rows: HookState) -> ChainRow:
        made = append(rows, read_row(rows, "c"), acts(300))
        write_row(rows, made)
        return made

    for _ in range(3):
        row = await state.change(add)
    assert await chains.rows() == [row]
    assert (row.head.sequence, row.head_block) == (900, 6)
    blocks = await chains.raw_blocks("c", 0, 100)
    assert [number for number, _ in blocks] == [1, 2, 3, 4, 5, 6]
    assert sum(len(raw) for _, raw in blocks) == row.size
    assert [record.sequence for _, raw in blocks for record in unpack(raw)] == list(range(1, 901))
    assert (await chains.block("c", 2))[-1].sequence == 300
    assert await chains.block("c", 7) == []
    assert [number for number, _ in await chains.raw_blocks("c", 4, 1)] == [5]


async def test_a_damaged_row_is_noticed(state: PluginState) -> None:
    await state.put("chain/c", b"{")
    with pytest.raises(Unreadable):
        await Chains(state).row("c")
    with pytest.raises(Unreadable):
        await Chains(state).rows()
