"""A connection that hangs, breaks or is refused is noticed, told in a sentence, and made again; no secret is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from agenthive_server.events.redis.ear import Ear
from agenthive_server.events.redis.link import ANSWER_LIMIT, Line, RedisAway, RedisLink, place
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.testing.proxy import open_proxy
from agenthive_server.testing.redis import RedisServer
from agenthive_server.testing.waiting import eventually


@pytest.fixture
def link(redis: RedisServer) -> RedisLink:
    return RedisLink(redis.url(), SystemClock())


@pytest.fixture
async def line(link: RedisLink) -> AsyncIterator[Line]:
    line = Line(link)
    yield line
    await line.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:secret@h", "redis://h:6379"),
        ("rediss://:secret@h:1/3?password=secret", "rediss://h:1"),
        ("redis://", "redis://localhost:6379"),
        ("unix:///run/redis.sock?db=2&password=secret", "unix:///run/redis.sock"),
    ],
)
def test_a_place_is_shown_without_secrets(url: str, shown: str) -> None:
    assert place(url) == shown


async def test_many_commands_are_one_question(line: Line) -> None:
    assert await line.ask(("SET", "a", "1"), ("INCR", "a"), ("GET", "a")) == [b"OK", 2, b"2"]
    with pytest.raises(RedisAway, match="not an integer"):
        await line.ask(("SET", "a", "x"), ("INCR", "a"))
    assert await line.ask(("SET", "a", "x"), ("INCR", "a"), tolerated="not an integer") == [b"OK", None]


async def test_those_who_ask_at_once_get_their_own_answers(line: Line) -> None:
    answers = await asyncio.gather(*(line.ask(("ECHO", str(n))) for n in range(100)))
    assert [answer for (answer,) in answers] == [str(n).encode() for n in range(100)]


async def test_a_redis_that_hangs_is_away_soon_and_is_asked_again(redis: RedisServer, line: Line) -> None:
    await line.ask(("PING",))
    redis.pause()
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(RedisAway, match=r"no answer within 1.5 s"):
        await line.ask(("PING",))
    assert loop.time() - began < ANSWER_LIMIT + 1
    redis.resume()
    assert await line.ask(("PING",)) == [b"PONG"]


async def test_what_the_url_says_of_timeouts_does_not_make_it_wait_longer(redis: RedisServer) -> None:
    line = Line(RedisLink(redis.url() + "?socket_timeout=600", SystemClock()))
    redis.pause()
    with pytest.raises(RedisAway):
        await asyncio.wait_for(line.ask(("PING",)), 3 * ANSWER_LIMIT)


async def test_a_connection_that_broke_is_made_again(redis: RedisServer, line: Line) -> None:
    await line.ask(("PING",))
    redis.restart()
    with pytest.raises(RedisAway):
        await line.ask(("PING",))
    assert await line.ask(("PING",)) == [b"PONG"]


async def test_a_wrong_password_is_told_without_it(redis: RedisServer) -> None:
    wrong = RedisLink(redis.url().replace("redis://:", "redis://:not-"), SystemClock())
    with pytest.raises(RedisAway, match="password"):
        await Line(wrong).ask(("PING",))
    with pytest.raises(RedisAway) as refused:
        await Line(RedisLink(f"redis://127.0.0.1:{redis.port}/0", SystemClock())).ask(("PING",))
    assert "Authentication required" in str(refused.value)


async def test_a_question_that_is_cancelled_ends_and_leaves_no_answer_for_the_next(line: Line) -> None:
    async def ask() -> None:
        while True:
            await line.ask(("ECHO", "old"))

    for turn in range(60):
        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.002 + turn * 0.00005)
        asking.cancel()
        done, _ = await asyncio.wait([asking], timeout=5)
        assert done, "cancelled, it goes on"
        assert await line.ask(("ECHO", "new")) == [b"new"]


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Ear]:
    ear = Ear(RedisLink(url, SystemClock()))
    running = asyncio.create_task(ear.run())
    await eventually(lambda: ear.hearing)
    yield ear
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=5)
    assert done


async def test_a_channel_is_heard_until_it_is_forgotten(redis: RedisServer) -> None:
    heard: list[bytes] = []
    async with listening(redis.url()) as ear:
        for count, said in enumerate(("one", "two"), 1):
            await ear.hear("news", heard.append)
            redis.ask("PUBLISH", "news", said)
            await eventually(lambda: len(heard) == count)  # noqa: B023 - waited for here
            ear.forget("news")
        redis.ask("PUBLISH", "news", "three")
        await eventually(lambda: redis.ask("PUBSUB", "CHANNELS") == b"*0\r\n")
        assert heard == [b"one", b"two"]


async def test_a_network_that_swallows_is_noticed_by_who_listens_and_he_hears_again(redis: RedisServer) -> None:
    heard: list[bytes] = []
    async with open_proxy(f"127.0.0.1:{redis.port}") as proxy, listening(redis.url(port=proxy.port)) as ear:
        await ear.hear("news*", heard.append)
        proxy.freeze()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await eventually(lambda: not ear.hearing)
        assert loop.time() - began < 2.5
        proxy.mend()
        await eventually(lambda: ear.hearing)
        await eventually(lambda: redis.ask("PUBLISH", "news:1", "again") != b":0\r\n")
        await eventually(lambda: heard[-1:] == [b"again"])
