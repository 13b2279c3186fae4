"""Hooks inside the verbs: what they may do takes part in the decision, once, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import AgentSpec
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.errors import KernelError, NotFound, PermissionDenied, Refused, Unauthenticated
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.proposals import Completing, Delegating, HookSet, Joining, Proposal, Spawning, Turn
from agenthive_server.kernel.records import Kind, Payload, StateRecord
from agenthive_server.kernel.session_items import Accept, AgentReport, Hello, HostedAgent, Result
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import ErrorClass, RetryPolicy, TaskSpec, TaskState
from agenthive_server.storage.memory import MemoryStore
from agenthive_server.testing.faults import FaultyStore, no_fault
from agenthive_server.testing.hive import NAMESPACE, Hive, PlayedLink, PlayedWorker, open_hive
from agenthive_server.testing.store_model import changing


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


def turn(hook: Callable[[Any], None], *amends: str, plugin: str = "p") -> Callable[[Any], None]:
    """Give a hook its turn, as the plugin host does."""

    def asked(proposal: Proposal) -> None:
        proposal.turn = Turn(plugin, frozenset(amends))
        hook(proposal)
        proposal.leave()

    return asked


def count(proposal: Proposal, key: str = "count") -> None:
    proposal.state.put(key, str(int(proposal.state.get(key) or 0) + 1).encode())


async def counted(hive: Hive, key: str = "count", plugin: str = "p") -> int:
    found = await hive.kernel.state.get(plugin, key)
    return int(found.value) if found else 0


async def events(hive: Hive, *kinds: EventType) -> list[EventType]:
    await hive.settle()
    return [event.type for event in await hive.store.read_events(0, 10_000) if event.type in kinds]


# before_delegate


async def test_an_amended_task_is_recorded_and_assigned_as_amended(hive: Hive) -> None:
    def amend(task: Delegating) -> None:
        task.amend(required_capabilities=("gpu",), labels={**task.spec.labels, "cost": "high"})

    hive.kernel.hooks.swap(HookSet(before_delegate=(turn(amend, "required_capabilities", "labels"),)))
    plain, able = await hive.worker("plain"), await hive.worker("able", capabilities=("gpu",))
    task = await hive.delegate("t", labels={"team": "red"})
    assert task.spec.labels == {"team": "red", "cost": "high"}
    assert [told.task.id for told in able.assignments()] == ["t"]
    assert plain.assignments() == []
    (told,) = [e for e in await hive.store.read_events(0, 100) if e.type is EventType.TASK_DELEGATED]
    assert told.labels == {"team": "red", "cost": "high"}


async def test_hooks_see_what_those_before_them_made_of_it_and_where_it_belongs(hive: Hive) -> None:
    seen: list[tuple[int, tuple[str, ...], str, str]] = []

    def lower(task: Delegating) -> None:
        task.amend(priority=task.spec.priority + 1)

    def look(task: Delegating) -> None:
        seen.append((task.spec.priority, task.ancestors, task.task_id, task.namespace))

    await hive.delegate("root")
    hive.kernel.hooks.swap(HookSet(before_delegate=(turn(lower, "priority"), turn(look, plugin="q"))))
    specs = [
        NewTask(id="child", spec=TaskSpec(type="w", parent_task_id="root")),
        NewTask(id="grandchild", spec=TaskSpec(type="w", priority=1, parent_task_id="child")),
    ]
    await hive.kernel.tasks.delegate(hive.caller(), specs)
    assert seen == [(4, ("root",), "child", NAMESPACE), (2, ("root", "child"), "grandchild", NAMESPACE)]


async def test_a_veto_changes_nothing_and_may_be_repeated(hive: Hive) -> None:
    def veto(task: Delegating) -> None:
        count(task)
        if task.spec.type == "bad":
            raise task.refuse("not today", day="friday")

    hive.kernel.hooks.swap(HookSet(before_delegate=(turn(count, plugin="q"), turn(veto))))
    caller = hive.caller("r")
    specs = [NewTask(id="good", spec=TaskSpec(type="good")), NewTask(id="bad", spec=TaskSpec(type="bad"))]
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            await hive.kernel.tasks.delegate(caller, specs)
        assert caught.value.reason == "VETOED"
        assert caught.value.metadata == {"plugin": "p", "day": "friday"}
    assert (await hive.store.bounds()).head == 0
    assert await hive.store.scan(Kind.STATE) == []
    assert await hive.store.scan(Kind.REQUEST) == []
    await hive.kernel.tasks.delegate(caller, specs[:1])
    assert (await counted(hive), await counted(hive, plugin="q")) == (1, 1)


async def test_a_repeated_call_asks_no_hook(hive: Hive) -> None:
    hive.kernel.hooks.swap(HookSet(before_delegate=(turn(count),)))
    new = [NewTask(id="t", spec=TaskSpec(type="w"))]
    for _ in range(3):
        await hive.kernel.tasks.delegate(hive.caller("r"), new)
    await hive.kernel.tasks.delegate(hive.caller(), new, use_existing=True)
    assert await counted(hive) == 1


async def test_what_many_tasks_add_to_one_value_is_all_there(hive: Hive) -> None:
    hive.kernel.hooks.swap(HookSet(before_delegate=(turn(count),)))
    await hive.kernel.tasks.delegate(hive.caller(), [NewTask(spec=TaskSpec(type="w")) for _ in range(50)])
    await asyncio.gather(*(hive.delegate() for _ in range(50)))
    assert await counted(hive) == 100


async def test_a_hook_that_runs_again_after_a_conflict_has_no_effect_twice() -> None:
    made: list[FaultyStore] = []

    def store(clock: ManualClock) -> FaultyStore:
        made.append(FaultyStore(MemoryStore(clock)))
        return made[0]

    runs = 0

    def hook(task: Delegating) -> None:
        nonlocal runs
        runs += 1
        count(task)
        task.amend(title=f"number {task.state.get('count')!r}")

    async def interfere(group: Sequence[ChangeSet]) -> None:
        # Another replica counts, too, between this decision and its commit.
        made[0].before = no_fault
        other = StateRecord(namespace="p", id="count", revision=1, value=b"41")
        await made[0].commit([changing(other)])

    async with open_hive(store=store) as hive:
        hive.kernel.hooks.swap(HookSet(before_delegate=(turn(hook, "title"),)))
        made[0].before = interfere
        task = await hive.delegate("t")
        assert runs > 1
        assert await counted(hive) == 42
        assert task.spec.title == "number b'42'"
        assert await events(hive, EventType.TASK_DELEGATED) == [EventType.TASK_DELEGATED]


async def test_a_decision_keeps_to_the_hooks_it_began_with(hive: Hive) -> None:
    def switch_off(task: Delegating) -> None:
        hive.kernel.hooks.swap(HookSet())

    def note(task: Delegating) -> None:
        task.state.put(task.task_id, b"seen")

    hive.kernel.hooks.swap(HookSet(before_delegate=(turn(switch_off), turn(note))))
    await hive.delegate("first")
    await hive.delegate("second")
    assert [found.id for found in await hive.kernel.state.scan("p")] == ["first"]


# score_agents


async def test_scores_choose_among_those_that_are_free_and_go_with_their_plugin(hive: Hive) -> None:
    workers = {name: await hive.worker(name, slots=9) for name in ("a", "b", "c")}
    hive.kernel.hooks.swap(
        HookSet(
            score_agents=(lambda _, agent: float(agent.key[1] == "b"), lambda _, agent: 0.4 * (agent.key[1] == "c"))
        )
    )
    for _ in range(3):
        await hive.delegate()
    assert {name: len(worker.assignments()) for name, worker in workers.items()} == {"a": 0, "b": 3, "c": 0}
    hive.kernel.hooks.swap(HookSet())
    for _ in range(6):
        await hive.delegate()
    assert {name: len(worker.assignments()) for name, worker in workers.items()} == {"a": 3, "b": 3, "c": 3}


# before_spawn


async def test_spawned_and_registered_agents_are_recorded_as_amended(hive: Hive) -> None:
    def amend(agent: Spawning) -> None:
        count(agent)
        agent.amend(labels={**agent.spec.labels, "by": agent.principal or "nobody"})

    hive.kernel.hooks.swap(HookSet(before_spawn=(turn(amend, "labels"),)))
    await hive.kernel.agents.spawn(hive.caller("r"), [NewAgent(id="spawned", spec=AgentSpec(driver="process"))])
    await hive.kernel.agents.spawn(hive.caller("r"), [NewAgent(id="spawned", spec=AgentSpec(driver="process"))])
    worker = await hive.worker("registered", labels={"x": "y"})
    await worker.say(AgentReport("reported", "READY", spec=AgentSpec()))
    shown = {agent.id: agent.spec.labels for agent in await hive.store.scan(Kind.AGENT)}  # type: ignore[attr-defined]
    assert shown == {
        "spawned": {"by": "nobody"},
        "registered": {"x": "y", "by": "nobody"},
        "reported": {"by": "nobody"},
    }
    assert await counted(hive) == 3


async def test_a_worker_that_comes_back_does_not_undo_what_was_amended(hive: Hive) -> None:
    def amend(agent: Spawning) -> None:
        count(agent)
        agent.amend(slots=4)

    hive.kernel.hooks.swap(HookSet(before_spawn=(turn(amend, "slots"),)))
    await hive.worker("a")
    await hive.worker("a")
    again = await hive.worker("a", role="tester")
    agent = await hive.kernel.agents.get(NAMESPACE, "a")
    assert (agent.spec.slots, agent.spec.role, agent.session_id) == (4, "tester", again.session_id)
    assert await events(hive, EventType.AGENT_UPDATED) == [EventType.AGENT_UPDATED]
    assert await counted(hive) == 1


async def test_an_agent_that_is_vetoed_is_not_there_whichever_way_it_came(hive: Hive) -> None:
    def veto(agent: Spawning) -> None:
        if agent.spec.role == "intruder":
            raise agent.refuse("not here")

    hive.kernel.hooks.swap(HookSet(before_spawn=(turn(veto),)))
    intruder = AgentSpec(role="intruder")
    with pytest.raises(Refused):
        await hive.kernel.agents.spawn(hive.caller(), [NewAgent(id="fine", spec=AgentSpec()), NewAgent(spec=intruder)])
    with pytest.raises(Refused):
        await hive.worker("a", role="intruder")
    assert (await hive.store.bounds()).head == 0
    worker = await hive.worker("b")
    refusals = await worker.say(AgentReport("c", "READY", spec=intruder), AgentReport("d", "READY", spec=AgentSpec()))
    assert [(refusal.index, refusal.reason) for refusal in refusals] == [(0, "VETOED")]
    with pytest.raises(Refused):
        await hive.worker("b", role="intruder")
    assert {agent.id for agent in await hive.store.scan(Kind.AGENT)} == {"b", "d"}


# before_complete


async def held(hive: Hive, **spec: object) -> tuple[PlayedWorker, int]:
    worker = await hive.worker("a")
    await hive.delegate("t", **spec)
    epoch = worker.assignments()[-1].task.lease_epoch
    await worker.say(Accept("t", epoch))
    return worker, epoch


def sent_back(done: Completing) -> None:
    count(done)
    if b"bad" in (done.result.data or b""):
        done.rework("the tests are missing")


async def test_a_result_sent_back_is_worked_on_again_with_the_reason(hive: Hive) -> None:
    hive.kernel.hooks.swap(HookSet(before_complete=(turn(sent_back),)))
    worker, epoch = await held(hive)
    assert await worker.say(Result("t", epoch, result=Payload(data=b"bad"))) == []
    await hive.settle()
    again = worker.assignments()[-1].task
    assert (again.attempt, again.lease_epoch, again.result) == (2, epoch + 1, None)
    assert [answer.data for answer in again.answers] == [b"the tests are missing"]
    assert again.spec.requires_review is False
    await worker.finish(worker.assignments()[-1])
    done = await hive.task("t")
    assert (done.state, done.counted_attempts, await counted(hive)) == (TaskState.SUCCEEDED, 2, 2)
    kinds = (EventType.TASK_REPORTED, EventType.TASK_SENT_BACK, EventType.TASK_SUCCEEDED)
    assert await events(hive, *kinds) == list(kinds)


async def test_a_result_that_is_reported_again_is_not_judged_again(hive: Hive) -> None:
    hive.kernel.hooks.swap(HookSet(before_complete=(turn(sent_back),)))
    worker, epoch = await held(hive)
    for _ in range(3):
        assert await worker.say(Result("t", epoch, result=Payload(data=b"bad"))) == []
    assert await counted(hive) == 1
    await hive.settle()
    assert (await hive.task("t")).attempt == 2


async def test_sent_back_too_often_it_has_failed(hive: Hive) -> None:
    hive.kernel.hooks.swap(HookSet(before_complete=(turn(sent_back),)))
    worker, epoch = await held(hive, retry=RetryPolicy(maximum_attempts=1))
    await worker.say(Result("t", epoch, result=Payload(data=b"bad")))
    task = await hive.task("t")
    assert (task.state, task.reason) == (TaskState.FAILED, "the tests are missing")


async def test_a_result_may_be_put_in_another_form(hive: Hive) -> None:
    def redact(done: Completing) -> None:
        assert (done.agent_id, done.task.id, done.task.state) == ("a", "t", TaskState.RUNNING)
        done.amend(result=Payload(data=b"***"))

    hive.kernel.hooks.swap(HookSet(before_complete=(turn(redact, "result"),)))
    worker, epoch = await held(hive, requires_review=True)
    await worker.say(Result("t", epoch, result=Payload(data=b"secret")))
    task = await hive.task("t")
    assert (task.state, task.result) == (TaskState.REPORTED, Payload(data=b"***"))


async def test_a_vetoed_result_fails_the_task_for_good(hive: Hive) -> None:
    def veto(done: Completing) -> None:
        raise done.refuse("it leaks a secret")

    hive.kernel.hooks.swap(HookSet(before_complete=(turn(veto),)))
    worker, epoch = await held(hive)
    assert await worker.say(Result("t", epoch, result=Payload(data=b"x"))) == []
    task = await hive.task("t")
    assert (task.state, task.result) == (TaskState.FAILED, None)
    assert task.error is not None
    assert (task.error.error_class, task.error.reason, task.error.message) == (
        ErrorClass.POLICY,
        "VETOED",
        "it leaks a secret",
    )


async def test_where_the_judge_cannot_be_asked_nothing_passes_and_the_task_is_tried_again(hive: Hive) -> None:
    def broken(_: Completing) -> None:
        raise KernelError("the judge is away", reason="PLUGIN_FAILED")

    hive.kernel.hooks.swap(HookSet(before_complete=(turn(broken),)))
    worker, epoch = await held(hive)
    assert await worker.say(Result("t", epoch, result=Payload(data=b"x"))) == []
    task = await hive.task("t")
    assert (task.state, task.result) == (TaskState.RETRY_WAIT, None)
    hive.kernel.hooks.swap(HookSet())
    await hive.advance(5)
    await worker.finish(worker.assignments()[-1])
    assert (await hive.task("t")).state is TaskState.SUCCEEDED


async def test_a_task_that_is_to_end_or_paused_stays_so_when_its_result_is_sent_back(hive: Hive) -> None:
    hive.kernel.hooks.swap(HookSet(before_complete=(turn(sent_back),)))
    worker, epoch = await held(hive)
    await hive.kernel.tasks.pause(hive.caller(), "t")
    await worker.say(Result("t", epoch, result=Payload(data=b"bad")))
    assert (await hive.task("t")).state is TaskState.PAUSED
    await hive.kernel.tasks.resume(hive.caller(), "t")
    await hive.settle()
    epoch = worker.assignments()[-1].task.lease_epoch
    await hive.kernel.tasks.cancel(hive.caller(), "t", "enough")
    await worker.say(Result("t", epoch, result=Payload(data=b"bad")))
    assert (await hive.task("t")).state is TaskState.CANCELED


# before_join


def guarded_door(join: Joining) -> None:
    """Let in by a single-use token `token-NAME`, or by the credential earned with it."""
    names = {agent.agent_id for agent in join.agents}
    if join.reported:
        if not all(join.principal == f"agent:{name}" for name in names):
            raise PermissionDenied("not its agent")
        return
    if join.credential:
        owner = join.state.get(f"credential/{join.credential}")
        if owner is None:
            raise Unauthenticated("unknown credential")
        name = owner.decode()
    else:
        name = join.join_token.removeprefix("token-")
        if not join.join_token or join.state.get(f"used/{name}") is not None:
            raise Unauthenticated("no token, or used before")
        join.state.put(f"used/{name}", b"")
        join.issue(f"secret-of-{name}")
        join.state.put(f"credential/secret-of-{name}", name.encode())
    if names - {name}:
        raise PermissionDenied("another's agent")
    join.principal = f"agent:{name}"


async def knock(hive: Hive, name: str, **hello: Any) -> tuple[PlayedWorker, str]:
    link = PlayedLink()
    hello = {"agents": (HostedAgent(agent_id=name, spec=AgentSpec()),), **hello}
    welcome = await hive.kernel.sessions.connect(NAMESPACE, "", Hello(**hello), link, peer="here", notes={"n": 1})
    return PlayedWorker(hive, welcome, link), welcome.credential


@pytest.fixture
def door(hive: Hive) -> Hive:
    hive.kernel.hooks.swap(HookSet(before_join=(turn(guarded_door),)))
    return hive


async def test_a_token_earns_a_credential_with_which_the_worker_comes_back(door: Hive) -> None:
    first, secret = await knock(door, "a", join_token="token-a")
    assert secret == "secret-of-a"
    assert first.welcome.principal == "agent:a"
    assert "secret" not in repr(first.welcome)
    resumed, none = await knock(door, "a", credential=secret, session_id=first.session_id)
    assert (resumed.session_id, resumed.welcome.resumed, none) == (first.session_id, True, "")
    again, _ = await knock(door, "a", credential=secret)
    assert again.session_id != first.session_id
    (session,) = [s for s in await door.store.scan(Kind.SESSION) if s.id == again.session_id]
    assert session.principal == "agent:a"  # type: ignore[attr-defined]


async def test_of_many_with_the_same_token_one_gets_in(door: Hive) -> None:
    ends = await asyncio.gather(*(knock(door, "a", join_token="token-a") for _ in range(10)), return_exceptions=True)
    assert [type(end) for end in ends].count(tuple) == 1
    assert [type(end) for end in ends].count(Unauthenticated) == 9
    assert len(await door.store.scan(Kind.SESSION)) == 1


@pytest.mark.parametrize(
    ("name", "hello", "error"),
    [
        ("a", {}, Unauthenticated),
        ("a", {"credential": "secret-of-b"}, Unauthenticated),
        ("b", {"join_token": "token-a"}, PermissionDenied),
    ],
)
async def test_who_is_refused_leaves_no_trace(
    door: Hive, name: str, hello: dict[str, Any], error: type[KernelError]
) -> None:
    with pytest.raises(error):
        await knock(door, name, **hello)
    assert (await door.store.bounds()).head == 0
    assert await door.store.scan(Kind.STATE) == []


async def test_a_session_is_resumed_and_replaced_by_whoever_opened_it_only(door: Hive) -> None:
    mine, secret = await knock(door, "a", join_token="token-a")
    _, other = await knock(door, "b", join_token="token-b")
    with pytest.raises(NotFound) as caught:
        await knock(door, "b", credential=other, session_id=mine.session_id)
    assert caught.value.reason == "SESSION_NOT_FOUND"
    with pytest.raises(Unauthenticated):
        await knock(door, "a", credential="guessed", replaces=mine.session_id)
    await knock(door, "b", credential=other, replaces=mine.session_id)
    assert mine.link.error is None
    assert door.kernel.memory.session((NAMESPACE, mine.session_id)) is not None
    await knock(door, "a", credential=secret, replaces=mine.session_id)
    assert door.kernel.memory.session((NAMESPACE, mine.session_id)) is None


async def test_an_open_session_brings_no_agent_along_that_is_not_its_own(door: Hive) -> None:
    worker, _ = await knock(door, "a", join_token="token-a")
    await door.kernel.agents.spawn(door.caller(), [NewAgent(id="idle", spec=AgentSpec())])
    refusals = await worker.say(
        AgentReport("new", "READY", spec=AgentSpec()), AgentReport("idle", "READY"), AgentReport("a", "READY")
    )
    assert [(refusal.index, refusal.reason) for refusal in refusals] == [
        (0, "PERMISSION_DENIED"),
        (1, "PERMISSION_DENIED"),
    ]
    assert {agent.id for agent in await door.store.scan(Kind.AGENT)} == {"a", "idle"}


async def test_a_door_that_is_opened_later_knows_the_sessions_from_before(hive: Hive) -> None:
    seen: list[Joining] = []
    before = await hive.worker("a")
    hive.kernel.hooks.swap(HookSet(before_join=(turn(seen.append), turn(guarded_door, plugin="q"))))
    after, _ = await knock(hive, "a", join_token="token-a", session_id=before.session_id)
    assert after.welcome.resumed
    join = seen[-1]
    assert (join.session_id, join.session_principal, join.peer, join.notes) == (before.session_id, "", "here", {"n": 1})
    assert after.welcome.principal == "agent:a"


async def test_without_hooks_a_decision_has_no_rows_of_plugins(hive: Hive) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    await worker.finish(worker.assignments()[0])
    assert await hive.store.scan(Kind.STATE) == []
    assert hive.kernel.hooks.current == HookSet()
    assert hive.kernel.pool.scorers == ()
