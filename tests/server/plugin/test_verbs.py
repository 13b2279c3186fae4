"""The verbs of a plugin: in its name, checked, harmless when repeated, and a dead end."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.kernel.agent_verbs import NewAgent
from agenthive_server.kernel.agents import AgentSpec, Wanted
from agenthive_server.kernel.errors import BadRequest, Exists, KernelError, NotFound, NotImplementedHere
from agenthive_server.kernel.events import EventType
from agenthive_server.kernel.messages import Urgency
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Kind, Payload
from agenthive_server.kernel.session_items import Accept, Ask, Mail, Result
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import Question, TaskSpec, TaskState
from agenthive_server.plugin.occasion import Occasion
from agenthive_server.plugin.ports import Verbs
from agenthive_server.plugin.verbs import PluginVerbs
from agenthive_server.testing.hive import Hive, open_hive


@pytest.fixture
async def hive() -> AsyncIterator[Hive]:
    async with open_hive() as hive:
        yield hive


@pytest.fixture
def verbs(hive: Hive) -> PluginVerbs:
    return PluginVerbs(hive.kernel, "p")


def new(task_id: str = "", **spec: Any) -> NewTask:
    return NewTask(id=task_id, spec=TaskSpec(**{"type": "work", **spec}))


def test_they_are_all_there() -> None:
    def promise(of: Any) -> dict[str, str]:
        found = inspect.getmembers(of, inspect.isfunction)
        return {name: str(inspect.signature(each)) for name, each in found if not name.startswith("_")}

    assert promise(PluginVerbs) == promise(Verbs)


async def test_a_task_goes_through_everything_a_plugin_may_do_with_it(hive: Hive, verbs: PluginVerbs) -> None:
    worker = await hive.worker("a", slots=2)
    await verbs.delegate_tasks([new("t", requires_review=True), new("later", required_capabilities=("none",))])
    assert (await verbs.pause_task("later")).state is TaskState.PAUSED
    assert (await verbs.resume_task("later")).state is TaskState.QUEUED
    assert (await verbs.cancel_task("later", "not needed")).state is TaskState.CANCELED
    assert (await verbs.retry_task("later")).state is TaskState.QUEUED
    explained = await verbs.explain_routing(task_id="later")
    assert [(candidate.agent_id, candidate.exclusions) for candidate in explained.candidates] == [
        ("a", ("CAPABILITIES",))
    ]
    epoch = worker.assignments()[0].task.lease_epoch
    await worker.say(Accept("t", epoch), Ask("t", epoch, Question(question="which?")))
    assert (await verbs.respond_to_task("t", Payload(data=b"this"))).state is TaskState.RUNNING
    await worker.say(Result("t", epoch, result=Payload(data=b"done")))
    assert (await verbs.get_task("t"))[0].state is TaskState.REPORTED
    assert (await verbs.review_task("t", accept=True)).state is TaskState.SUCCEEDED
    assert (await verbs.wait_task("t", timeout=0.0)).result == Payload(data=b"done")
    listed = await verbs.list_tasks(Query(namespace="default", limit=10**9))
    assert {task.id for task in listed} == {"t", "later"}


async def test_an_agent_goes_through_everything_a_plugin_may_do_with_it(hive: Hive, verbs: PluginVerbs) -> None:
    await hive.worker("a")
    (agent,) = await verbs.spawn_agents([NewAgent(id="b", spec=AgentSpec(role="tester", driver="process"))])
    assert (agent.id, agent.spec.role) == ("b", "tester")
    with pytest.raises(Exists):
        await verbs.spawn_agents([NewAgent(id="b", spec=AgentSpec())])
    updated = await verbs.update_agent("a", AgentSpec(slots=3), revision=(await verbs.get_agent("a")).revision)
    assert updated.spec.slots == 3
    shown = verbs.shown_agent(updated)
    assert (shown.state, shown.open_leases) == ("IDLE", 0)
    assert [found.id for found in await verbs.list_agents(Query(namespace="default"))] == ["a", "b"]
    assert (await verbs.sleep_agent("a", "night")).wanted is Wanted.ASLEEP
    await hive.settle()
    await verbs.restart_agent("b")
    assert (await verbs.shutdown_agent("b", "enough", grace=0.0)).wanted is Wanted.STOPPED
    with pytest.raises(NotFound):
        await verbs.wake_agent("nobody")
    with pytest.raises(NotFound):
        await verbs.get_agent("nobody")


async def test_messages_reach_an_agent_a_task_and_all(hive: Hive, verbs: PluginVerbs) -> None:
    worker = await hive.worker("a")
    await hive.delegate("t")
    sent = await verbs.send_message(Payload(data=b"1"), agent_id="a", urgency=Urgency.NOW)
    await verbs.send_message(Payload(data=b"2"), task_id="t")
    await verbs.broadcast_message(Payload(data=b"3"))
    await hive.advance(1)
    mail = [m for told in worker.link.told if isinstance(told, Mail) for m in told.messages]
    assert sorted(message.payload.data or b"" for message in mail) == [b"1", b"2", b"3"]
    assert (sent.sender_agent_id, sent.urgency) == ("", Urgency.NOW)


async def test_what_is_done_on_an_occasion_is_done_once_however_often_it_is_asked_for(
    hive: Hive, verbs: PluginVerbs
) -> None:
    async def handle() -> None:
        await verbs.delegate_tasks([new(title="first")])
        await verbs.delegate_tasks([new(title="second")])
        # The same twice is wanted twice.
        await verbs.delegate_tasks([new(title="second")])
        await verbs.send_message(Payload(data=b"x"), agent_id="a")

    await hive.worker("a")
    for _ in range(3):
        with Occasion(7):
            await handle()
    assert sorted(task.spec.title for task in await verbs.list_tasks(Query(namespace="default"))) == [
        "first",
        "second",
        "second",
    ]
    assert len(await hive.store.scan(Kind.MESSAGE)) == 1
    with Occasion(8):
        await handle()
    assert len(await hive.store.scan(Kind.TASK)) == 6
    requests = await hive.store.scan(Kind.REQUEST)
    assert {record.id.partition("|")[0] for record in requests} == {"plugin:p"}


async def test_a_handler_that_finds_the_world_changed_repeats_what_is_left_to_do(
    hive: Hive, verbs: PluginVerbs
) -> None:
    for names in ("abc", "cba", "bcd"):
        with Occasion(1):
            await asyncio.gather(*(verbs.delegate_tasks([new(title=name)]) for name in names))
    assert sorted(task.spec.title for task in await verbs.list_tasks(Query(namespace="default"))) == list("abcd")


async def test_two_plugins_on_the_same_occasion_do_not_meet(hive: Hive, verbs: PluginVerbs) -> None:
    for each in (verbs, PluginVerbs(hive.kernel, "q")):
        with Occasion(1):
            await each.delegate_tasks([new()])
    assert len(await hive.store.scan(Kind.TASK)) == 2


async def test_a_request_id_that_is_given_counts(hive: Hive, verbs: PluginVerbs) -> None:
    first = await verbs.delegate_tasks([new()], request_id="r")
    assert await verbs.delegate_tasks([new()], request_id="r") == first
    with pytest.raises(BadRequest) as caught:
        await verbs.delegate_tasks([new(title="other")], request_id="r")
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_outside_of_handlers_every_call_is_another(hive: Hive, verbs: PluginVerbs) -> None:
    for _ in range(2):
        await verbs.delegate_tasks([new()])
    assert len(await hive.store.scan(Kind.TASK)) == 2
    assert await hive.store.scan(Kind.REQUEST) == []


WRONG: dict[str, tuple[Any, ...]] = {
    "delegate_tasks": ([new(priority=9)],),
    "spawn_agents": ([NewAgent(id="a b", spec=AgentSpec())],),
    "update_agent": ("a", AgentSpec(slots=0)),
    "shutdown_agent": ("a", "x" * 2_000),
    "sleep_agent": ("a", None),
    "cancel_task": ("t", "\x00"),
    "respond_to_task": ("t", b"no payload"),
    "send_message": (Payload(json="["),),
    "broadcast_message": ("text",),
}


@pytest.mark.parametrize("verb", WRONG)
async def test_what_is_wrong_is_refused_before_the_kernel_sees_it(hive: Hive, verbs: PluginVerbs, verb: str) -> None:
    await hive.worker("a")
    head = (await hive.store.bounds()).head
    with Occasion(1), pytest.raises(BadRequest):
        await getattr(verbs, verb)(*WRONG[verb])
    with pytest.raises(BadRequest):
        await verbs.retry_task("t", namespace="no namespace")
    assert (await hive.store.bounds()).head == head


async def test_an_agent_that_would_stop_the_dispatcher_is_not_taken(hive: Hive, verbs: PluginVerbs) -> None:
    for spec in (AgentSpec(slots=0), AgentSpec(weight=0.0), AgentSpec(labels=None)):  # type: ignore[arg-type]
        with pytest.raises(BadRequest):
            await verbs.spawn_agents([NewAgent(spec=spec)])
    with pytest.raises(BadRequest):
        await verbs.spawn_agents([NewAgent(spec="text")])  # type: ignore[arg-type]  # that is the point


async def test_without_backups_it_says_so(verbs: PluginVerbs, tmp_path: Path) -> None:
    for attempt in (
        verbs.create_backup(tmp_path),
        verbs.verify_backup(tmp_path),
        verbs.restore_backup(tmp_path, tmp_path),
    ):
        with pytest.raises(NotImplementedHere):
            await attempt


async def test_nothing_leads_from_them_to_the_kernel(hive: Hive, verbs: PluginVerbs) -> None:
    await hive.worker("a")
    (task,) = await verbs.delegate_tasks([new("t")])
    given = [verbs, task, await verbs.get_agent("a"), await verbs.explain_routing(task_id="t")]
    given.append(await verbs.send_message(Payload(data=b"x"), agent_id="a"))
    try:
        await verbs.get_task("nothing")
    except KernelError as error:
        given.append(error)
    for thing in given:
        for name in dir(thing):
            if name.startswith("_"):
                continue
            value = getattr(thing, name)
            assert callable(value) or is_dataclass(value) or isinstance(value, VALUES), f"{thing!r}.{name}"


VALUES = (str, int, float, bytes, tuple, dict, list, type(None), BaseException, EventType)
