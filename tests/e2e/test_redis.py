"""A server with Redis: what its workers print is read elsewhere, and Redis may be away whenever it likes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # the driver has no types
import pytest
from agenthive import Worker
from agenthive.client import Client
from agenthive.task_context import TaskContext
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive_server.app import App
from agenthive_server.events.filter import EventFilter
from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.events.output import OutputHub
from agenthive_server.events.output_reader import OutputPosition
from agenthive_server.events.subscription import EventClass, SubscriptionSpec
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.rpc.convert.events import event_bytes
from agenthive_server.sharing import Sharing
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.harness import ServerProcess, open_process, open_sdk_workers, open_served
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually

_PLACES = itertools.count()


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url(f"redis{next(_PLACES)}")


@asynccontextmanager
async def open_elsewhere(app: App, redis: RedisServer) -> AsyncIterator[Subscriptions]:
    """What another server of the hive serves subscribers from: the same log, an output hub of its own."""
    clock = SystemClock()
    hub = OutputHub(clock, sequence=lambda: app.log.head)
    sharing = Sharing(redis.url(), clock, hub, "elsewhere")
    sharing.begin(app.log.log_id)
    notifier = LocalNotifier(clock)
    log = EventLog(app.store, event_bytes)
    await log.open()
    loops = [asyncio.create_task(loop()) for loop in (*sharing.loops().values(), notifier.run, hub.notifier.run)]
    await eventually(lambda: sharing._ear.hearing)
    try:
        yield Subscriptions(log, notifier, clock, output=hub)
    finally:
        for task in loops:
            task.cancel()
        await asyncio.wait(loops)


async def test_what_a_worker_prints_is_followed_and_resumed_on_another_server(
    tmp_path: Path, url: str, redis: RedisServer
) -> None:
    async with open_served(tmp_path, server__store=url, server__redis=redis.url()) as (app, client):
        worker = Worker(f"127.0.0.1:{app.port}", agent_id="talker")
        go_on = asyncio.Event()

        @worker.task("talk")
        async def talk(task: TaskContext) -> None:
            task.output("first ")
            task.report(0.5, "half way")
            await go_on.wait()
            task.output("second")

        async with open_sdk_workers(client, worker), open_elsewhere(app, redis) as elsewhere:
            await client.delegate("talk", task_id="t")
            whole = OutputPosition(namespace="default", task_id="t", attempt=1, offset=0)
            assert await read(elsewhere, whole, until=b"first ") == b"first "
            following = asyncio.create_task(read(elsewhere, whole, until=b"first second"))
            go_on.set()
            assert await following == b"first second"
            rest = OutputPosition(namespace="default", task_id="t", attempt=1, offset=8)
            assert await read(elsewhere, rest, until=b"cond") == b"cond"
            done = await client.wait_task("t", timeout=20)
        assert await client.download_blob(done.output_blob_id) == b"first second"


async def read(elsewhere: Subscriptions, position: OutputPosition, until: bytes) -> bytes:
    """Follow an attempt until so much of it was read; its offsets must follow each other."""
    wanted = EventFilter(namespace="default", task_ids=frozenset({position.task_id}))
    spec = SubscriptionSpec(event_class=EventClass.OUTPUT, filter=wanted, offsets=(position,))
    found = b""
    async with asyncio.timeout(20), elsewhere.open(spec) as subscription:
        async for frame in subscription:
            for event in orchestrator.StreamEventsResponse.FromString(frame).events:
                assert not event.HasField("output_gap")
                if event.HasField("task_output"):
                    assert event.task_output.offset == position.offset + len(found)
                    found += event.task_output.data
            if len(found) >= len(until):
                return found
    return found


async def test_with_redis_commits_do_not_notify_in_the_database(tmp_path: Path, url: str, redis: RedisServer) -> None:
    async with open_served(tmp_path, server__store=url, server__redis=redis.url()) as (app, client):
        store = app.store
        assert isinstance(store, PostgresStore)
        heard: list[object] = []
        connection = await asyncpg.connect(url.partition("?")[0])
        try:
            await connection.add_listener(store.channel, lambda *said: heard.append(said))
            task = await client.delegate("any", role="nobody")
            await eventually(lambda: app.log.head > 0)
            await connection.execute("SELECT pg_notify($1, 'by hand')", store.channel)
            await eventually(lambda: heard)
            assert [said[-1] for said in heard if isinstance(said, tuple)] == ["by hand"]
            assert (await client.get_task(task.task_id)).task_id == task.task_id
        finally:
            await connection.close()


async def test_redis_may_be_away_at_the_start_and_later(tmp_path: Path, url: str, redis: RedisServer) -> None:
    redis.stop()
    secret = redis.url().split("@")[0].rpartition(":")[2]
    settings = {"server.store": url, "server.redis": redis.url()}
    async with open_process(tmp_path, settings=settings) as server, Client(server.target) as client:
        await works(client)
        reason = await eventually(lambda: reason_of(client))
        assert f"redis://127.0.0.1:{redis.port}" in reason
        assert "rate limits are each server's" in reason
        redis.start()
        await eventually(lambda: is_well(client))
        await works(client)
        redis.pause()
        await eventually(lambda: reason_of(client))
        await works(client)
        redis.resume()
        await eventually(lambda: is_well(client))
        await check_quiet(server, secret)
        assert await server.stop() == 0


async def works(client: Client) -> None:
    task = await client.delegate("any", role="nobody", timeout=5)
    assert (await client.get_task(task.task_id)).task_id == task.task_id


async def reason_of(client: Client) -> str:
    return next(each.reason for each in (await client.health()).components if each.name == "redis")


async def is_well(client: Client) -> bool:
    return not await reason_of(client)


async def check_quiet(server: ServerProcess, secret: str) -> None:
    """One line for each outage, and no password."""
    assert server.log().count("redis_failed") == 2
    assert secret not in server.log()


async def test_a_server_that_has_redis_and_no_shared_store_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="which needs none"):
        async with open_process(tmp_path, settings={"server.redis": "redis://127.0.0.1:1/0"}):
            pass
