"""Callers for proofs: they delegate, wait, cancel and repeat themselves, and remember all that was acknowledged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from agenthive.client import Client
from agenthive.errors import Cancelled, DeadlineExceeded, HiveError, Unavailable, Unknown
from agenthive.payload import payload
from agenthive.tasks import TERMINAL_STATES
from agenthive.v1 import orchestrator_service_pb2 as orchestrator
from agenthive.v1 import task_pb2

T = TypeVar("T")

_PASSING = (Unavailable, DeadlineExceeded, Cancelled, Unknown)
_IN_HAND = 12
"""Tasks a caller has under way at once."""


@dataclass
class Acknowledged:
    """What callers were told, and may count on from then on."""

    tasks: set[str] = field(default_factory=set)
    cancels: set[str] = field(default_factory=set)
    retries: set[str] = field(default_factory=set)
    ended: dict[str, task_pb2.Task] = field(default_factory=dict)
    calls: int = 0
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)


class Caller:
    """One caller with a client of its own. It repeats a call under the same request id until it has an answer."""

    def __init__(
        self, client: Client, name: str, capabilities: Sequence[str], chance: random.Random, known: Acknowledged
    ) -> None:
        """`capabilities`: what its tasks may ask for; an empty one stands for any agent."""
        self._client = client
        self._name = name
        self._capabilities = capabilities
        self._chance = chance
        self._known = known
        self._open: list[str] = []
        self._specs: dict[str, task_pb2.TaskSpec] = {}
        self._made: dict[str, str] = {}
        self._number = 0
        self.stopped = False

    async def run(self) -> None:
        """Call until `stopped`; then wait for the end of every task. Raises errors that repeating would not cure."""
        steps = [self._delegate, self._delegate_many, self._wait, self._cancel, self._again]
        while not self.stopped:
            step = self._delegate if not self._open else self._chance.choices(steps, (5, 1, 6, 1, 1))[0]
            if len(self._open) >= _IN_HAND:
                step = self._wait
            await step()
        while self._open:
            await self._wait(limit=10.0)

    async def _delegate(self) -> None:
        spec, request_id = self._new_spec(), self._request_id()
        task = await self._insist(lambda: self._client.delegate("job", spec=spec, request_id=request_id))
        self._made[request_id] = task.task_id
        self._specs[request_id] = spec
        self._note(task.task_id)

    async def _delegate_many(self) -> None:
        request_id = self._request_id()
        first, rest = f"{request_id}.first", [f"{request_id}.{n}" for n in range(3)]
        tasks = [orchestrator.NewTask(task_id=first, spec=self._new_spec())]
        tasks += [orchestrator.NewTask(task_id=each, spec=self._new_spec(first)) for each in rest]
        accepted = await self._insist(lambda: self._client.delegate_many(tasks, request_id=request_id))
        if [each.task_id for each in accepted] != [first, *rest]:
            self._known.wrong.append(f"{request_id}: {accepted}")
        for each in accepted:
            self._note(each.task_id)

    async def _wait(self, limit: float = 0.3) -> None:
        task_id = self._chance.choice(self._open)
        task = await self._insist(lambda: self._client.wait_task(task_id, timeout=limit))
        if task.state == task_pb2.TASK_STATE_QUARANTINED:
            # Three times the runner was killed below it: that is the test's doing.
            request_id = self._request_id()
            self._known.retries.add(task_id)
            await self._insist(lambda: self._client.retry_task(task_id, request_id=request_id))
        elif task.state in TERMINAL_STATES:
            self._open.remove(task_id)
            self._known.ended[task_id] = task

    async def _cancel(self) -> None:
        task_id, request_id = self._chance.choice(self._open), self._request_id()
        await self._insist(lambda: self._client.cancel_task(task_id, request_id=request_id))
        self._known.cancels.add(task_id)

    async def _again(self) -> None:
        """Repeat an earlier call: the same outcome, and nothing new."""
        if not self._made:
            return
        request_id = self._chance.choice(list(self._made))
        spec = self._specs[request_id]
        task = await self._insist(lambda: self._client.delegate("job", spec=spec, request_id=request_id))
        if task.task_id != self._made[request_id]:
            self._known.wrong.append(f"{request_id} made {self._made[request_id]}, repeated {task.task_id}")

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                answer = await call()
            except HiveError as error:
                if not isinstance(error, _PASSING):
                    raise
                self._known.repeated += 1
                await asyncio.sleep(0.05)
            else:
                self._known.calls += 1
                return answer

    def _note(self, task_id: str) -> None:
        self._open.append(task_id)
        self._known.tasks.add(task_id)

    def _request_id(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number}"

    def _new_spec(self, depends_on: str = "") -> task_pb2.TaskSpec:
        chance = self._chance
        wanted = chance.choice(self._capabilities)
        spec = task_pb2.TaskSpec(
            type="job",
            priority=chance.randint(1, 5),
            required_capabilities=[wanted] if wanted else [],
            depends_on=[depends_on] if depends_on else [],
            dependency_policy=task_pb2.DEPENDENCY_POLICY_RELEASE,
        )
        spec.retry_policy.initial_interval.FromMilliseconds(50)
        spec.retry_policy.maximum_interval.FromMilliseconds(500)
        job = {"number": chance.randrange(10**9), "seconds": chance.choice((0.0, 0.0, 0.05, 0.3))}
        spec.input.CopyFrom(payload({**job, "fails": chance.random() < 0.05}))
        return spec
