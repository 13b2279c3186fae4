"""A restored backup is a new log: what was in it is there, and nobody the lost hive knew can act for it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from agenthive.errors import CursorCompacted
from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import AgentSpec, AgentState
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import BadRequest, DataLoss, NotFound, Refused
from agenthive_server.kernel.records import CursorRecord, Kind, Payload
from agenthive_server.kernel.restored import EPOCHS
from agenthive_server.kernel.session_items import Accept, HandBack, Hello, HostedAgent, LeaseRef, Result, Start
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import TaskSpec, TaskState
from agenthive_server.storage.backup.create import Making, create_backup
from agenthive_server.storage.backup.manifest import DATABASE
from agenthive_server.storage.backup.restore import RECORD, WORK, Restored, restore_backup
from agenthive_server.storage.backup.work import GivenUp, Token
from agenthive_server.storage.schema import REVISION
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.harness import open_served
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedWorker, open_hive
from agenthive_server.testing.store_model import changing
from agenthive_server.testing.waiting import eventually

BackUp = Callable[..., Path]


@asynccontextmanager
async def hive_at(path: Path, clock: ManualClock) -> AsyncIterator[Hive]:
    async with open_hive(store=lambda clock: SqliteStore(path, clock=clock), clock=clock) as hive:
        yield hive


@pytest.fixture
def restore(place: Path, tmp_path: Path, clock: ManualClock) -> Callable[..., Restored]:
    """Restores the backups into a new directory."""

    def run(source: Path | None = None, target: str = "new", until: int | None = None) -> Restored:
        clock.move(60)
        return restore_backup(source or place, tmp_path / target, Token(), clock, until=until)

    return run


async def held(worker: PlayedWorker, task_id: str, after: int = 0) -> int:
    """Return the lease epoch, later than one, under which a worker works on a task."""

    def given() -> int:
        return max((each.task.lease_epoch for each in worker.assignments() if each.task.id == task_id), default=0)

    await eventually(lambda: given() > after)
    await worker.say(Accept(task_id, given()))
    return given()


async def started(session: PlayedWorker, *names: str) -> dict[str, int]:
    """Return the start epochs a runner is told, once it is told of all of these agents."""

    def told() -> dict[str, int]:
        return {each.agent.id: each.agent.start_epoch for each in session.link.told if isinstance(each, Start)}

    await eventually(lambda: told().keys() == set(names))
    return told()


# What is there again


async def test_everything_up_to_the_last_event_is_there_again(
    path: Path, clock: ManualClock, back_up: BackUp, restore: Callable[..., Restored], tmp_path: Path
) -> None:
    async with hive_at(path, clock) as hive:
        worker = await hive.worker("a")
        await hive.delegate("done")
        await worker.finish((await eventually(worker.assignments))[0], b"the result")
        await hive.delegate("waits", required_capabilities=("none",))
        before = await hive.store.read_events(0, 1_000)
        log_id = (await hive.store.bounds()).log_id
        back_up()
    restored = restore()
    assert (restored.head, restored.manifest.log_id) == (before[-1].sequence, log_id)
    async with hive_at(tmp_path / "new" / DATABASE, clock) as hive:
        assert (await hive.task("done")).result.data == b"the result"  # type: ignore[union-attr]  # it has one
        assert (await hive.task("waits")).state is TaskState.QUEUED
        bounds = await hive.store.bounds()
        assert bounds.log_id == restored.renewal.log_id != log_id
        events = await hive.store.read_events(0, 1_000)
        assert events[: len(before)] == before
        assert [event.sequence for event in events] == list(range(1, bounds.head + 1))
        assert events[len(before)].time >= clock.now()


async def test_a_repeated_call_is_known_and_one_that_was_lost_is_done_now(
    path: Path, clock: ManualClock, back_up: BackUp, restore: Callable[..., Restored], tmp_path: Path
) -> None:
    def caller(request_id: str) -> Caller:
        return Caller(namespace=NAMESPACE, method="DelegateTask", request_id=request_id, digest="d")

    new = NewTask(spec=TaskSpec(type="work"))
    async with hive_at(path, clock) as hive:
        (kept,) = await hive.kernel.tasks.delegate(caller("1"), [new])
        back_up()
        await hive.kernel.tasks.delegate(caller("2"), [new])
    restore()
    async with hive_at(tmp_path / "new" / DATABASE, clock) as hive:
        assert [task.id for task in await hive.kernel.tasks.delegate(caller("1"), [new])] == [kept.id]
        (made,) = await hive.kernel.tasks.delegate(caller("2"), [new])
        assert made.id != kept.id


# Leases, sessions, agents


async def test_a_worker_that_survived_is_stale_whatever_it_holds_from_the_lost_hive(
    path: Path, clock: ManualClock, back_up: BackUp, restore: Callable[..., Restored], tmp_path: Path
) -> None:
    async with hive_at(path, clock) as hive:
        survivor = await hive.worker("a", slots=9)
        await hive.delegate("t")
        old = {"t": [await held(survivor, "t")]}
        back_up()
        # What came after is lost: the task went on to other attempts, and another one was delegated and held.
        for _ in range(3):
            await survivor.say(HandBack("t", old["t"][-1]))
            old["t"].append(await held(survivor, "t", old["t"][-1]))
        await hive.delegate("late")
        old["late"] = [await held(survivor, "late")]
    restore()
    async with hive_at(tmp_path / "new" / DATABASE, clock) as hive:
        with pytest.raises(NotFound, match="no such session") as over:
            await hive.worker(hello=Hello(session_id=survivor.session_id, agents=()))
        assert over.value.reason == "SESSION_NOT_FOUND"
        held_before = tuple(LeaseRef(name, epoch) for name in old for epoch in old[name])
        agents = (HostedAgent(agent_id="a", spec=AgentSpec(slots=9)),)
        again = await hive.worker(hello=Hello(agents=agents, leases=held_before))
        assert again.welcome.valid_leases == ()
        await hive.delegate("late")
        # It is given both anew. What it did under the old leases does not count, though it is the same agent.
        new = {name: await held(again, name) for name in old}
        for name, epochs in old.items():
            assert new[name] > max(epochs)
            for epoch in epochs:
                (refused,) = await again.say(Result(name, epoch, result=Payload(data=b"stale")))
                assert refused.reason == "STALE_ATTEMPT"
            assert (await hive.task(name)).state is TaskState.RUNNING
        for assign in again.assignments():
            assert await again.finish(assign) == []
        task = await hive.task("t")
        assert (task.state, task.counted_attempts, task.attempt) == (TaskState.SUCCEEDED, 1, 2)
        assert [attempt.counted for attempt in task.attempts] == [False, True]


async def test_two_restores_of_one_backup_do_not_know_each_others_leases(
    path: Path, clock: ManualClock, back_up: BackUp, restore: Callable[..., Restored], tmp_path: Path
) -> None:
    async with hive_at(path, clock) as hive:
        await hive.delegate("t")
        back_up()
    epochs = []
    for name in ("first", "second"):
        restore(target=name)
        async with hive_at(tmp_path / name / DATABASE, clock) as hive:
            worker = await hive.worker("a")
            epochs.append(await held(worker, "t"))
            if len(epochs) == 2:
                (refused,) = await worker.say(Result("t", epochs[0], canceled="late"))
                assert refused.reason == "STALE_ATTEMPT"
    assert epochs[0] < epochs[1]


async def test_a_runner_that_survived_starts_agents_anew(
    path: Path, clock: ManualClock, back_up: BackUp, restore: Callable[..., Restored], tmp_path: Path
) -> None:
    runner = Hello(runner=RunnerCapacity(drivers=("process",)))
    spec = AgentSpec(driver="process")
    async with hive_at(path, clock) as hive:
        await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id="kept", spec=spec)])
        session = await hive.worker(hello=runner)
        await hive.advance(1)
        back_up()
        await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id="lost", spec=spec)])
        await hive.advance(1)
        seen = await started(session, "kept", "lost")
    restored = restore()
    assert restored.renewal.sessions_ended == 1
    async with hive_at(tmp_path / "new" / DATABASE, clock) as hive:
        session = await hive.worker(hello=runner)
        await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id="lost", spec=spec)])
        await hive.advance(1)
        again = await started(session, "kept", "lost")
        assert all(again[name] > seen[name] for name in seen)
        assert (await hive.kernel.agents.get(NAMESPACE, "kept")).state is AgentState.STARTING


async def test_a_hive_restored_twice_goes_on_beyond_both(
    path: Path,
    clock: ManualClock,
    back_up: BackUp,
    restore: Callable[..., Restored],
    tmp_path: Path,
    place: Path,
    making: Making,
) -> None:
    async with hive_at(path, clock) as hive:
        await hive.delegate("t")
        back_up()
    restore(target="first")
    create_backup(tmp_path / "first" / DATABASE, place / "two", making, Token())
    clock.move(-1_000)
    restore(place / "two", target="second")
    async with hive_at(tmp_path / "second" / DATABASE, clock) as hive:
        (floor,) = await hive.store.get(Kind.CURSOR, [EPOCHS])
        assert isinstance(floor, CursorRecord)
        assert floor.revision == 2
        assert await held(await hive.worker("a"), "t") == floor.sequence + 1


async def test_a_cursor_of_the_lost_hive_is_too_old(tmp_path: Path) -> None:
    making = Making(clock=SystemClock(), software="", minimum_free=0)
    async with open_served(tmp_path / "old") as (_, client):
        await client.delegate("work", task_id="t")
        async with client.events() as events:
            await anext(aiter(events.batches()))
            cursor = events.cursor
        create_backup(tmp_path / "old" / DATABASE, tmp_path / "backup", making, Token())
    restore_backup(tmp_path / "backup", tmp_path / "new", Token(), making.clock)
    async with open_served(tmp_path / "new") as (app, client):
        async with client.events(after=cursor) as events:
            with pytest.raises(CursorCompacted) as refused:
                async for _ in events.batches():
                    pass
        oldest = refused.value.metadata["oldest_cursor"]
        assert app.log.log_id in oldest
        async with client.events(after=oldest, follow=False) as events:
            assert [event.sequence async for event in events] == list(range(1, app.log.head + 1))


# Where to


async def test_it_is_made_in_a_directory_that_is_new_or_empty(
    filled: SqliteStore, back_up: BackUp, restore: Callable[..., Restored], tmp_path: Path
) -> None:
    back_up()
    in_use = tmp_path / "used"
    in_use.mkdir()
    (in_use / "hive.db").write_text("mine")
    with pytest.raises(Refused, match=r"is not empty \(hive.db\)"):
        restore(target="used")
    assert (in_use / "hive.db").read_text() == "mine"
    with pytest.raises(Refused, match="is not a directory"):
        restore(target="used/hive.db")
    (tmp_path / "empty" / "lost+found").mkdir(parents=True)
    restored = restore(target="empty")
    assert {each.name for each in (tmp_path / "empty").iterdir()} == {DATABASE, RECORD, "lost+found"}
    told = json.loads((tmp_path / "empty" / RECORD).read_text())
    assert (told["log_id_before"], told["log_id"]) == (filled.position[0], restored.renewal.log_id)
    assert told["last_sequence_before"] == len(Kind)
    assert (tmp_path / "empty" / DATABASE).stat().st_mode & 0o777 == 0o600


async def test_one_that_was_given_up_or_killed_leaves_nothing_a_server_would_start_with(
    filled: SqliteStore, back_up: BackUp, restore: Callable[..., Restored], tmp_path: Path, clock: ManualClock
) -> None:
    backup, token = back_up(), Token()
    token.give_up()
    with pytest.raises(GivenUp):
        restore_backup(backup, tmp_path / "new", token, clock)
    assert not (tmp_path / "new").exists()
    # As a kill leaves it.
    (tmp_path / "new" / f"{WORK}1").mkdir(parents=True)
    (tmp_path / "new" / f"{WORK}1" / DATABASE).write_text("half")
    restore()
    assert {each.name for each in (tmp_path / "new").glob("*")} == {DATABASE, RECORD}


# From what


async def test_the_newest_backup_of_a_folder_is_taken_or_the_last_before_an_event(
    store: SqliteStore,
    place: Path,
    path: Path,
    clock: ManualClock,
    making: Making,
    restore: Callable[..., Restored],
) -> None:
    async def grow() -> None:
        await store.commit([changing(events=10)])
        create_backup(path, place / f"{(await store.bounds()).head}", making, Token())
        clock.move(1)

    for _ in range(3):
        await grow()
    assert restore(target="newest").head == 30
    assert restore(target="exact", until=20).head == 20
    with pytest.raises(BadRequest, match="event 25 cannot be reached: backup and journal lead to event 20"):
        restore(target="between", until=25)
    with pytest.raises(BadRequest, match=r"no backup in .* is as old as event 9: the oldest one of this log"):
        restore(target="early", until=9)
    with pytest.raises(BadRequest, match="take an older one"):
        restore(place / "30", target="early", until=20)
    with pytest.raises(BadRequest, match="cannot be reached"):
        restore(place / "30", target="late", until=31)


async def test_a_damaged_backup_is_not_restored(
    filled: SqliteStore,
    back_up: BackUp,
    restore: Callable[..., Restored],
    tampered: Callable[..., None],
    tmp_path: Path,
    place: Path,
) -> None:
    with pytest.raises(BadRequest, match="there is no backup in"):
        restore()
    backup = back_up()
    good = (backup / DATABASE).read_bytes()
    (backup / DATABASE).write_bytes(good[:5_000] + b"x" + good[5_001:])
    with pytest.raises(DataLoss, match="is damaged: it is not as it was written"):
        restore()
    (backup / DATABASE).unlink()
    with pytest.raises(DataLoss, match="is missing"):
        restore()
    (backup / DATABASE).write_bytes(good)
    tampered(backup, "DELETE FROM event WHERE last = 4")
    with pytest.raises(DataLoss, match="the log has a hole"):
        restore()
    assert list((tmp_path / "new").glob("*")) == []
    shutil.rmtree(place)
    with pytest.raises(BadRequest, match="there is no backup in"):
        restore()


async def test_a_backup_of_an_older_version_is_migrated_and_one_of_a_newer_refused(
    filled: SqliteStore,
    back_up: BackUp,
    restore: Callable[..., Restored],
    tampered: Callable[..., None],
    tmp_path: Path,
) -> None:
    backup = back_up()
    tampered(
        backup,
        "DROP TABLE state",
        "DROP TABLE change",
        "UPDATE alembic_version SET version_num = '0001'",
        schema="0001",
        records=9,
    )
    restore()
    with closing(sqlite3.connect(tmp_path / "new" / DATABASE)) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)]
        assert db.execute("SELECT count(*) FROM state").fetchall() == [(0,)]
    tampered(backup, "UPDATE alembic_version SET version_num = '9999'", schema="9999")
    with pytest.raises(BadRequest, match=r"made by a newer version of Agent Hive, 1\.2\.3"):
        restore(target="newer")
