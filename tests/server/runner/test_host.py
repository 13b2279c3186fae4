"""What a runner does with control items, over a session that only records; agents are scripted or shell lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from agenthive.v1 import agent_pb2, message_pb2, task_pb2
from agenthive.v1 import worker_service_pb2 as pb
from agenthive_server.runner.host import RunnerConfig, RunnerHost
from agenthive_server.runner.launch import Launcher
from agenthive_server.runner.ledger import Ledger, read_entries
from agenthive_server.testing.driver_stage import eventually
from google.protobuf import duration_pb2

DEADLINE = 20.0
Item = pb.WorkerItem


class RecordedLink:
    """A session that keeps what is sent."""

    def __init__(self) -> None:
        self.connected = True
        self.lost_for = 0.0
        self.items: list[Item] = []
        self.beats = 0
        self.closed = False
        self.acknowledging = asyncio.Event()
        self.acknowledging.set()
        self._news = asyncio.Event()

    def send(self, item: Item) -> None:
        self.items.append(item)
        self._news.set()

    def beat_now(self) -> None:
        self.beats += 1
        self._news.set()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self, reason: str = "") -> None:
        self.closed = True

    async def flushed(self) -> None:
        await self.acknowledging.wait()

    def all(self, kind: str) -> list[Any]:
        return [getattr(item, kind) for item in self.items if item.WhichOneof("item") == kind]

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(DEADLINE):
            while not (found := condition()):
                self._news.clear()
                await self._news.wait()
        return found

    async def one(self, kind: str) -> Any:
        return (await self.until(lambda: self.all(kind)))[-1]


class Scene:
    """A host with its session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runner"
        config = RunnerConfig(data_dir=folder, labels={"zone": "a"}, stop_grace=0.2, patience=0.2, maximum_agents=5)
        self.ledger = Ledger(self.folder)
        self.link = RecordedLink()
        self.host = RunnerHost(config, self.ledger, Launcher(patience=0.2))
        self.host.attach(self.link)

    async def tell(self, **item: Any) -> None:
        await self.host.control(pb.ControlItem(**item))

    async def start(self, spec: agent_pb2.AgentSpec, agent_id: str = "a", epoch: int = 1) -> None:
        seen = len(self.link.all("agent_report"))
        await self.tell(start_agent=pb.StartAgent(agent_id=agent_id, namespace="default", spec=spec, start_epoch=epoch))
        await self.link.until(lambda: len(self.link.all("agent_report")) > seen)

    async def assign(self, task_id: str = "t", epoch: int = 1, agent_id: str = "a", **fields: Any) -> None:
        spec = task_pb2.TaskSpec(type="probe", exclusive=fields.pop("exclusive", False))
        assignment = pb.TaskAssignment(
            agent_id=agent_id, task_id=task_id, lease_epoch=epoch, attempt=1, spec=spec, **fields
        )
        await self.tell(assignment=assignment)

    def work_folders(self) -> list[Path]:
        return list((self.folder / "work").iterdir())


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.link.acknowledging.set()
    await scene.host.leave("the test is over")
    assert read_entries(scene.folder / "ledger.jsonl") == []
    assert scene.work_folders() == []
    scene.ledger.close()


def script(**fields: Any) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(scripted=agent_pb2.ScriptedDriver(**fields))


def shell(text: str) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=["sh", "-c", text]))


def span(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


HANGS = script(hang=True)
SAVES = shell("""echo '{"checkpoint": "saved"}'; echo here; exec sleep 600""")


async def test_the_hello_says_what_there_is(scene: Scene) -> None:
    await scene.start(HANGS)
    await scene.assign()
    hello = scene.host.hello()
    assert list(hello.runner.drivers) == ["process", "scripted"]
    assert hello.runner.maximum_agents == 5
    assert hello.runner.cpu_cores > 0
    assert hello.runner.memory_bytes > 0
    assert dict(hello.labels) == {"zone": "a"}
    assert [agent.agent_id for agent in hello.agents] == ["a"]
    assert [(lease.task_id, lease.lease_epoch) for lease in hello.leases] == [("t", 1)]


async def test_an_agent_that_started_is_reported_idle_and_one_that_could_not_failed(scene: Scene) -> None:
    await scene.start(script())
    assert scene.link.all("agent_report")[-1].state == agent_pb2.AGENT_STATE_IDLE
    await scene.start(script(start_failure="It was told not to."), "b")
    report = scene.link.all("agent_report")[-1]
    assert (report.agent_id, report.state, report.reason) == ("b", agent_pb2.AGENT_STATE_FAILED, "It was told not to.")
    await eventually(lambda: len(scene.work_folders()) == 1)


async def test_an_unknown_driver_is_a_failure_with_the_names_of_those_there_are(scene: Scene) -> None:
    await scene.start(agent_pb2.AgentSpec(custom=agent_pb2.CustomDriver(name="abacus")))
    report = scene.link.all("agent_report")[-1]
    assert report.state == agent_pb2.AGENT_STATE_FAILED
    assert "abacus" in report.reason
    assert "process, scripted" in report.reason


async def test_a_start_that_takes_too_long_fails(scene: Scene) -> None:
    spec = script(ready_after=duration_pb2.Duration(seconds=3600))
    spec.start_timeout.CopyFrom(span(0.05))
    await scene.start(spec)
    report = scene.link.all("agent_report")[-1]
    assert (report.state, report.reason) == (agent_pb2.AGENT_STATE_FAILED, "The agent was not ready in time.")


async def test_a_start_seen_before_is_not_repeated_but_answered(scene: Scene) -> None:
    await scene.start(script())
    before = scene.work_folders()
    await scene.start(script())
    assert [report.state for report in scene.link.all("agent_report")] == [agent_pb2.AGENT_STATE_IDLE] * 2
    assert scene.work_folders() == before


async def test_a_newer_start_takes_the_place_of_the_older(scene: Scene) -> None:
    await scene.start(HANGS)
    await scene.assign()
    await scene.start(script(), epoch=2)
    assert scene.link.all("agent_report")[-1].state == agent_pb2.AGENT_STATE_IDLE
    assert scene.link.all("result") == scene.link.all("hand_back") == []
    assert scene.host.heartbeat().tasks == []


async def test_a_stop_while_it_starts_ends_the_start(scene: Scene) -> None:
    spec = script(ready_after=duration_pb2.Duration(seconds=3600))
    await scene.tell(start_agent=pb.StartAgent(agent_id="a", spec=spec, start_epoch=1))
    await scene.tell(stop_agent=pb.StopAgent(agent_id="a"))
    assert (await scene.link.one("agent_report")).state == agent_pb2.AGENT_STATE_STOPPED
    assert len(scene.link.all("agent_report")) == 1


async def test_a_task_is_accepted_run_and_reported(scene: Scene) -> None:
    await scene.start(shell("echo one; echo two >&2; echo three"))
    await scene.assign()
    assert scene.link.items[-1].HasField("accept")
    result = await scene.link.one("result")
    assert result.result.data == b"one\nthree\n"
    chunks = scene.link.all("output")
    assert sum(len(chunk.data) for chunk in chunks) == 14
    offset = 0
    for chunk in chunks:
        assert chunk.offset == offset
        offset += len(chunk.data)
    assert scene.host.hello().leases == []


async def test_a_task_for_an_agent_that_is_not_here_is_rejected(scene: Scene) -> None:
    await scene.assign(agent_id="nobody")
    assert scene.link.all("reject")[0].task_id == "t"


async def test_a_repeated_assignment_is_ignored(scene: Scene) -> None:
    await scene.start(script())
    for _ in range(2):
        await scene.assign()
    await scene.link.one("result")
    await scene.assign(repeated=True)
    assert len(scene.link.all("accept")) == len(scene.link.all("result")) == 1
    assert scene.link.all("hand_back") == []


async def test_a_lease_nobody_here_knows_is_handed_back(scene: Scene) -> None:
    await scene.start(script())
    await scene.assign(repeated=True)
    assert scene.link.all("hand_back")[0].task_id == "t"
    assert scene.link.all("accept") == []


async def test_a_newer_lease_ends_the_older_attempt_first(scene: Scene) -> None:
    await scene.start(shell("echo $AGENTHIVE_LEASE_EPOCH; [ $AGENTHIVE_LEASE_EPOCH = 2 ] || exec sleep 600"))
    await scene.assign(epoch=1)
    await scene.link.one("output")
    await scene.assign(epoch=2)
    result = await scene.link.one("result")
    assert (result.lease_epoch, result.result.data) == (2, b"2\n")
    assert len(scene.link.all("result")) == 1


async def test_news_travel_in_the_next_beat_once(scene: Scene) -> None:
    lines = '{"progress": 0.5, "text": "half"}', '{"checkpoint": "so far"}', '{"usage": {"output_tokens": 3}}'
    await scene.start(shell("".join(f"echo '{line}'; " for line in lines) + "echo here; exec sleep 600"))
    await scene.assign()
    await scene.link.one("output")
    await scene.link.until(lambda: scene.link.beats)
    [beat] = scene.host.heartbeat().tasks
    assert (beat.fraction, beat.text, beat.checkpoint, beat.usage.output_tokens) == (0.5, "half", b"so far", 3)
    [beat] = scene.host.heartbeat().tasks
    assert (beat.task_id, beat.lease_epoch) == ("t", 1)
    assert not beat.HasField("fraction")
    assert not beat.HasField("checkpoint")


async def test_news_ask_for_a_beat_at_most_once_a_second(scene: Scene) -> None:
    await scene.start(shell("for i in 1 2 3 4 5 6 7 8 9; do echo '{\"progress\": 0.5}'; done; echo done"))
    scene.host.heartbeat()
    for number in range(3):
        await scene.assign(f"t{number}")
    await scene.link.until(lambda: len(scene.link.all("result")) == 3)
    assert scene.link.beats <= 1


async def test_the_last_checkpoint_travels_before_the_error(scene: Scene) -> None:
    await scene.start(shell("""echo '{"checkpoint": "last"}'; exit 1"""))
    await scene.assign()
    await scene.link.one("result")
    kinds = [item.WhichOneof("item") for item in scene.link.items]
    assert kinds[-2:] == ["heartbeat", "result"]
    assert scene.link.all("heartbeat")[0].tasks[0].checkpoint == b"last"


async def test_a_canceled_task_is_reported_canceled(scene: Scene) -> None:
    await scene.start(shell("exec sleep 600"))
    await scene.assign()
    await scene.tell(cancel=pb.TaskCancel(task_id="t", lease_epoch=1, grace=span(0.1)))
    assert (await scene.link.one("result")).WhichOneof("outcome") == "canceled"


async def test_a_cancel_for_what_is_not_held_is_answered(scene: Scene) -> None:
    await scene.tell(cancel=pb.TaskCancel(task_id="t", lease_epoch=1))
    assert scene.link.all("result")[0].WhichOneof("outcome") == "canceled"


async def test_a_revoked_lease_ends_without_a_word(scene: Scene) -> None:
    await scene.start(SAVES)
    await scene.assign()
    await scene.link.one("output")
    await scene.tell(lease_revoked=pb.LeaseRevoked(task_id="t", lease_epoch=1))
    assert scene.host.heartbeat().tasks == []
    assert scene.host.hello().leases == []
    await scene.start(script(), "b")
    await scene.tell(stop_agent=pb.StopAgent(agent_id="a", grace=span(5)))
    await scene.link.until(lambda: scene.link.all("agent_report")[-1].state == agent_pb2.AGENT_STATE_STOPPED)
    assert scene.link.all("result") == scene.link.all("hand_back") == []


async def test_a_welcome_ends_what_is_not_valid(scene: Scene) -> None:
    await scene.start(HANGS)
    for task_id in ("kept", "lost"):
        await scene.assign(task_id)
    await scene.host.welcome(pb.Welcome(resumed=True, valid_leases=[pb.HeldLease(task_id="kept", lease_epoch=1)]))
    assert [beat.task_id for beat in scene.host.heartbeat().tasks] == ["kept"]


async def test_exclusive_tasks_stop_when_contact_is_lost(scene: Scene) -> None:
    await scene.start(SAVES)
    await scene.assign("alone", exclusive=True)
    await scene.assign("other")
    await scene.link.until(lambda: len(scene.link.all("output")) == 2)
    await scene.host.contact_lost(30)
    back = await scene.link.one("hand_back")
    assert (back.task_id, back.checkpoint) == ("alone", b"saved")
    assert [lease.task_id for lease in scene.host.hello().leases] == ["other"]


async def test_a_stop_lets_tasks_finish_within_its_grace(scene: Scene) -> None:
    await scene.start(shell("sleep 0.2; echo done"))
    await scene.assign()
    await scene.tell(stop_agent=pb.StopAgent(agent_id="a", grace=duration_pb2.Duration(seconds=20)))
    await scene.link.until(lambda: len(scene.link.all("agent_report")) == 2)
    assert scene.link.all("result")[0].result.data == b"done\n"
    assert scene.link.all("agent_report")[-1].state == agent_pb2.AGENT_STATE_STOPPED


async def test_what_does_not_finish_is_handed_back_with_its_checkpoint(scene: Scene) -> None:
    await scene.start(SAVES)
    await scene.assign()
    await scene.link.one("output")
    await scene.tell(stop_agent=pb.StopAgent(agent_id="a", grace=span(0.1)))
    await scene.link.until(lambda: len(scene.link.all("agent_report")) == 2)
    assert scene.link.all("hand_back")[0].checkpoint == b"saved"
    kinds = [item.WhichOneof("item") for item in scene.link.items]
    assert kinds.index("hand_back") < len(kinds) - 1
    assert kinds[-1] == "agent_report"
    await scene.assign("late")
    assert scene.link.all("reject")[0].task_id == "late"


async def test_a_sleeping_agent_finds_its_folder_again(scene: Scene) -> None:
    await scene.start(shell("cat $HOME/memory 2>/dev/null; echo remembered > $HOME/memory"))
    await scene.assign("first")
    await scene.link.one("result")
    await scene.tell(stop_agent=pb.StopAgent(agent_id="a", sleep=True))
    await scene.link.until(lambda: len(scene.link.all("agent_report")) == 2)
    assert scene.link.all("agent_report")[-1].state == agent_pb2.AGENT_STATE_SLEEPING
    spec = shell("cat $HOME/memory")
    await scene.tell(start_agent=pb.StartAgent(agent_id="a", spec=spec, start_epoch=2, wake=True))
    await scene.link.until(lambda: len(scene.link.all("agent_report")) == 3)
    await scene.assign("second")
    result = await scene.link.until(lambda: [each for each in scene.link.all("result") if each.task_id == "second"])
    assert result[0].result.data == b"remembered\n"


async def test_a_stop_overtakes_a_sleep_that_is_under_way(scene: Scene) -> None:
    await scene.start(SAVES)
    await scene.assign()
    await scene.link.one("output")
    await scene.tell(stop_agent=pb.StopAgent(agent_id="a", grace=span(0.1), sleep=True))
    await scene.tell(stop_agent=pb.StopAgent(agent_id="a", grace=span(0.1)))
    await scene.link.until(lambda: len(scene.link.all("agent_report")) == 2)
    assert scene.link.all("agent_report")[-1].state == agent_pb2.AGENT_STATE_STOPPED
    await eventually(lambda: scene.work_folders() == [])


async def test_a_start_under_way_ends_when_the_runner_leaves(scene: Scene) -> None:
    for agent_id, spec in (("a", SAVES), ("b", script(ready_after=duration_pb2.Duration(seconds=3600)))):
        await scene.tell(start_agent=pb.StartAgent(agent_id=agent_id, spec=spec, start_epoch=1))
    await asyncio.wait_for(scene.host.leave("at once"), DEADLINE)
    assert list(scene.host.hello().agents) == []
    assert scene.work_folders() == []


async def test_a_driver_with_a_bug_is_a_failed_start(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(driver: object, start: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agenthive_server.runner.drivers.scripted.ScriptedDriver.start", broken)
    await scene.start(script())
    assert "ZeroDivisionError" in scene.link.all("agent_report")[-1].reason


async def test_a_driver_with_a_bug_is_a_failed_task(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agenthive_server.runner.drivers.scripted.ScriptedDriver.run_task", broken)
    await scene.start(script())
    await scene.assign()
    assert (await scene.link.one("result")).error.reason == "DRIVER_FAILED"


async def test_stopping_what_does_not_run_is_answered(scene: Scene) -> None:
    await scene.tell(stop_agent=pb.StopAgent(agent_id="nobody"))
    assert scene.link.all("agent_report")[0].state == agent_pb2.AGENT_STATE_STOPPED


@pytest.mark.parametrize(("code", "state"), [(0, agent_pb2.AGENT_STATE_STOPPED), (7, agent_pb2.AGENT_STATE_FAILED)])
async def test_an_agent_that_ends_by_itself_is_reported_after_its_tasks(scene: Scene, code: int, state: int) -> None:
    await scene.start(script(hang=True, exit_after=span(0.05), exit_code=code))
    await scene.assign()
    await scene.link.until(lambda: len(scene.link.all("agent_report")) == 2)
    report = scene.link.all("agent_report")[-1]
    assert (report.state, report.exit_code) == (state, code)
    result = scene.link.all("result")[0]
    assert result.error.error_class == task_pb2.TASK_ERROR_CLASS_INFRA
    assert scene.host.hello().agents == []


async def test_messages_are_read_only_where_they_can_be(scene: Scene) -> None:
    await scene.start(script(), "takes")
    await scene.start(shell("exec sleep 600"), "cannot")
    for agent_id in ("takes", "cannot", "nobody"):
        messages = [message_pb2.Message(message_id=f"for-{agent_id}", agent_id=agent_id)]
        await scene.tell(messages=pb.IncomingMessages(agent_id=agent_id, messages=messages))
    read = await scene.link.one("messages_read")
    assert (read.agent_id, list(read.message_ids)) == ("takes", ["for-takes"])
    assert len(scene.link.all("messages_read")) == 1


async def test_a_paused_task_goes_on_when_it_is_resumed(scene: Scene) -> None:
    await scene.start(script(task_time=span(0.05)))
    await scene.assign()
    await scene.tell(pause=pb.TaskPause(task_id="t", lease_epoch=1))
    await scene.tell(pause=pb.TaskPause(task_id="t", lease_epoch=1, resume=True))
    assert (await scene.link.one("result")).HasField("result")


async def test_output_waits_for_a_slow_server_and_not_for_one_that_is_away(scene: Scene) -> None:
    scene.link.acknowledging.clear()
    await scene.start(shell("head -c 9000000 /dev/zero"))
    await scene.assign()

    def sent() -> int:
        return sum(len(chunk.data) for chunk in scene.link.all("output"))

    await scene.link.until(lambda: sent() >= 4 * 1024 * 1024)
    assert sent() <= 5 * 1024 * 1024
    scene.link.connected = False
    await scene.link.one("result")
    assert sent() == 9_000_000


async def test_leaving_hands_back_and_says_goodbye(scene: Scene) -> None:
    await scene.start(SAVES)
    await scene.assign()
    await scene.link.one("output")
    await scene.host.leave("the runner stops")
    assert scene.link.all("hand_back")[0].checkpoint == b"saved"
    assert len(scene.link.all("agent_report")) == 1
    assert scene.link.closed
    await scene.assign("late")
    assert scene.link.all("reject")[0].task_id == "late"


async def test_a_kill_cuts_the_leaving_short(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    object.__setattr__(scene.host._config, "stop_grace", 3600.0)
    await scene.start(shell("trap '' INT TERM; echo here; while :; do sleep 60; done"))
    await scene.assign()
    await scene.link.one("output")
    leaving = asyncio.create_task(scene.host.leave("now"))
    async with asyncio.timeout(DEADLINE):
        while not leaving.done():
            scene.host.kill()
            await asyncio.sleep(0.01)
    assert scene.link.all("hand_back")
    scene.ledger.close()


async def test_a_thousand_idle_agents_cost_no_task_each(scene: Scene) -> None:
    before = len(asyncio.all_tasks())
    for number in range(1000):
        order = pb.StartAgent(agent_id=f"idle-{number}", spec=shell("true"), start_epoch=1)
        await scene.tell(start_agent=order)
    await scene.link.until(lambda: len(scene.link.all("agent_report")) == 1000)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) <= before + 1


async def test_a_runner_replaces_the_session_of_the_one_that_was_killed_before_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.host.hello().replaces_session_id == ""
    await scene.host.welcome(pb.Welcome(session_id="s-1"))
    assert scene.host.hello().replaces_session_id == ""
    scene.ledger.close()
    after = Scene(tmp_path)
    assert after.host.hello().replaces_session_id == "s-1"
    after.ledger.close()


async def test_a_damaged_note_of_the_session_is_ignored(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    (scene.folder / "session").write_bytes(b"\xff half a")
    scene.ledger.close()
    after = Scene(tmp_path)
    assert after.host.hello().replaces_session_id == ""
    after.ledger.close()
