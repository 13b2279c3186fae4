"""Hears what is said on channels of Redis, over a connection of its own that is opened again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from redis.asyncio.connection import AbstractConnection

from .link import ANSWER_LIMIT, FAILURES, Backoff, RedisLink

SILENCE: Final = 1.0
"""Seconds without a word after which Redis is asked whether it is there; as many again, and it is taken to hang."""

PART: Final = "listening"

Heard = Callable[[bytes], None]


class Ear:
    """Calls back with what is said on channels. A channel whose name ends in `*` stands for all that begin so."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._heard: dict[bytes, Heard] = {}
        self._connection: AbstractConnection | None = None
        self._confirmed: dict[bytes, asyncio.Event] = {}
        self._unwanted: set[bytes] = set()
        # Called when it hears again: what was said in between is lost.
        self.rejoined: list[Callable[[], None]] = []

    @property
    def hearing(self) -> bool:
        """Whether it hears at present."""
        return self._connection is not None

    async def hear(self, channel: str, heard: Heard) -> None:
        """Call `heard` with what is said on a channel from now on, and again after every outage.

        When it returns, and Redis is there, nothing said later is missed.
        """
        name = channel.encode()
        self._heard[name] = heard
        self._unwanted.discard(name)
        if self._connection is None:
            return
        confirmed = self._confirmed.get(name)
        with suppress(*FAILURES):
            async with asyncio.timeout(ANSWER_LIMIT):
                if confirmed is None:
                    self._confirmed[name] = confirmed = asyncio.Event()
                    await self._subscribe(self._connection, [name])
                await confirmed.wait()

    def forget(self, channel: str) -> None:
        """Hear a channel no more."""
        name = channel.encode()
        if self._heard.pop(name, None) is not None:
            self._unwanted.add(name)

    async def run(self) -> None:
        """Listen until cancelled, through all outages."""
        backoff = Backoff(self._link.clock)
        while True:
            connection = self._link.connection()
            try:
                await self._listen(connection, backoff)
            except FAILURES as error:
                self._link.failed(PART, error)
            finally:
                self._connection = None
                self._confirmed.clear()
                await connection.disconnect(nowait=True)
            await backoff.wait()

    async def _listen(self, connection: AbstractConnection, backoff: Backoff) -> None:
        async with asyncio.timeout(ANSWER_LIMIT):
            await connection.connect()  # type: ignore[no-untyped-call]  # the client has no type there
            await connection.send_command("PING", check_health=False)
            await connection.read_response()
        self._unwanted.clear()
        wanted = list(self._heard)
        self._confirmed = {name: asyncio.Event() for name in wanted}
        self._connection = connection
        await self._subscribe(connection, wanted)
        backoff.reset()
        self._link.well(PART)
        for again in self.rejoined:
            again()
        asked = False
        while True:
            said = await connection.read_response(timeout=SILENCE)
            if said is not None:
                asked = False
                self._take(said)
            elif asked:
                raise TimeoutError(f"no answer within {SILENCE:g} s")
            else:
                asked = True
                await self._unsubscribe(connection)
                await connection.send_command("PING", check_health=False)

    def _take(self, said: list[bytes]) -> None:
        kind = said[0]
        if kind in (b"message", b"pmessage"):
            heard = self._heard.get(said[1])
            if heard is not None:
                heard(said[-1])
        elif kind in (b"subscribe", b"psubscribe") and said[1] in self._confirmed:
            self._confirmed[said[1]].set()

    @staticmethod
    async def _subscribe(connection: AbstractConnection, names: list[bytes]) -> None:
        for word, kind in (("SUBSCRIBE", False), ("PSUBSCRIBE", True)):
            some = [name for name in names if name.endswith(b"*") is kind]
            if some:
                await connection.send_command(word, *some, check_health=False)

    async def _unsubscribe(self, connection: AbstractConnection) -> None:
        names, self._unwanted = list(self._unwanted), set()
        for name in names:
            self._confirmed.pop(name, None)
            word = "PUNSUBSCRIBE" if name.endswith(b"*") else "UNSUBSCRIBE"
            await connection.send_command(word, name, check_health=False)
