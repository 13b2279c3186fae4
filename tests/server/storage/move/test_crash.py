"""A move that is killed at any moment, or whose database is, is gone on with; never can both hives be served."""

from __future__ import annotations

import asyncio
import random
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.ports import BlobInfo, StoreUnusable
from agenthive_server.storage.move.moving import Move
from agenthive_server.storage.move.target import Target
from agenthive_server.storage.postgres.database import Database
from agenthive_server.storage.postgres.dial import Dialer
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.store_model import changing, task

Read = Callable[..., Awaitable[dict[str, Any]]]

# Moves a hive, and kills itself before or after the call of that number of what is named: all that is kept.
_VICTIM = """
import asyncio, os, signal, sys
from contextlib import suppress
from pathlib import Path
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.storage.move.moving import Move, StillServed
from agenthive_server.storage.move.source import Source
from agenthive_server.storage.move.target import Target

path, url, name, when, number = sys.argv[1:]
calls = 0

def point(at):
    global calls
    calls += at == "before"
    if at == when and calls == int(number):
        os.kill(os.getpid(), signal.SIGKILL)

def set_mark(*arguments, plain=Source.set_mark):
    point("before")
    plain(*arguments)
    point("after")

async def awaited(*arguments, plain=getattr(Target, name, None)):
    point("before")
    result = await plain(*arguments)
    point("after")
    return result

if name == "set_mark":
    Source.set_mark = set_mark
else:
    setattr(Target, name, awaited)
with suppress(StillServed):
    asyncio.run(Move(Path(path), url, SystemClock(), lambda _: None).run())
"""


@pytest.fixture
async def long(path: Path, clock: ManualClock, upload: Callable[..., Awaitable[BlobInfo]]) -> Path:
    """A hive of which several batches are made."""
    store = SqliteStore(path, clock=clock)
    await store.open()
    for number in range(10):
        group = [changing(task(f"{number}-{n}", title="x" * 2_000), events=2) for n in range(500)]
        await store.commit(group)
    await upload(store, random.Random(1).randbytes(21 * 2**20))
    await store.close()
    return path


Point = tuple[str, str, int, float | None]
"""Where a move is killed: what is called, before or after, which call of it; or after so many seconds."""


def kill_at(path: Path, url: str, point: Point) -> bool:
    """Run a move until it is killed; False when it ended before."""
    name, when, number, seconds = point
    command = [sys.executable, "-c", _VICTIM, str(path), url, name, when, str(number)]
    with subprocess.Popen(command) as victim:
        try:
            victim.wait(seconds)
        except subprocess.TimeoutExpired:
            victim.kill()
    assert victim.returncode in (0, -9)
    return victim.returncode != 0


async def can_be_served(path: Path, url: str) -> tuple[bool, bool]:
    """Return whether the file can be served, and the database."""
    file = SqliteStore(path, clock=ManualClock())
    database = Database(url, Dialer(url, SystemClock()).connect, SystemClock())
    here = await opens(file.open)
    if here:
        await file.close()
    return here, await opens(database.prepare)


async def opens(how: Callable[[], Awaitable[object]]) -> bool:
    try:
        await how()
    except StoreUnusable:
        return False
    return True


def beginnings(chance: random.Random, rounds: int) -> list[Point]:
    """Return some points of the long part of a move, at which a server may run."""
    made: list[Point] = [("begin", "before", 1, None), ("begin", "after", 1, None)]
    for _ in range(rounds):
        seconds = chance.choice((None, None, chance.uniform(0.5, 3.0)))
        made.append(("write", chance.choice(("before", "after")), chance.randint(1, 4), seconds))
    return made


@pytest.mark.crash
@pytest.mark.timeout(0)
async def test_a_move_that_is_killed_anywhere_is_gone_on_with(
    long: Path,
    url: str,
    clock: ManualClock,
    told_by_file: Read,
    told_by_postgres: Read,
    soak_seed: int,
    soak_rounds: int | None,
) -> None:
    server = SqliteStore(long, clock=clock)
    await server.open()
    for number, point in enumerate(beginnings(random.Random(soak_seed), soak_rounds or 4)):
        await asyncio.to_thread(kill_at, long, url, point)
        assert await server.commit([changing(task(f"late-{number}"), events=1)]) == [COMMITTED]
        assert number == 0 or not (await can_be_served(long, url))[1], point
    await server.close()
    before = await told_by_file()
    # The end, step by step.
    assert await asyncio.to_thread(kill_at, long, url, ("set_mark", "before", 1, None))
    assert await can_be_served(long, url) == (True, False)
    assert await asyncio.to_thread(kill_at, long, url, ("set_mark", "after", 1, None))
    assert await can_be_served(long, url) == (False, False)
    assert await asyncio.to_thread(kill_at, long, url, ("finish", "before", 1, None))
    assert await can_be_served(long, url) == (False, False)
    assert await asyncio.to_thread(kill_at, long, url, ("finish", "after", 1, None))
    assert await can_be_served(long, url) == (False, True)
    assert (await Move(long, url, SystemClock(), lambda _: None).run()).before
    assert await told_by_postgres() == before


# The database


@pytest.fixture
def own(own_postgres: PostgresServer, long: Path, said: list[str]) -> Move:
    """A move to a database that may be harmed."""
    return Move(long, own_postgres.url(), SystemClock(), said.append)


@pytest.mark.crash
@pytest.mark.timeout(0)
async def test_a_database_that_is_killed_in_the_middle_is_waited_for(
    own: Move,
    own_postgres: PostgresServer,
    said: list[str],
    told_by_file: Read,
    told_by_postgres: Read,
    soak_seed: int,
    soak_rounds: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = await told_by_file()
    chance = random.Random(soak_seed)
    harms = soak_rounds or 4
    starting: list[asyncio.Task[None]] = []

    async def harmed(*arguments: Any) -> None:
        nonlocal harms
        if harms and chance.random() < 0.5:
            harms -= 1
            await asyncio.to_thread(own_postgres.kill if harms % 2 else own_postgres.stop)
            starting.append(asyncio.create_task(asyncio.to_thread(own_postgres.start)))
        await plain(*arguments)

    plain = Target.write
    monkeypatch.setattr(Target, "write", harmed)
    await own.run()
    await asyncio.gather(*starting)
    assert any("the database was lost" in line for line in said)
    assert harms < (soak_rounds or 4)
    assert await told_by_postgres(own_postgres.url()) == before


async def test_an_end_whose_answer_was_lost_is_an_end(
    own: Move, own_postgres: PostgresServer, told_by_file: Read, told_by_postgres: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await told_by_file()

    async def unanswered(*arguments: Any) -> None:
        await plain(*arguments)
        raise ConnectionResetError

    plain = Target.finish
    monkeypatch.setattr(Target, "finish", unanswered)
    assert (await own.run()).before
    assert await told_by_postgres(own_postgres.url()) == before


async def test_a_database_that_stays_away_is_told_of_and_later_gone_on_with(
    own: Move, own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive_server.storage.move.moving.PATIENCE", 1.0)

    async def killed(*arguments: Any) -> None:
        await plain(*arguments)
        await asyncio.to_thread(own_postgres.kill)

    plain = Target.write
    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", killed)
        with pytest.raises(StoreUnavailable, match=r"postgresql://127.* was lost: ") as caught:
            await own.run()
    assert "hive:" not in caught.value.message
    await asyncio.to_thread(own_postgres.start)
    assert not (await own.run()).before


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let programs that are started in here make no file longer than that: for them, the disk is full then."""
    plain = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, plain[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, plain)


async def test_a_full_disk_is_told_of_and_the_move_goes_on_when_there_is_room(
    own: Move, own_postgres: PostgresServer, told_by_file: Read, told_by_postgres: Read
) -> None:
    before = await told_by_file()
    await asyncio.to_thread(own_postgres.stop)
    with files_of_at_most(17 * 2**20):
        await asyncio.to_thread(own_postgres.start)
    with pytest.raises((StoreUnavailable, StoreUnusable), match=r"could not extend file .* File too large"):
        await own.run()
    await asyncio.to_thread(own_postgres.stop)
    await asyncio.to_thread(own_postgres.start)
    assert not (await own.run()).before
    assert await told_by_postgres(own_postgres.url()) == before
