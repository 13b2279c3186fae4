"""A server with Redis: what its workers print is read elsewhere, and Redis may be away whenever it likes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # the driver has no types
import pytest
from agenthive import Worker
from agenthive.client import Client
from agenthive.task_context import TaskContext
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import task_pb2
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.harness import ServerProcess, open_process, open_sdk_workers, open_served, open_worker
from agenthive_server.testing.history import difference, read_log
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.proxy import open_proxy
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually

_PLACES = itertools.count()


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url(f"redis{next(_PLACES)}")


@pytest.fixture
async def fleet(tmp_path: Path, url: str, redis: RedisServer) -> AsyncIterator[list[Client]]:
    """Clients of three replicas that share a Redis."""
    settings = {"server.store": url, "server.redis": redis.url(), "limits.reconnect_grace_seconds": 20}
    async with AsyncExitStack() as stack:
        opened = [open_process(tmp_path / f"replica{number}", settings=settings) for number in range(3)]
        servers = [await stack.enter_async_context(each) for each in opened]
        yield [await stack.enter_async_context(Client(server.target)) for server in servers]
        for server in servers:
            assert "Traceback" not in server.log()


async def test_what_a_worker_prints_is_followed_and_resumed_on_every_replica(fleet: list[Client]) -> None:
    client, *others = fleet
    worker = Worker(client.target, agent_id="talker")
    go_on = asyncio.Event()

    @worker.task("talk")
    async def talk(task: TaskContext) -> None:
        task.output("first ")
        task.report(0.5, "half way")
        await go_on.wait()
        task.output("second")

    async with open_sdk_workers(client, worker):
        await client.delegate("talk", task_id="t")
        for each in fleet:
            assert await read(each, 0, until=b"first ") == b"first "
        following = [asyncio.create_task(read(each, 0, until=b"first second")) for each in fleet]
        go_on.set()
        assert await asyncio.gather(*following) == [b"first second"] * 3
        for each in others:
            assert await read(each, 8, until=b"cond") == b"cond"
        done = await others[0].wait_task("t", timeout=20)
    assert await others[1].download_blob(done.output_blob_id) == b"first second"


async def read(client: Client, offset: int, until: bytes) -> bytes:
    """Follow an attempt until so much of it was read; its offsets must follow each other."""
    found = b""
    position = orchestrator.OutputPosition(task_id="t", attempt=1, offset=offset)
    stream = client.events(
        event_class=orchestrator.EVENT_CLASS_OUTPUT, task_ids=["t"], output_positions=[position], follow=True
    )
    async with asyncio.timeout(20), stream as events:
        async for event in events:
            assert not event.HasField("output_gap")
            if event.HasField("task_output"):
                assert event.task_output.offset == offset + len(found)
                found += event.task_output.data
            if len(found) >= len(until):
                return found
    return found


async def test_a_session_moves_while_its_task_prints_and_readers_see_no_gap(
    fleet: list[Client], redis: RedisServer
) -> None:
    one, two, three = fleet
    async with open_proxy(one.target, two.target) as proxy:
        worker = Worker(proxy.target, agent_id="talker")
        go_on, printed = asyncio.Event(), asyncio.Event()

        @worker.task("talk")
        async def talk(task: TaskContext) -> None:
            task.output("here ")
            printed.set()
            await go_on.wait()
            task.output("and there")

        async with open_sdk_workers(one, worker):
            await one.delegate("talk", task_id="t")
            await printed.wait()
            following = [asyncio.create_task(read(each, 0, until=b"here and there")) for each in fleet]
            assert await read(three, 0, until=b"here ") == b"here "
            proxy.cut(refuse=False)
            await eventually(lambda: proxy.connections >= 2)
            go_on.set()
            assert await asyncio.gather(*following) == [b"here and there"] * 3
            done = await three.wait_task("t", timeout=20)
        assert await three.download_blob(done.output_blob_id) == b"here and there"


async def test_tasks_go_through_all_replicas_while_redis_is_harmed(
    fleet: list[Client], redis: RedisServer, tmp_path: Path
) -> None:
    one, two, three = fleet
    nothing = lambda: None  # noqa: E731 - as short as what is done
    harms = [(nothing, nothing), (redis.stop, redis.start), (redis.flush, nothing), (redis.pause, redis.resume)]
    async with open_worker(one.target, "reader", "--capability", "read", folder=tmp_path):
        for number, (harm, mend) in enumerate(harms):
            await asyncio.to_thread(harm)
            for turn in range(3):
                name = f"t{number}-{turn}"
                await two.delegate("echo", {"a": 1}, task_id=name, required_capabilities=["read"])
                done = await three.wait_task(name, timeout=20)
                assert done.state == task_pb2.TASK_STATE_SUCCEEDED
            await asyncio.to_thread(mend)
        for client in fleet:
            await eventually(lambda: is_well(client))  # noqa: B023 - waited for here
        logs = [await read_log(client) for client in fleet]
        assert difference(logs[0], logs[1]) == difference(logs[0], logs[2]) == ""


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
