"""Callers of a fleet: several work on the same tasks, each call goes to any replica, and every one is written down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from agenthive.client import Client
from agenthive.payload import payload
from agenthive.tasks import TERMINAL_STATES
from agenthive.v1 import task_pb2
from agenthive.v1.task_pb2 import Task

from agenthive_server.testing.task_operations import READING

from .recorder import Recorder

_VERBS: Final = ("delegate", "get", "wait", "cancel", "pause", "resume", "retry")
_WEIGHTS: Final = (6, 5, 3, 1, 4, 2, 1)

_ONE_TRY: Final = 2.5
"""Seconds after which an unanswered request is sent elsewhere."""

_LAST: Final = 12
"""Tasks, the newest, that callers talk about."""


class Board:
    """The tasks all callers know of."""

    def __init__(self) -> None:
        self.tasks: list[str] = []


class Heard(NamedTuple):
    """What a caller heard in the end, and from whom."""

    task: Task | None
    via: str


class FleetCaller:
    """A caller whose plan follows from its seed: when it calls, what, about which task, and where it asks first."""

    def __init__(
        self,
        name: str,
        clients: Mapping[str, Client],
        board: Board,
        recorder: Recorder,
        seed: int,
        *,
        capabilities: Sequence[str] = ("",),
        pace: float = 0.15,
    ) -> None:
        """`clients` by the name of what they talk to; `pace`: seconds between calls, on average."""
        self._name = name
        self._clients = clients
        self._board = board
        self._recorder = recorder
        self._plan = random.Random(seed)
        # Repeats depend on the moment; what they draw must not move the plan.
        self._elsewhere = random.Random(seed + 1)
        self._capabilities = capabilities
        self._pace = pace
        self._number = 0
        self.stopped = False

    async def run(self) -> None:
        """Call until `stopped`."""
        plan = self._plan
        while not self.stopped:
            wait, which, patient, hasty = plan.expovariate(1 / self._pace), plan.random(), plan.random(), plan.random()
            (verb,) = plan.choices(_VERBS, _WEIGHTS)
            spec = self._spec()
            await asyncio.sleep(wait)
            patience = 20.0 if patient > 0.15 else 0.0
            if verb == "delegate" or not self._board.tasks:
                await self._follow_up("delegate", await self._delegate(spec, patience), hasty)
            else:
                known = self._board.tasks[-_LAST:]
                await self._follow_up(verb, await self._call(verb, known[int(which * len(known))], patience), hasty)

    async def _follow_up(self, verb: str, heard: Heard, hasty: float) -> None:
        """Go on at once, and elsewhere, from what was just changed: the moment at which others may not know of it."""
        if heard.task is None or verb in READING:
            return
        if verb == "pause" and hasty < 0.6:
            await self._call("resume", heard.task.task_id, 0.0, not_at=heard.via)
        else:
            others = (via for via in self._clients if via != heard.via)
            await asyncio.gather(*(self._call("get", heard.task.task_id, 0.0, at=via) for via in others))

    async def finish(self, task_id: str) -> Task:
        """See a task to its end: whoever paused it is gone, so it goes on. Returns it."""
        while True:
            task = (await self._call("wait", task_id, 60.0)).task
            if task is not None and task.state in TERMINAL_STATES:
                return task
            if task is not None and task.state == task_pb2.TASK_STATE_PAUSED:
                await self._call("resume", task_id, 60.0)

    async def _delegate(self, spec: task_pb2.TaskSpec, patience: float) -> Heard:
        self._number += 1
        task_id = request_id = f"{self._name}-task-{self._number}"
        self._board.tasks.append(task_id)

        def send(client: Client) -> Awaitable[Task]:
            return client.delegate("job", task_id=task_id, spec=spec, request_id=request_id, timeout=_ONE_TRY)

        return await self._record("delegate", task_id, send, patience, list(self._clients))

    async def _call(self, verb: str, task_id: str, patience: float, *, at: str = "", not_at: str = "") -> Heard:
        self._number += 1
        request_id = f"{self._name}-{self._number}"
        sends: dict[str, Callable[[Client], Awaitable[Task]]] = {
            "get": lambda client: client.get_task(task_id, timeout=_ONE_TRY),
            "wait": lambda client: client.wait_task(task_id, timeout=0.3),
            "cancel": lambda client: client.cancel_task(task_id, request_id=request_id, timeout=_ONE_TRY),
            "pause": lambda client: client.pause_task(task_id, request_id=request_id, timeout=_ONE_TRY),
            "resume": lambda client: client.resume_task(task_id, request_id=request_id, timeout=_ONE_TRY),
            "retry": lambda client: client.retry_task(task_id, request_id=request_id, timeout=_ONE_TRY),
        }
        places = [at] if at else [via for via in self._clients if via != not_at] or list(self._clients)
        return await self._record(verb, task_id, sends[verb], patience, places)

    async def _record(
        self,
        verb: str,
        task_id: str,
        send: Callable[[Client], Awaitable[Task]],
        patience: float,
        places: Sequence[str],
    ) -> Heard:
        asked: list[str] = []

        def ask() -> tuple[str, Awaitable[Task]]:
            asked.append(self._elsewhere.choice(places))
            return asked[-1], send(self._clients[asked[-1]])

        task = await self._recorder.call(self._name, verb, task_id, ask, patience=patience)
        return Heard(task, asked[-1])

    def _spec(self) -> task_pb2.TaskSpec:
        plan = self._plan
        wanted = plan.choice(self._capabilities)
        spec = task_pb2.TaskSpec(
            type="job", priority=plan.randint(1, 5), required_capabilities=[wanted] if wanted else []
        )
        spec.retry_policy.initial_interval.FromMilliseconds(50)
        spec.retry_policy.maximum_interval.FromMilliseconds(500)
        job = {"number": plan.randrange(10**9), "seconds": plan.choice((0.0, 0.05, 0.3, 1.5))}
        spec.input.CopyFrom(payload({**job, "fails": plan.random() < 0.05}))
        return spec
