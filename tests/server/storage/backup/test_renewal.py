"""A database becomes a new log in bounded steps, and every change is an event."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

from agenthive_server.kernel.agents import Agent, AgentSpec, AgentState
from agenthive_server.kernel.changes import MAX_ROWS
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.records import Kind, Record, RoleRecord
from agenthive_server.kernel.sessions import Session
from agenthive_server.kernel.tasks import Lease, TaskState
from agenthive_server.storage.backup.renewal import begin_new_log
from agenthive_server.storage.database import Database
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.store_model import changing, task

MANY = 450


def held(number: int) -> Record:
    lease = Lease(agent_id=f"a{number}", session_id=f"s{number}", epoch=1, assign_time=1.0)
    return task(f"t{number}", state=TaskState.RUNNING, lease=lease, lease_epoch=1, attempt=1, exclusive=number < 3)


def agent(number: int) -> Record:
    spec, session = AgentSpec(driver="process"), f"s{number}"
    return Agent(namespace="n", id=f"a{number}", revision=1, spec=spec, state=AgentState.READY, session_id=session)


async def test_any_number_of_records_is_changed_and_told(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    records = [made(n) for n in range(MANY) for made in (held, agent)]
    records += [Session(namespace="n", id=f"s{n}", revision=1) for n in range(MANY)]
    records += [RoleRecord(namespace="", id="r", revision=1, holder="h", epoch=1, expire_time=9.0)]
    records += [task("over", state=TaskState.SUCCEEDED), task("waits")]
    for start in range(0, len(records), MAX_ROWS):
        await store.commit([changing(*records[start : start + MAX_ROWS], events=1)])
    before, log_id = (await store.bounds()).head, store.position[0]
    await store.close()
    clock.move(10)

    renewal = begin_new_log(Database(path, "NORMAL", sqlite3.connect), clock)

    assert (renewal.tasks_requeued, renewal.sessions_ended, renewal.agents_begun_anew) == (MANY, MANY, MANY)
    assert (renewal.roles_released, renewal.exclusive_tasks) == (1, 3)
    assert renewal.log_id != log_id
    store = SqliteStore(path, clock=clock)
    await store.open()
    events = await store.read_events(before, 10_000)
    assert Counter(event.type for event in events) == {
        EventType.TASK_REQUEUED: MANY,
        EventType.SESSION_ENDED: MANY,
        EventType.AGENT_RESTARTING: MANY,
    }
    assert [event.sequence for event in events] == list(range(before + 1, before + 3 * MANY + 1))
    assert {event.time for event in events} == {clock.now()}
    assert await store.scan(Kind.SESSION) == []
    assert {record.state for record in await store.scan(Kind.AGENT)} == {AgentState.STARTING}  # type: ignore[attr-defined] # agents
    states = Counter(record.state for record in await store.scan(Kind.TASK))  # type: ignore[attr-defined] # tasks
    assert states == {TaskState.QUEUED: MANY + 1, TaskState.SUCCEEDED: 1}
    untouched = [record.revision for record in await store.scan(Kind.TASK) if record.id in ("over", "waits")]
    assert untouched == [1, 1]
    await store.close()
