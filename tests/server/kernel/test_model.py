"""The kernel against a model written from the semantics alone: its states are always ones the model allows."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from typing import Any

import pytest
from agenthive_server.kernel.agents import AgentSpec, RestartPolicy
from agenthive_server.kernel.errors import NotFound, Refused
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.session_items import Accept, Ask, Beat, HandBack, Hello, HostedAgent, Item, Reject, Result
from agenthive_server.kernel.tasks import ErrorClass, Question, RetryPolicy, TaskError, Timeouts
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedWorker, open_hive
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from .model import OVER, Model, Task

E = EventType

EXAMPLES = 60
STEPS = 50
PARTS = 4

agents = st.sampled_from(["a", "b"])
picks = st.integers(min_value=0, max_value=1_000)
BY_CALLERS = {
    E.TASK_DELEGATED,
    E.TASK_STARTED,
    E.TASK_REPORTED,
    E.TASK_SUCCEEDED,
    E.TASK_CANCEL_REQUESTED,
    E.TASK_PAUSED,
    E.TASK_RESUMED,
    E.TASK_INPUT_REQUESTED,
    E.TASK_INPUT_RECEIVED,
    E.TASK_SENT_BACK,
    E.TASK_RETRIED,
}
"""What is never told by itself: the rules have moved the model already."""
BOTH = {E.TASK_REQUEUED, E.TASK_RETRY_SCHEDULED, E.TASK_FAILED, E.TASK_CANCELED, E.TASK_QUARANTINED}


class Machine(RuleBasedStateMachine):
    """Does things to a hive and to the model, and compares."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.model = Model()
        self.workers: dict[str, PlayedWorker] = {}
        self._ids = itertools.count(1)
        self._followed = 0

    def teardown(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    @initialize()
    def begin(self) -> None:
        self.hive: Hive = self._runner.run(self._stack.enter_async_context(open_hive()))

    # Keeping up -------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.hive.clock.now()

    def do(self, coroutine: Any) -> Any:
        """Run something to its end; what the kernel refuses comes back as the error."""

        async def run() -> Any:
            try:
                return await coroutine
            except (Refused, NotFound) as error:
                return error

        return self._runner.run(run())

    def catch_up(self, *touched: str) -> None:
        """Let everything that can happen happen, follow it in the model, and compare."""
        Machine.steps += 1
        self._runner.run(self._catch_up(frozenset(touched)))

    async def _catch_up(self, touched: frozenset[str]) -> None:
        await self.hive.settle()
        skip = set(touched)
        for event in await self.hive.store.read_events(self._followed, 10_000):
            self._followed = event.sequence
            self._follow(event, skip)
        self.model.must(self.now)
        for task in self.model.tasks.values():
            real = await self.hive.task(task.id)
            lease = real.lease
            assert str(real.state) == task.state, (real, task)
            assert (real.attempt, real.lease_epoch) == (task.epoch, task.epoch)
            assert (real.counted_attempts, real.lost_leases) == (task.counted, task.lost), (real, task)
            assert (lease.agent_id if lease else "", bool(lease and lease.start_time)) == (task.agent, task.started)
            assert (real.end_time > 0) == (task.state in OVER)
        for name in self.model.current:
            held = [task for task in self.model.tasks.values() if task.agent == name]
            assert self.hive.kernel.index.open_leases((NAMESPACE, name)) == len(held)

    def _follow(self, event: Event, skip: set[str]) -> None:
        if event.type is E.SESSION_ENDED:
            self.model.ended(event.session_id, event.time)
        task = self.model.tasks.get(event.task_id)
        if task is None or event.type in BY_CALLERS:
            return
        if event.type is E.TASK_ASSIGNED:
            self.model.assigned(task, event.agent_id, event.session_id, event.time)
        elif event.type in BOTH:
            # The first of a task the rule has touched is the rule's own effect, which the model has followed already.
            if task.id in skip:
                skip.discard(task.id)
            elif event.type is E.TASK_REQUEUED:
                self.model.requeued(task, event.data["reason"], event.time)
            else:
                self.model.lapsed(task, event.time)

    # Callers ----------------------------------------------------------------------------------------------------------

    def pick(self, number: int) -> Task:
        return list(self.model.tasks.values())[number % len(self.model.tasks)]

    @rule(
        priority=st.sampled_from([1, 3]),
        maximum=st.sampled_from([1, 2, 3]),
        review=st.booleans(),
        close=st.sampled_from([25.0, 3_600.0]),
    )
    def delegate(self, priority: int, maximum: int, review: bool, close: float) -> None:
        name = f"t{next(self._ids)}"
        self.model.delegate(name, priority, maximum, review, close, self.now)
        self.do(
            self.hive.delegate(
                name,
                priority=priority,
                requires_review=review,
                retry=RetryPolicy(maximum_attempts=maximum),
                timeouts=Timeouts(start_to_close=close, heartbeat=3_600.0),
            )
        )
        self.catch_up(name)

    def change(self, verb: str, task: Task, *arguments: object) -> None:
        """Call a verb on both; they must agree on what it answers."""
        before = task.state
        events = len(self.model.tasks) and before
        method = getattr(self.hive.kernel.tasks, verb)
        known = {"cancel": (), "review": (arguments[0], self.now) if arguments else ()}.get(verb, (self.now,))
        try:
            getattr(self.model, verb)(task, *known)
            wanted: str | None = task.state
        except LookupError:
            wanted = None
        answer = self.do(method(self.hive.caller(), task.id, *arguments))
        if wanted is None:
            assert isinstance(answer, Refused), (verb, events, answer)
        else:
            assert str(answer.state) == wanted, (verb, before, answer)
        # A task that was queued by the call has no event of both kinds but for these.
        moved = before != task.state and (task.state in ("CANCELED", "FAILED") or before == "RETRY_WAIT")
        self.catch_up(*([task.id] if moved and wanted is not None and verb != "pause" else []))

    @precondition(lambda self: self.model.tasks)
    @rule(number=picks)
    def cancel(self, number: int) -> None:
        self.change("cancel", self.pick(number), "no")

    @precondition(lambda self: self.model.tasks)
    @rule(number=picks)
    def pause(self, number: int) -> None:
        self.change("pause", self.pick(number))

    @precondition(lambda self: any(t.state == "PAUSED" for t in self.model.tasks.values()))
    @rule(number=picks)
    def resume(self, number: int) -> None:
        paused = [t for t in self.model.tasks.values() if t.state == "PAUSED"]
        self.change("resume", paused[number % len(paused)])

    @precondition(lambda self: self.model.tasks)
    @rule(number=picks)
    def resume_whatever(self, number: int) -> None:
        self.change("resume", self.pick(number))

    @precondition(lambda self: self.model.tasks)
    @rule(number=picks)
    def retry(self, number: int) -> None:
        self.change("retry", self.pick(number))

    @precondition(lambda self: self.model.tasks)
    @rule(number=picks)
    def respond(self, number: int) -> None:
        self.change("respond", self.pick(number), Payload(data=b"yes"))

    @precondition(lambda self: any(t.state == "REPORTED" for t in self.model.tasks.values()))
    @rule(number=picks, accepted=st.booleans())
    def review(self, number: int, accepted: bool) -> None:
        reported = [t for t in self.model.tasks.values() if t.state == "REPORTED"]
        self.change("review", reported[number % len(reported)], accepted, "well")

    # Workers ----------------------------------------------------------------------------------------------------------

    def say(self, number: int, stale: int, make: Any, note: Any) -> None:
        """Let the holder of a task (or, `stale`, one that is not) say something about it."""
        held = [t for t in self.model.tasks.values() if t.held and self.model.sessions[t.session].open]
        task = held[number % len(held)]
        if stale == 1:
            task = self.pick(number)
        session_id = task.session if task.held and stale != 2 else self.model.current[min(self.workers)]
        session = self.model.sessions[session_id]
        if not session.open or session.ended or self.workers[session.agent].session_id != session_id:
            return
        epoch = max(0, task.epoch - (1 if stale == 3 else 0))
        item: Item = make(task.id, epoch)
        before = task.state
        expected = note(task, session_id, epoch)
        refusals = self.do(self.workers[session.agent].say(item))
        assert [refusal.reason for refusal in refusals] == ([expected] if expected else []), (item, before, refusals)
        moved = task.reported == epoch and (before != task.state or before == "PAUSED")
        self.catch_up(*([task.id] if moved and not expected and task.state not in ("SUCCEEDED", "REPORTED") else []))

    held = precondition(
        lambda self: any(t.held and self.model.sessions[t.session].open for t in self.model.tasks.values())
    )
    stales = st.sampled_from([0, 0, 0, 0, 1, 2, 3])

    @held
    @rule(number=picks, stale=stales)
    def accept(self, number: int, stale: int) -> None:
        self.say(number, stale, Accept, lambda t, s, e: self.model.accept(t, s, e, self.now))

    @held
    @rule(number=picks, stale=stales)
    def reject(self, number: int, stale: int) -> None:
        until = self.now + 4.0
        self.say(
            number,
            stale,
            lambda name, epoch: Reject(name, epoch, "busy", 4.0),
            lambda t, s, e: self.model.reject(t, s, e, until, self.now),
        )

    @held
    @rule(number=picks, stale=stales)
    def hand_back(self, number: int, stale: int) -> None:
        self.say(number, stale, HandBack, lambda t, s, e: self.model.hand_back(t, s, e, self.now))

    @held
    @rule(number=picks, stale=stales)
    def result(self, number: int, stale: int) -> None:
        self.say(
            number,
            stale,
            lambda name, epoch: Result(name, epoch, result=Payload(data=b"x")),
            lambda t, s, e: self.model.result(t, s, e, self.now),
        )

    @held
    @rule(number=picks, stale=stales, kind=st.sampled_from(list(ErrorClass)), delay=st.sampled_from([None, None, 2.0]))
    def error(self, number: int, stale: int, kind: ErrorClass, delay: float | None) -> None:
        error = TaskError(error_class=kind, reason="ODD", next_retry_delay=delay)
        self.say(
            number,
            stale,
            lambda name, epoch: Result(name, epoch, error=error),
            lambda t, s, e: self.model.error(t, s, e, kind.value, delay, self.now),
        )

    @held
    @rule(number=picks, stale=stales, release=st.booleans())
    def ask(self, number: int, stale: int, release: bool) -> None:
        question = Question(question="which?", release_slot=release)
        self.say(
            number,
            stale,
            lambda name, epoch: Ask(name, epoch, question),
            lambda t, s, e: self.model.ask(t, s, e, release, self.now),
        )

    # Sessions ---------------------------------------------------------------------------------------------------------

    def hello(self, name: str, session_id: str = "") -> Any:
        spec = AgentSpec(restart=RestartPolicy())
        hello = Hello(session_id=session_id, agents=(HostedAgent(agent_id=name, spec=spec),))
        return self.do(self.hive.worker(hello=hello))

    @rule(name=agents)
    def connect(self, name: str) -> None:
        lost = [t.id for t in self.model.tasks.values() if t.agent == name]
        worker = self.hello(name)
        self.model.connected(worker.session_id, name, self.now)
        self.workers[name] = worker
        self.catch_up(*lost)

    @precondition(lambda self: self.workers)
    @rule(name=agents)
    def lose(self, name: str) -> None:
        if name in self.workers:
            self.do(self.workers[name].lose())
            self.model.lost(self.workers[name].session_id, self.now)
            self.catch_up()

    @precondition(lambda self: self.workers)
    @rule(name=agents)
    def resume_session(self, name: str) -> None:
        if name not in self.workers:
            return
        session_id = self.workers[name].session_id
        answer = self.hello(name, session_id)
        if self.model.resumed(session_id, self.now):
            assert answer.session_id == session_id
            self.workers[name] = answer
        else:
            assert isinstance(answer, NotFound)
        self.catch_up()

    # Time -------------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 12.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-3:
            self._beat()
            self._runner.run(self.hive.clock.advance(min(6.0, end - self.now)))
            self.catch_up()
        self._beat()

    def _beat(self) -> None:
        for worker in self.workers.values():
            beats = [Beat(task_id=t.id, epoch=t.epoch) for t in self.model.tasks.values() if t.held]
            self.hive.kernel.sessions.beat(NAMESPACE, worker.session_id, worker.welcome.epoch, beats)


@pytest.mark.simulation
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_kernel_does_what_the_model_allows(part: int, soak_seed: int, soak_rounds: int | None) -> None:
    chosen = settings(
        max_examples=max(1, soak_rounds // PARTS) if soak_rounds else EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        # Making an example smaller takes minutes, and each replays from its seed as it is.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    before, run = Machine.steps, 0
    while not run or (not soak_rounds and Machine.steps - before < 10_000 // PARTS):
        # How many steps an example takes is chance: the runs go on until they are enough.
        machine = seed((soak_seed + run * 1_000) * PARTS + part)(type(f"Machine{part}", (Machine,), {}))
        run_state_machine_as_test(machine, settings=chosen)
        run += 1
