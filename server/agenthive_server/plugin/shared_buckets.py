"""Token buckets that the servers of a hive share over Redis.

Each call is decided here, on this server's own bucket, and waits for nobody. What was taken is told to Redis a moment
later, many buckets at a time, and the answer says how empty each is with what the others took; a bucket here is never
fuller than that. Time is Redis' own, and only spans travel: nobody's clock has to agree with another's.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from agenthive_server.events.redis.link import Backoff, Command, Line, RedisAway, RedisLink

from .buckets import LocalBuckets, Rate

PACE: Final = 0.01
"""Seconds between two exchanges with Redis: as long the others do not know what was taken here."""

TOGETHER: Final = 500
"""Buckets in one exchange."""

PART: Final = "rate limits"

Key = tuple[str, ...]

# For each key: seconds that were taken, and how many it is empty by at least. Answers how many it is empty by now.
SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local answers = {}
for i, key in ipairs(KEYS) do
  local full = math.max(tonumber(redis.call('GET', key) or 0), now) + ARGV[2 * i - 1]
  full = math.max(full, now + ARGV[2 * i])
  if full > now then
    redis.call('SET', key, string.format('%.6f', full), 'PX', math.ceil((full - now) * 1000))
  end
  answers[i] = string.format('%.6f', full - now)
end
return answers
"""


class SharedBuckets:
    """The buckets of all plugins of this server, told to Redis by `run`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._line = Line(link)
        self._local = LocalBuckets()
        # Seconds taken since Redis was told last; negative: it has to be told how empty the bucket is here.
        self._taken: dict[Key, float] = {}
        self._wake = asyncio.Event()
        self._digest = ""

    def of(self, plugin: str) -> PluginBuckets:
        """Return the buckets of one plugin."""
        return PluginBuckets(self, plugin)

    def take(self, key: Key, rate: Rate, now: float, cost: float) -> float:
        """Take from a bucket, as `Buckets.take`."""
        wait = self._local.take(key, rate, now, cost)
        if not wait and rate.count:
            taken = self._taken.get(key, 0.0)
            if taken >= 0.0:
                self._taken[key] = taken + rate.interval * cost
            self._wake.set()
        return wait

    def wait(self, key: Key, rate: Rate, now: float) -> float:
        """Return what `take` would."""
        return self._local.wait(key, rate, now)

    async def run(self) -> None:
        """Tell and ask until cancelled; without Redis each server keeps to the rates by itself."""
        backoff = Backoff(self._link.clock)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self._exchange()
                except RedisAway as error:
                    self._link.failed(PART, error)
                    self._wake.set()
                    await backoff.wait()
                else:
                    self._link.well(PART)
                    backoff.reset()
                    await self._link.clock.sleep(PACE)
        finally:
            await self._line.close()

    async def _exchange(self) -> None:
        keys = list(self._taken)[:TOGETHER]
        told = {key: self._taken.pop(key) for key in keys}
        if self._taken:
            self._wake.set()
        if not told:
            return
        now = self._link.clock.monotonic()
        names = [f"{self._link.prefix}bucket:" + "\x1f".join(key) for key in keys]
        spans: list[str | bytes | int] = []
        for key, taken in told.items():
            # After an outage: not what was taken in it, most of which has flown back, but what is missing now.
            missing = self._local.missing(key, now) if taken < 0.0 else 0.0
            spans += [f"{max(0.0, taken):.6f}", f"{missing:.6f}"]
        try:
            answers = await self._evaluate(names, spans)
        except BaseException:
            self._keep(told)
            raise
        now = self._link.clock.monotonic()
        for key, answer in zip(keys, answers, strict=True):
            self._local.drain(key, float(answer) + max(0.0, self._taken.get(key, 0.0)), now)

    async def _evaluate(self, names: list[str], spans: list[str | bytes | int]) -> list[Any]:
        arguments: Command = (len(names), *names, *spans)
        if not self._digest:
            self._digest = (await self._line.ask(("SCRIPT", "LOAD", SCRIPT)))[0].decode()
        (answers,) = await self._line.ask(("EVALSHA", self._digest, *arguments), tolerated="No matching script")
        if answers is None:
            # Another Redis, or one that was started again.
            (answers,) = await self._line.ask(("EVAL", SCRIPT, *arguments))
        return list(answers)

    def _keep(self, told: dict[Key, float]) -> None:
        """Note that Redis may not know of these: it is told how empty they are when it is back."""
        now = self._link.clock.monotonic()
        for key in (*told, *self._taken):
            self._taken[key] = -1.0
        for key in [key for key in self._taken if not self._local.missing(key, now)]:
            del self._taken[key]


class PluginBuckets:
    """Buckets of one plugin among those of all."""

    def __init__(self, shared: SharedBuckets, plugin: str) -> None:
        self._shared = shared
        self._plugin = plugin

    def take(self, key: Key, rate: Rate, now: float, cost: float = 1.0) -> float:
        """Take one, or a part of one; returns 0 when it was there, else for how long to wait, and takes nothing."""
        return self._shared.take((self._plugin, *key), rate, now, cost)

    def wait(self, key: Key, rate: Rate, now: float) -> float:
        """Return what `take` would, and take nothing."""
        return self._shared.wait((self._plugin, *key), rate, now)
