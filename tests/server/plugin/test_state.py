"""A plugin's own state: it sees its own values only, and changes several of them as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.errors import Conflict
from agenthive_server.kernel.proposals import HookState
from agenthive_server.plugin.context import Stored
from agenthive_server.plugin.state import PluginState
from agenthive_server.testing.hive import Hive, open_hive


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


async def test_two_plugins_with_the_same_keys_do_not_meet(hive: Hive) -> None:
    one, two = PluginState(hive.kernel.state, "one"), PluginState(hive.kernel.state, "two")
    assert await one.put("k", b"1") == 1
    await two.put_many({"k": b"2", "l": b"3"})
    assert await one.get("k") == Stored("k", b"1", 1)
    assert await one.get("l") is None
    assert await two.scan() == [Stored("k", b"2", 1), Stored("l", b"3", 1)]
    assert await two.delete("k")
    assert await two.delete_many(["k", "l"]) == 1
    assert await one.scan() == [Stored("k", b"1", 1)]
    with pytest.raises(Conflict):
        await one.put("k", b"lost", revision=0)
    with pytest.raises(Conflict):
        await one.put_many({"k": b"lost"}, new=True)


async def test_money_moved_between_two_values_is_never_made_or_lost(hive: Hive) -> None:
    state = PluginState(hive.kernel.state, "bank")
    await state.put_many({"a": b"50", "b": b"50"})

    async def move(source: str, target: str, amount: int) -> bool:
        def change(rows: HookState) -> bool:
            have = int(rows.get(source) or 0)
            if have < amount:
                return False
            rows.put(source, str(have - amount).encode())
            rows.put(target, str(int(rows.get(target) or 0) + amount).encode())
            return True

        return await state.change(change)

    moved = await asyncio.gather(*(move("ab"[n % 2], "ba"[n % 2], 40 + n) for n in range(60)))
    assert any(moved)
    assert not all(moved)
    assert sum(int(found.value) for found in await state.scan()) == 100


async def test_a_change_that_fails_leaves_nothing(hive: Hive) -> None:
    state = PluginState(hive.kernel.state, "p")

    def change(rows: HookState) -> None:
        rows.put("k", b"x")
        raise LookupError

    with pytest.raises(LookupError):
        await state.change(change)
    assert await state.scan() == []
