"""What is to be told to webhooks: kept in the state until it is delivered, sent side by side, in bounded numbers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from agenthive_server.plugin.api import Clock, Counter, State, StoreUnavailable

from .alerts import Notice
from .egress import Answer, Egress, EgressRefused, Unreachable
from .ledger import Family, Ledger, Rows
from .webhook import (
    GIVE_UP_AFTER,
    Delivery,
    Webhook,
    body_of,
    headers_of,
    next_wait,
    recipients,
    taken,
    worth_repeating,
)

MOST: Final = 1_000
"""Deliveries that wait at once; what comes beyond is dropped and counted."""
TROUBLE: Final = 3
"""Attempts in a row that have to fail before health tells of a webhook."""

DELIVERIES: Final = Family("outbox/", Delivery, "delivery", MOST)


class Outbox:
    """Deliveries that wait. `run` sends them."""

    def __init__(
        self,
        webhooks: Iterable[Webhook],
        egress: Egress,
        state: State,
        clock: Clock,
        *,
        new_id: Callable[[], str],
        chance: Callable[[], float],
        sent: Counter,
        told: Callable[[str, str], None],
    ) -> None:
        """`sent` counts attempts by webhook and outcome; `told(webhook, trouble)` says what is wrong, empty for
        nothing."""
        self._webhooks = {webhook.name: webhook for webhook in webhooks}
        self._egress = egress
        self._ledger = Ledger(state, clock)
        self._state = state
        self._clock = clock
        self._new_id = new_id
        self._chance = chance
        self._sent = sent
        self._told = told
        self._waiting: dict[str, dict[str, Delivery]] = {name: {} for name in self._webhooks}
        self._rang = {name: asyncio.Event() for name in self._webhooks}
        self._failures = dict.fromkeys(self._webhooks, 0)
        # Whether it is this replica that sends, and what was done with lately.
        self.sending = True
        self._lately: deque[str] = deque(maxlen=MOST)

    async def load(self) -> None:
        """Take up what was not delivered before the last stop. What is for a webhook that is gone is dropped."""
        gone = []
        self.sending = True
        for waiting in self._waiting.values():
            waiting.clear()
        for delivery in await self._ledger.all(DELIVERIES):
            if delivery.webhook in self._waiting:
                self._waiting[delivery.webhook][delivery.id] = delivery
            else:
                gone.append(DELIVERIES.key(delivery.id))
        if gone:
            await self._state.delete_many(gone)

    async def look(self) -> None:
        """Send what another replica wrote: an alert may be acknowledged anywhere."""
        found = await self._ledger.all(DELIVERIES)
        self.send(each for each in found if each.webhook in self._waiting and each.id not in self._lately)

    @property
    def waiting(self) -> int:
        """How many deliveries wait."""
        return sum(map(len, self._waiting.values()))

    def write(self, rows: Rows, notices: Iterable[Notice], now: float) -> list[Delivery]:
        """Put the deliveries for what changed into the change of the alerts; `send` is called when that is durable."""
        made: list[Delivery] = []
        for notice in notices:
            for webhook in recipients(self._webhooks, notice):
                if self.waiting + len(made) >= MOST:
                    self._sent.add(1, webhook.name, "dropped")
                    continue
                body = body_of(notice, now)
                delivery = Delivery(id=f"msg_{self._new_id()}", webhook=webhook.name, body=body, created=now, due=now)
                rows.put(DELIVERIES, delivery.id, delivery)
                made.append(delivery)
        return made

    def send(self, deliveries: Iterable[Delivery]) -> None:
        """Send deliveries that are durable; where another replica sends, it looks for them."""
        for delivery in deliveries if self.sending else ():
            self._waiting[delivery.webhook].setdefault(delivery.id, delivery)
            self._rang[delivery.webhook].set()

    async def run(self) -> None:
        """Send what waits, each webhook by itself, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for webhook in self._webhooks.values():
                group.create_task(self._serve(webhook), name=f"webhook/{webhook.name}")
            await asyncio.get_running_loop().create_future()

    async def _serve(self, webhook: Webhook) -> None:
        waiting, rang = self._waiting[webhook.name], self._rang[webhook.name]
        while True:
            delivery = min(waiting.values(), key=lambda each: each.due, default=None)
            left = delivery.due - self._clock.now() if delivery else None
            if delivery is None or (left is not None and left > 0):
                rang.clear()
                await self._rest(rang, left)
                continue
            await self._attempt(webhook, delivery)

    async def _rest(self, rang: asyncio.Event, seconds: float | None) -> None:
        """Wait until something new is to be sent, or for so long."""
        waits: list[asyncio.Task[object]] = [asyncio.create_task(rang.wait())]
        if seconds is not None:
            waits.append(asyncio.create_task(_sleep(self._clock, seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _attempt(self, webhook: Webhook, delivery: Delivery) -> None:
        now = self._clock.now()
        answer: Answer | None = None
        try:
            answer = await self._egress.post(webhook.url, delivery.body.encode(), headers_of(webhook, delivery, now))
            trouble = "" if taken(answer) else f"answered {answer.status}"
        except (Unreachable, EgressRefused) as error:
            trouble = str(error)
            if isinstance(error, EgressRefused):
                answer = Answer(403)
        self._note(webhook, trouble)
        if not trouble:
            await self._done(webhook, delivery, "delivered")
        elif (answer is not None and not worth_repeating(answer)) or now - delivery.created > GIVE_UP_AFTER:
            await self._done(webhook, delivery, "given_up")
        else:
            await self._again(webhook, delivery, answer)

    def _note(self, webhook: Webhook, trouble: str) -> None:
        failures = self._failures[webhook.name] = self._failures[webhook.name] + 1 if trouble else 0
        self._told(webhook.name, trouble if failures >= TROUBLE else "")

    async def _done(self, webhook: Webhook, delivery: Delivery, outcome: str) -> None:
        self._sent.add(1, webhook.name, outcome)
        self._waiting[webhook.name].pop(delivery.id, None)
        self._lately.append(delivery.id)
        # What cannot be removed now is told once more after the next start: at least once is what was promised.
        with suppress(StoreUnavailable):
            await self._state.delete(DELIVERIES.key(delivery.id))

    async def _again(self, webhook: Webhook, delivery: Delivery, answer: Answer | None) -> None:
        self._sent.add(1, webhook.name, "failed")
        attempts = delivery.attempts + 1
        wait = next_wait(attempts, self._chance, answer.retry_after if answer else None)
        later = replace(delivery, attempts=attempts, due=self._clock.now() + wait)
        self._waiting[webhook.name][delivery.id] = later
        with suppress(StoreUnavailable):
            await self._state.put(DELIVERIES.key(delivery.id), DELIVERIES.pack(later))


async def _sleep(clock: Clock, seconds: float) -> None:
    await clock.sleep(seconds)
