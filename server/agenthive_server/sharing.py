"""What the servers of a hive share over Redis beside the store: rings, output, token buckets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from agenthive_server.events.output import OutputHub
from agenthive_server.events.redis.ear import Ear
from agenthive_server.events.redis.link import RedisLink
from agenthive_server.events.redis.notifier import RedisNotifier
from agenthive_server.events.redis.output import RedisOutput
from agenthive_server.kernel.clock import Clock
from agenthive_server.lifecycle import Loop
from agenthive_server.plugin.shared_buckets import SharedBuckets


class Sharing:
    """One server's part in it. Redis may come, go and forget everything while it runs."""

    def __init__(self, url: str, clock: Clock, hub: OutputHub, server: str) -> None:
        """`server` tells this one from the others. Raises `ValueError` for a URL that cannot be understood."""
        self._link = RedisLink(url, clock)
        self._ear = Ear(self._link)
        self._output = hub.exchange = RedisOutput(self._link, self._ear, hub, server)
        self._buckets = SharedBuckets(self._link)
        self.buckets = self._buckets.of
        self.probe = self._link.probe

    def begin(self, log_id: str) -> None:
        """Name the hive; before the loops run. Several may use one Redis."""
        self._link.begin(log_id)

    def notifier(self, head: Callable[[], Awaitable[int]], ring: Callable[[int], None]) -> RedisNotifier:
        """Return what rings when anybody has committed, and tells the others when this server has."""
        return RedisNotifier(self._link, self._ear, head, ring)

    def loops(self) -> Mapping[str, Loop]:
        """Return what has to run."""
        return {"redis": self._ear.run, "redis_output": self._output.run, "redis_buckets": self._buckets.run}
