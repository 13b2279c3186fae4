"""A commit rings on every other server within milliseconds; whatever happens to Redis, within a second or two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from agenthive_server.events.redis.link import MAX_BACKOFF
from agenthive_server.events.redis.notifier import LOOKED_EVERY
from agenthive_server.kernel.errors import StoreUnavailable
from agenthive_server.kernel.health import Status
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually

NOTICED = 2.5
"""Seconds after which a hanging Redis must have been noticed: two, and what this machine adds."""

BACK = MAX_BACKOFF + 3.0


async def hears(part: Any, head: int) -> None:
    await eventually(lambda: part.heard >= head, limit=10)


async def test_a_commit_rings_elsewhere_long_before_anybody_looks(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    loop, spans = asyncio.get_running_loop(), []
    for _ in range(50):
        began, head = loop.time(), one.commit()
        await hears(two, head)
        spans.append(loop.time() - began)
        await asyncio.sleep(0.005)
    spans.sort()
    # `eventually` itself looks every 20 ms.
    assert spans[25] < 0.03
    assert spans[-5] < LOOKED_EVERY / 2


async def test_what_was_committed_before_one_listens_is_found(parts: Any) -> None:
    parts.log.head = 7
    one = await parts.open("one")
    await eventually(lambda: one.heard == 7)


async def test_commits_that_come_faster_than_they_can_be_told_are_told_together(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    await eventually(lambda: two.rung)
    two.rung.clear()
    for _ in range(5_000):
        one.commit()
    await eventually(lambda: two.heard == parts.log.head)
    assert len(two.rung) < 100


async def test_an_announcement_is_made_once_and_nonsense_is_overheard(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    channel = f"{one.link.prefix}head"
    parts.redis.ask("PUBLISH", channel, "nonsense")
    parts.redis.ask("PUBLISH", channel, "")
    one.commit()
    one.notifier.announce(1)
    await eventually(lambda: two.heard == 1)
    assert one.notifier.probe()[0][1].status is Status.OK


async def test_silence_makes_it_look(parts: Any) -> None:
    one = await parts.open("one")
    await eventually(lambda: parts.log.looks >= 1)
    # Committed by somebody who told nobody.
    parts.log.head = 9
    await eventually(lambda: one.heard == 9, limit=2 * LOOKED_EVERY + 1)


def kill(redis: RedisServer) -> Callable[[], None]:
    redis.kill()
    return redis.start


def stop(redis: RedisServer) -> Callable[[], None]:
    redis.stop()
    return redis.start


def pause(redis: RedisServer) -> Callable[[], None]:
    redis.pause()
    return redis.resume


@pytest.mark.parametrize("harm", [kill, stop, pause])
async def test_without_redis_everything_arrives_a_little_later_and_it_is_told_once(
    parts: Any, harm: Callable[[RedisServer], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    one.commit()
    await eventually(lambda: two.heard == 1)
    caplog.set_level(logging.INFO)
    loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    mend = harm(parts.redis)
    await eventually(lambda: one.notifier.trouble and two.notifier.trouble, limit=10)
    assert loop.time() - began < NOTICED
    for part in (one, two):
        name, reading = part.notifier.probe()[0]
        assert (name, reading.status) == ("redis", Status.DEGRADED)
        assert f"redis://127.0.0.1:{parts.redis.port}" in reading.reason
        assert "once a second" in reading.reason
        assert parts.redis.url().split(":")[2].split("@")[0] not in reading.reason
    for _ in range(3):
        began, head = loop.time(), one.commit()
        assert loop.time() - began < 0.01, "a commit waits for nobody"
        await hears(two, head)
        assert loop.time() - began < 3 * LOOKED_EVERY
    mend()
    await eventually(lambda: not one.notifier.trouble and not two.notifier.trouble, limit=BACK)
    assert one.notifier.probe()[0][1].status is Status.OK
    assert len([record for record in caplog.records if record.message == "redis_failed"]) == 2, "one line per server"
    began, head = loop.time(), one.commit()
    await eventually(lambda: two.heard >= head)
    assert loop.time() - began < LOOKED_EVERY / 2


async def test_events_flow_while_redis_is_harmed_again_and_again(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    harms = [parts.redis.flush, parts.redis.restart, lambda: (parts.redis.kill(), parts.redis.start())]
    for harm in harms:
        for _ in range(20):
            one.commit()
            two.commit()
            await asyncio.sleep(0.002)
        await asyncio.to_thread(harm)
        head = one.commit()
        await hears(one, head)
        await hears(two, head)
    await eventually(lambda: not one.notifier.trouble and not two.notifier.trouble, limit=BACK)


async def test_flushing_is_nobodys_business(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    parts.redis.flush()
    one.commit()
    await eventually(lambda: two.heard == 1)
    assert not one.notifier.trouble


async def test_a_redis_that_refuses_is_told_of(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    parts.redis.ask("ACL", "SETUSER", "default", "-publish")
    one.commit()
    await eventually(lambda: two.heard == 1, limit=10)
    assert "publish" in one.notifier.trouble
    parts.redis.ask("ACL", "SETUSER", "default", "+publish")
    await eventually(lambda: not one.notifier.trouble, limit=BACK)


async def test_a_store_that_cannot_be_asked_stops_nothing(parts: Any) -> None:
    one, two = await parts.open("one"), await parts.open("two")
    look, asked = parts.log.look, []

    async def away() -> int:
        asked.append(1)
        raise StoreUnavailable("away")

    two.notifier._head = away
    await eventually(lambda: len(asked) >= 2)
    one.commit()
    await eventually(lambda: two.heard == 1)
    two.notifier._head = look
