"""The callers of a simulation: they delegate, change their minds, give up waiting and repeat what was not answered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import Conflict, KernelError, NotFound, OutcomeUnknown, Overloaded, StoreUnavailable
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import (
    ChildrenPolicy,
    DependencyPolicy,
    RetryPolicy,
    Strategy,
    Task,
    TaskSpec,
    TaskState,
    Timeouts,
)

if TYPE_CHECKING:
    from .simulation import World

T = TypeVar("T")

NAMESPACE = "default"
TRANSIENT = (StoreUnavailable, Overloaded, OutcomeUnknown)


class SimulatedCaller:
    """Calls verbs at random for as long as there is chaos."""

    def __init__(self, world: World, name: str, local: AgentSpec) -> None:
        self._world = world
        self._name = name
        self._local = local
        self._calls = itertools.count(1)
        self._tasks: list[str] = []
        self._agents: list[str] = []

    async def run(self) -> None:
        """Act until the world is calm."""
        acts = [self._delegate] * 5 + [self._change] * 5 + [self._tend] * 3 + [self._send, self._ask]
        while not self._world.calm:
            await self._world.pause(0.8)
            await self._world.dice.choice(acts)()

    async def _mutate(self, verb: Callable[[Kernel, Caller], Coroutine[Any, Any, T]]) -> T | None:
        """Call, and repeat under the same request id what was not answered.

        None when there was no answer or a refusal.
        """
        from .simulation import Gone

        world = self._world
        request_id = f"{self._name}{next(self._calls)}" if world.dice.random() < 0.8 else ""
        caller = Caller(namespace=NAMESPACE, principal=self._name, method="m", request_id=request_id, digest="d")
        for _ in range(6):
            try:
                return await world.call(lambda kernel: verb(kernel, caller))
            except Conflict as error:
                if error.reason == "CONFLICT":
                    raise AssertionError("a change kept colliding") from error
                return None
            except (Gone, *TRANSIENT):
                if not request_id or world.ended:
                    return None
                await world.pause(0.7)
            except KernelError:
                return None
        return None

    # Tasks ----------------------------------------------------------------------------------------------------------

    async def _delegate(self) -> None:
        world, dice = self._world, self._world.dice
        new: list[NewTask] = []
        for _ in range(dice.choice([1, 1, 1, 2, 4])):
            name = f"{self._name}-t{len(self._tasks)}"
            self._tasks.append(name)
            new.append(NewTask(id=name, spec=self._spec()))
        first: set[str] = set()
        for _ in range(dice.choice([1, 1, 1, 2])):
            made = await self._mutate(lambda kernel, caller: kernel.tasks.delegate(caller, new))
            if made is None:
                return
            names = {task.id for task in made}
            assert names == {n.id for n in new}
            assert not first, "the same tasks were delegated twice"
            first = names
            world.delegated |= names
            for task in made:
                world.revisions[task.id] = max(task.revision, world.revisions.get(task.id, 0))
            stored = {task.id for task in await world.tasks()}
            assert names <= stored, "acknowledged before it was stored"

    def _spec(self) -> TaskSpec:
        dice = self._world.dice
        known = self._tasks[-12:-1]
        depends_on = tuple(dice.sample(known, min(len(known), dice.choice([0, 0, 0, 1, 2]))))
        parent = dice.choice(known) if known and dice.random() < 0.25 else ""
        pinned = dice.choice(["", "", "", "", "", "", "able", "p1"])
        return TaskSpec(
            type="work",
            priority=dice.choice([1, 3, 3, 5]),
            fairness_key=dice.choice(["", "u", "v"]),
            required_capabilities=() if pinned else dice.choice([(), (), ("a",), ("b",), ("a", "b")]),
            role="" if pinned else dice.choice(["", "", "", "coder"]),
            agent_id=pinned,
            affinity_key=dice.choice(["", "", "chat"]),
            strategy=dice.choice([None, *Strategy]),
            depends_on=depends_on,
            dependency_policy=dice.choice(list(DependencyPolicy)),
            parent_task_id=parent if parent not in depends_on else "",
            children_policy=dice.choice(list(ChildrenPolicy)),
            requires_review=dice.random() < 0.15,
            retry=RetryPolicy(initial_interval=0.5, maximum_interval=4.0, maximum_attempts=dice.choice([1, 2, 3])),
            timeouts=Timeouts(
                schedule_to_start=dice.choice([20.0, 86_400.0, 86_400.0]),
                start_to_close=dice.choice([15.0, 40.0]),
                schedule_to_close=dice.choice([45.0, 86_400.0, 86_400.0]),
                heartbeat=12.0,
                progress=dice.choice([0.0, 0.0, 10.0]),
                input=dice.choice([0.0, 8.0]),
            ),
        )

    async def _change(self) -> None:
        from .simulation import Gone

        if not self._tasks:
            return
        dice = self._world.dice
        name = dice.choice(self._tasks[-15:])
        answer = Payload(data=b"answer")
        verbs: list[Callable[[Kernel, Caller], Coroutine[Any, Any, Task]]] = [
            lambda k, c: k.tasks.cancel(c, name, "not wanted"),
            lambda k, c: k.tasks.pause(c, name),
            lambda k, c: k.tasks.resume(c, name),
            lambda k, c: k.tasks.resume(c, name),
            lambda k, c: k.tasks.retry(c, name),
            lambda k, c: k.tasks.respond(c, name, answer),
            lambda k, c: k.tasks.review(c, name, dice.random() < 0.6, "look again"),
        ]
        changed = await self._mutate(dice.choice(verbs))
        if changed is not None:
            revisions = self._world.revisions
            revisions[name] = max(changed.revision, revisions.get(name, 0))
            with suppress(Gone, KernelError):
                await self._read(name)

    async def _ask(self) -> None:
        from .simulation import Gone

        if not self._tasks:
            return
        name = self._world.dice.choice(self._tasks[-15:])
        try:
            await self._read(name)
            task = await self._world.call(lambda k: k.queries.wait(NAMESPACE, name, timeout=3.0))
            assert name == task.id
            await self._world.call(lambda k: k.queries.explain(NAMESPACE, task_id=name))
        except (Gone, KernelError):
            pass

    async def _read(self, name: str) -> None:
        """Read a task, wherever: what anybody was told of before is there."""
        known = self._world.revisions.get(name, 0)
        try:
            task, _ = await self._world.call(lambda k: k.queries.get(NAMESPACE, name))
        except NotFound:
            assert not known, f"{name} is not there, though revision {known} of it was acknowledged"
            raise
        assert task.revision >= known, f"{name} was shown at {task.revision} after {known} was acknowledged"
        self._world.revisions[name] = max(task.revision, self._world.revisions.get(name, 0))

    async def _send(self) -> None:
        dice = self._world.dice
        payload = Payload(data=b"hello")
        if dice.random() < 0.3:
            await self._mutate(lambda k, c: k.messages.broadcast(c, payload=payload, ttl=20.0))
        elif dice.random() < 0.5 and self._tasks:
            name = dice.choice(self._tasks[-15:])
            await self._mutate(lambda k, c: k.messages.send(c, task_id=name, payload=payload, ttl=20.0))
        else:
            agent = dice.choice(["able", "p1", "single", *self._agents])
            await self._mutate(lambda k, c: k.messages.send(c, agent_id=agent, payload=payload, ttl=20.0))

    # Agents ---------------------------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        dice = self._world.dice
        if len(self._agents) < 2:
            name = f"{self._name}-a{len(self._agents)}"
            self._agents.append(name)
            new = [NewAgent(id=name, spec=self._local)]
            await self._mutate(lambda k, c: k.agents.spawn(c, new))
            return
        # Of the agents whose workers connect by themselves only some are touched: somebody has to be left in the end.
        name = dice.choice([*self._agents, *self._agents, "p2"])
        slots = replace(self._local, slots=dice.choice([1, 2, 3]))
        verbs: list[Callable[[Kernel, Caller], Coroutine[Any, Any, object]]] = [
            lambda k, c: k.agents.shutdown(c, name, "enough", 1.0),
            lambda k, c: k.agents.restart(c, name),
            lambda k, c: k.agents.restart(c, name),
            lambda k, c: k.agents.sleep(c, name, "night"),
            lambda k, c: k.agents.wake(c, name),
            lambda k, c: k.agents.wake(c, name),
        ]
        if name != "p2":
            verbs.append(lambda k, c: k.agents.update(c, name, slots, 0))
        await self._mutate(dice.choice(verbs))


class Caretaker:
    """Answers questions, accepts results and lets paused tasks go on, when all is calm."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self) -> None:
        """Look after whatever waits for a human, until the end."""
        while not self._world.ended:
            for task in await self._world.tasks():
                await self._help(task)
            await self._world.clock.sleep(4.0)

    async def _help(self, task: Task) -> None:
        caller = Caller(namespace=NAMESPACE)
        try:
            if task.state is TaskState.PAUSED:
                await self._world.call(lambda k: k.tasks.resume(caller, task.id))
            elif task.state is TaskState.INPUT_REQUIRED:
                await self._world.call(lambda k: k.tasks.respond(caller, task.id, Payload(data=b"yes")))
            elif task.state is TaskState.REPORTED:
                await self._world.call(lambda k: k.tasks.review(caller, task.id, True, ""))
        except KernelError:
            pass
