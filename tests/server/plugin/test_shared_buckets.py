"""A rate holds over all servers: at once a little more may pass, and is paid back. Without Redis each keeps to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from agenthive_server.events.redis.ear import Ear
from agenthive_server.events.redis.link import RedisLink
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.plugin.buckets import Rate
from agenthive_server.plugin.shared_buckets import PluginBuckets, SharedBuckets
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually

KEY = ("somebody", "/S/Method")
HOUR = Rate(100, 3_600.0)
CLOCK = SystemClock()


class Server:
    """The buckets of one server, for one plugin."""

    def __init__(self, url: str) -> None:
        self.link = RedisLink(url, CLOCK)
        self.link.begin("log-1")
        self.ear = Ear(self.link)
        self.all = SharedBuckets(self.link)
        self.buckets: PluginBuckets = self.all.of("limits")

    def take(self, rate: Rate = HOUR, cost: float = 1.0) -> bool:
        return not self.buckets.take(KEY, rate, CLOCK.monotonic(), cost)

    def left(self, rate: Rate = HOUR) -> float:
        """How many there are still, as far as it knows here."""
        return (rate.seconds - self.all._local.missing(("limits", *KEY), CLOCK.monotonic())) / rate.interval

    async def told(self) -> None:
        await eventually(lambda: not self.all._taken and not self.all._wake.is_set())
        await asyncio.sleep(0.02)


@pytest.fixture
async def servers(redis: RedisServer) -> AsyncIterator[Callable[[], Server]]:
    tasks: list[asyncio.Task[None]] = []

    def make() -> Server:
        server = Server(redis.url())
        tasks.extend(asyncio.create_task(loop()) for loop in (server.ear.run, server.all.run))
        return server

    yield make
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_what_one_gives_away_the_other_does_not_give_again(servers: Callable[[], Server]) -> None:
    one, two = servers(), servers()
    passed = 0
    for _ in range(100):
        passed += one.take()
        await one.told()
        passed += two.take()
        await two.told()
    # The first of each is given before it has heard of the other.
    assert 100 <= passed <= 102


async def test_a_burst_on_every_server_at_once_is_the_most_that_passes_and_is_paid_back(
    servers: Callable[[], Server],
) -> None:
    both = servers(), servers()
    rate = Rate(50, 5.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    passed = sum(server.take(rate) for _ in range(200) for server in both)
    assert passed <= 2 * 50 + 2
    # Hammering on, nobody gets more than the rate allows in all this time, but for what passed at once in excess.
    while loop.time() - began < 4.0:
        passed += sum(server.take(rate) for server in both)
        await asyncio.sleep(0.01)
    allowed = 50 + 10 * 4.0
    assert passed <= max(2 * 50, allowed) + 4, "twice the burst, and then nothing until that is paid back"
    wait = max(server.buckets.wait(KEY, rate, CLOCK.monotonic()) for server in both)
    assert wait > 0


async def test_one_who_keeps_to_the_rate_is_never_refused(servers: Callable[[], Server]) -> None:
    both = servers(), servers()
    rate = Rate(100, 2.0)
    for number in range(100):
        assert both[number % 2].take(rate)
        await asyncio.sleep(0.02)


async def test_another_plugin_and_another_key_have_buckets_of_their_own(servers: Callable[[], Server]) -> None:
    one, two = servers(), servers()
    for _ in range(100):
        assert one.take()
    await one.told()
    now = CLOCK.monotonic()
    assert two.buckets.take(("another",), HOUR, now) == 0.0
    assert two.all.of("another").take(KEY, HOUR, now) == 0.0
    assert two.take(Rate(0))
    await two.told()
    assert two.left() == 100


async def test_parts_of_calls_count_as_parts(servers: Callable[[], Server]) -> None:
    one, two = servers(), servers()
    for _ in range(200):
        assert one.take(cost=0.05)
    await one.told()
    assert two.take()
    await two.told()
    assert two.left() == pytest.approx(89, abs=0.1)


@pytest.mark.parametrize("harm", ["stop", "pause"])
async def test_without_redis_each_server_keeps_to_the_rate_by_itself(
    redis: RedisServer, servers: Callable[[], Server], harm: str
) -> None:
    one, two = servers(), servers()
    assert one.take()
    assert two.take()
    await one.told()
    await two.told()
    getattr(redis, harm)()
    await eventually(lambda: one.link.trouble and two.link.trouble)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert sum(one.take() for _ in range(200)) <= 99
    assert sum(two.take() for _ in range(50)) == 50
    assert loop.time() - began < 0.1, "nobody waits for Redis"
    redis.resume() if harm == "pause" else redis.start()
    await eventually(lambda: not one.link.trouble and not two.link.trouble)
    # What was given meanwhile is known to all again.
    await eventually(lambda: two.take() or two.left() < 1, limit=10)
    await eventually(lambda: two.left() < 1 or (two.take(cost=0.01) and False), limit=10)


async def test_forgotten_by_redis_a_bucket_is_as_empty_as_each_server_knows(
    redis: RedisServer, servers: Callable[[], Server]
) -> None:
    one, two = servers(), servers()
    for _ in range(90):
        assert one.take()
    await one.told()
    redis.flush()
    redis.ask("SCRIPT", "FLUSH")
    assert sum(one.take() for _ in range(50)) == 10
    await one.told()
    assert one.left() < 1
    assert two.take()
    await two.told()
    assert two.left() < 90
    assert not one.link.trouble


async def test_redis_forgets_what_is_full(redis: RedisServer, servers: Callable[[], Server]) -> None:
    one = servers()
    assert one.take(Rate(10, 0.5))
    await one.told()
    await eventually(lambda: redis.ask("DBSIZE") == b":0\r\n")
