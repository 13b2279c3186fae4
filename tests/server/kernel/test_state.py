"""What plugins keep: compare-and-set, order, bounds, and that nothing of it stays in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import Conflict, StoreUnavailable
from agenthive_server.kernel.records import Kind
from agenthive_server.kernel.state import MAX_AT_ONCE, MAX_KEY, MAX_VALUE, StateRows, StateVerbs
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.hive import Hive, open_hive
from agenthive_server.testing.store_model import changing


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


@pytest.fixture
def state(hive: Hive) -> StateVerbs:
    return hive.kernel.state


async def test_a_value_is_found_by_its_plugin_and_key(state: StateVerbs) -> None:
    assert await state.put("a", "k", b"one") == 1
    assert await state.put("a", "k", b"two") == 2
    found = await state.get("a", "k")
    assert found is not None
    assert (found.value, found.revision) == (b"two", 2)
    assert await state.get("b", "k") is None
    assert await state.get("a", "K") is None


async def test_a_revision_given_is_the_present_one_or_nothing_changes(state: StateVerbs) -> None:
    assert await state.put("a", "k", b"one", revision=0) == 1
    for wrong in (0, 2, 7):
        with pytest.raises(Conflict) as caught:
            await state.put("a", "k", b"lost", revision=wrong)
        assert caught.value.reason == "REVISION_MISMATCH"
        assert caught.value.metadata["revision"] == "1"
    with pytest.raises(Conflict):
        await state.put("a", "new", b"lost", revision=3)
    assert await state.put("a", "k", b"two", revision=1) == 2
    with pytest.raises(Conflict):
        await state.delete("a", "k", revision=1)
    with pytest.raises(Conflict):
        await state.delete("a", "k", revision=0)
    assert await state.delete("a", "k", revision=2)
    assert not await state.delete("a", "k")
    assert await state.get("a", "k") is None


async def test_of_many_who_insert_one_succeeds(state: StateVerbs) -> None:
    ends = await asyncio.gather(
        *(state.put("a", "lock", bytes([n]), revision=0) for n in range(20)), return_exceptions=True
    )
    assert [end for end in ends if end == 1] == [1]
    assert all(isinstance(end, Conflict) for end in ends if end != 1)


async def test_of_many_who_count_none_is_lost(hive: Hive, state: StateVerbs) -> None:
    def count(rows: StateRows) -> int:
        value = int.from_bytes(rows.read("a", "n") or b"") + 1
        rows.write("a", "n", value.to_bytes(8))
        return value

    assert sorted(await asyncio.gather(*(state.change(count) for _ in range(100)))) == list(range(1, 101))
    # Two plugin hosts on one store: what the other wrote meanwhile is seen.
    found = await state.get("a", "n")
    assert found is not None
    await hive.store.commit([changing(found.evolve(revision=found.revision + 1, value=(1_000).to_bytes(8)))])
    assert await state.change(count) == 1_001


async def test_what_one_change_writes_it_reads_and_may_take_back(state: StateVerbs) -> None:
    await state.put("a", "old", b"1")

    def change(rows: StateRows) -> list[bytes | None]:
        rows.write("a", "new", b"x")
        rows.write("a", "new", b"y")
        rows.write("b", "gone", b"z")
        seen = [rows.read("a", "new"), rows.read("b", "gone")]
        rows.write("b", "gone", None)
        rows.write("a", "old", None)
        seen += [rows.read("b", "gone"), rows.read("a", "old")]
        rows.write("a", "old", b"2")
        rows.write("a", "old", b"3")
        rows.write("a", "never", None)
        return [*seen, rows.read("a", "old")]

    assert await state.change(change) == [b"y", b"z", None, None, b"3"]
    assert [(found.id, found.value, found.revision) for found in await state.scan("a")] == [
        ("new", b"y", 1),
        ("old", b"3", 2),
    ]
    assert await state.scan("b") == []

    def remove(rows: StateRows) -> None:
        rows.write("a", "old", b"4")
        rows.write("a", "old", None)

    await state.change(remove)
    assert await state.get("a", "old") is None


async def test_writing_without_having_read_finds_out_by_the_commit(state: StateVerbs) -> None:
    await state.put("a", "k", b"there")
    runs = 0

    def change(rows: StateRows) -> None:
        nonlocal runs
        runs += 1
        rows.write("a", "k", b"again")

    await state.change(change)
    found = await state.get("a", "k")
    assert found is not None
    assert (found.value, found.revision, runs) == (b"again", 2, 2)


async def test_many_go_together_or_not_at_all(state: StateVerbs) -> None:
    many = {f"k{n:04}": bytes([n % 256]) for n in range(MAX_AT_ONCE)}
    await state.put_many("a", many)
    assert {found.id: found.value for found in await state.scan("a", limit=5_000)} == many
    await state.put_many("a", dict.fromkeys(many, b"x"))
    with pytest.raises(Conflict):
        await state.put_many("a", {"fresh": b"", "k0000": b""}, new=True)
    assert await state.get("a", "fresh") is None
    await state.put_many("a", {"fresh": b"1", "fresher": b"2"}, new=True)
    assert await state.delete_many("a", ["fresh", "fresh", "nothing", "k0000"]) == 2
    assert await state.delete_many("a", []) == 0
    assert len(await state.scan("a", limit=5_000)) == MAX_AT_ONCE


async def test_a_scan_goes_on_where_the_last_ended(state: StateVerbs) -> None:
    await state.put_many("a", {f"{letter}/{n}": b"" for letter in "xyz" for n in range(10)})
    pages: list[str] = []
    while page := await state.scan("a", "y/", after=pages[-1] if pages else "", limit=3):
        pages += [found.id for found in page]
    assert pages == [f"y/{n}" for n in range(10)]


@pytest.mark.parametrize("key", ["", "k" * (MAX_KEY + 1), "a\x00b", "\udc80", "\U0010ffff"])
async def test_a_key_that_cannot_be_is_refused(state: StateVerbs, key: str) -> None:
    for attempt in (state.get("a", key), state.put("a", key, b""), state.delete("a", key)):
        with pytest.raises(ValueError, match="key"):
            await attempt
    with pytest.raises(ValueError, match="key"):
        await state.put_many("a", {key: b""})


async def test_what_is_too_much_is_refused(state: StateVerbs) -> None:
    await state.put("a", "é" * MAX_KEY, bytes(MAX_VALUE))
    with pytest.raises(ValueError, match="value"):
        await state.put("a", "k", bytes(MAX_VALUE + 1))
    with pytest.raises(ValueError, match="value"):
        await state.put_many("a", {"k": bytes(MAX_VALUE + 1)})
    with pytest.raises(ValueError, match="at most"):
        await state.put_many("a", {str(n): b"" for n in range(MAX_AT_ONCE + 1)})
    with pytest.raises(ValueError, match="bytes"):
        await state.put_many("a", {str(n): bytes(MAX_VALUE) for n in range(33)})
    assert len(await state.scan("a")) == 1


async def test_nothing_of_it_stays_in_memory(hive: Hive, state: StateVerbs) -> None:
    for n in range(50):
        await state.put("a", f"k{n}", b"x")
    await hive.settle()
    memory = hive.kernel.memory
    assert memory.refs(Kind.STATE, "a") == []
    assert all(memory.latest((Kind.STATE, ("a", f"k{n}"))) is None for n in range(50))


async def test_a_store_in_trouble_changes_nothing() -> None:
    made: list[FaultyStore] = []

    def store(clock: ManualClock) -> FaultyStore:
        made.append(FaultyStore(MemoryStore(clock)))
        return made[0]

    async def broken(group: object) -> None:
        raise StoreUnavailable("no disk")

    async with open_hive(store=store) as hive:
        made[0].before = broken
        with pytest.raises(StoreUnavailable):
            await hive.kernel.state.put("a", "k", b"lost")
        made[0].before = no_fault
        assert await hive.kernel.state.get("a", "k") is None
        assert await hive.kernel.state.put("a", "k", b"kept") == 1
