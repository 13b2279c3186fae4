"""Subscribers of the event log for proofs: they write down what arrives, byte by byte, and correct nothing.

The client's own stream leaves out what it has seen already; a `Follower` keeps it, so that a server that sends an event
twice, or leaves one out, is found out.
"""

from __future__ import annotations

import asyncio
import random

import grpc
from agenthive.errors import error_from_rpc
from agenthive.service_config import open_channel
from agenthive.v1 import event_pb2, orchestrator_service_pb2_grpc
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.waiting import Backoff, passing


class Follower:
    """Follows the log from its beginning, over any number of streams, each from the cursor after the last response.

    With several targets each stream goes to the next of them.
    """

    def __init__(
        self,
        *targets: str,
        filter: event_pb2.EventFilter | None = None,  # noqa: A002 - the contract's word
        pause: float = 0.0,
        restless: random.Random | None = None,
    ) -> None:
        """`pause`: seconds it takes over each response; `restless` makes it leave, and come back, at random."""
        self.events: list[event_pb2.Event] = []
        self.cursor = ""
        self.streams = 0
        self.arrived: dict[int, float] = {}
        """When an event first came, by its sequence and the loop's clock."""
        self._targets = targets
        self._filter = filter or event_pb2.EventFilter(all_namespaces=True)
        self._pause = pause
        self._restless = restless
        self._backoff = Backoff(maximum=0.5)

    async def run(self) -> None:
        """Follow until cancelled. Raises the HiveError of a stream that is refused for what it asks."""
        while True:
            async with open_channel(self._targets[self.streams % len(self._targets)]) as channel:
                try:
                    await self._stream(orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel))
                except grpc.aio.AioRpcError as error:
                    failure = error_from_rpc(error)
                    if not passing(failure):
                        raise failure from error
            await asyncio.sleep(self._backoff.next())

    async def _stream(self, stub: orchestrator_service_pb2_grpc.OrchestratorServiceAsyncStub) -> None:
        request = orchestrator.StreamEventsRequest(filter=self._filter, start=orchestrator.STREAM_START_EARLIEST)
        if self.cursor:
            request.start, request.after_cursor = orchestrator.STREAM_START_AFTER, self.cursor
        call = stub.StreamEvents(request)
        self.streams += 1
        try:
            async for response in call:
                self.events.extend(response.events)
                now = asyncio.get_running_loop().time()
                for event in response.events:
                    self.arrived.setdefault(event.sequence, now)
                self.cursor = response.cursor
                self._backoff.reset()
                if self._pause:
                    await asyncio.sleep(self._pause)
                if self._restless is not None and self._restless.random() < 0.1:
                    return
        finally:
            call.cancel()
