"""Class OUTPUT over Redis: what is taken in here goes to streams, what is read here comes from those of others."""

from __future__ import annotations

import asyncio

from agenthive_server.events.output import OutputHub

from .ear import Ear
from .link import RedisLink
from .mirror import OutputMirror
from .streams import OutputStreams


class RedisOutput:
    """Shares the output of a hub with those of other servers. What each method promises says `Exchange`."""

    def __init__(self, link: RedisLink, ear: Ear, hub: OutputHub, server: str) -> None:
        """`server` tells this one from the others."""
        self._streams = OutputStreams(link, server, hub.retention)
        self._mirror = OutputMirror(link, ear, hub, server)
        self.taken, self.dropped, self.ended = self._streams.taken, self._streams.dropped, self._streams.ended
        self.hold, self.whole = self._mirror.hold, self._mirror.whole
        self.open, self.close = self._mirror.open, self._mirror.close

    async def run(self) -> None:
        """Write and read until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._streams.run())
            group.create_task(self._mirror.run())
