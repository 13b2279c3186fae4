"""The runner as a process of its own, against a small server: signals, kill -9, orphans; nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive.v1 import agent_pb2, task_pb2, worker_service_pb2_grpc
from agenthive.v1 import worker_service_pb2 as pb
from agenthive_server.runner.ledger import Ledger, LedgerLocked
from agenthive_server.runner.runner import EXIT_ORPHANED, EXIT_SESSION
from agenthive_server.runner.tree import find_process, list_members, list_processes
from agenthive_server.testing.driver_stage import eventually, gone
from google.protobuf import duration_pb2

DEADLINE = 30.0
DAEMON = """
import os, signal, sys, time
for step in range(2):
    if os.fork():
        os.wait() if step == 0 else os._exit(0)
        print("task", os.getpid(), flush=True)
        time.sleep(600)
    os.setsid()
loop = "import os, signal, time\\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\\n"
loop += "print('daemon', os.getpid(), flush=True)\\nwhile True: time.sleep(60)"
os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", loop], {} if SCRUB else os.environ)
"""


class Server(worker_service_pb2_grpc.WorkerServiceServicer):
    """Welcomes whoever comes, acknowledges everything, says what the test wants said."""

    def __init__(self) -> None:
        self.items: list[pb.WorkerItem] = []
        self.hellos: list[pb.Hello] = []
        self.wanted: asyncio.Queue[pb.ControlItem] = asyncio.Queue()
        self._news = asyncio.Event()
        self._number = 0

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Any
    ) -> AsyncIterator[pb.ConnectResponse]:
        first = await anext(request_iterator)
        hello = first.items[0].hello
        resumed = bool(hello.session_id)
        self.hellos.append(hello)
        welcome = pb.Welcome(
            session_id="session-1",
            resumed=resumed,
            valid_leases=hello.leases,
            heartbeat_interval=duration_pb2.Duration(seconds=1),
            reconnect_grace=duration_pb2.Duration(seconds=30),
            acknowledged_frame=self._number if resumed else 0,
        )
        self._number = self._number if resumed else 0
        yield self._frame(pb.ControlItem(welcome=welcome))
        async for response in self._converse(request_iterator):
            yield response

    def _frame(self, *items: pb.ControlItem) -> pb.ConnectResponse:
        return pb.ConnectResponse(frame_number=1, acknowledged_frame=self._number, items=items)

    async def _converse(self, requests: AsyncIterator[pb.ConnectRequest]) -> AsyncIterator[pb.ConnectResponse]:
        reading = asyncio.ensure_future(anext(requests, None))
        wanting = asyncio.ensure_future(self.wanted.get())
        try:
            while True:
                await asyncio.wait({reading, wanting}, return_when=asyncio.FIRST_COMPLETED)
                if wanting.done():
                    item = wanting.result()
                    yield self._frame(item)
                    if item.HasField("reconnect"):
                        return
                    wanting = asyncio.ensure_future(self.wanted.get())
                if reading.done():
                    if (request := reading.result()) is None or self._take(request):
                        yield self._frame(pb.ControlItem(goodbye=pb.Goodbye()))
                        return
                    yield self._frame()
                    reading = asyncio.ensure_future(anext(requests, None))
        finally:
            reading.cancel()
            wanting.cancel()

    def _take(self, request: pb.ConnectRequest) -> bool:
        if request.frame_number > self._number:
            self._number = request.frame_number
            self.items.extend(request.items)
        self._news.set()
        return any(item.HasField("goodbye") for item in request.items)

    def all(self, kind: str) -> list[Any]:
        return [getattr(item, kind) for item in self.items if item.WhichOneof("item") == kind]

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(DEADLINE):
            while not (found := condition()):
                self._news.clear()
                await self._news.wait()
        return found


class Scene:
    """A server and the runners that come to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        self.runners: list[subprocess.Popen[bytes]] = []
        self._grpc = grpc.aio.server()
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(self.server, self._grpc)
        self.port = self._grpc.add_insecure_port("127.0.0.1:0")

    async def open(self) -> None:
        await self._grpc.start()

    async def close_server(self) -> None:
        await self._grpc.stop(None)

    def run(self, **config: Any) -> subprocess.Popen[bytes]:
        code = f"""
import asyncio, sys
from pathlib import Path
from agenthive_server.runner.runner import RunnerConfig, run_runner
config = RunnerConfig(**({{"data_dir": Path({str(self.folder)!r}), "stop_grace": 0.3, "patience": 0.3}} | {config!r}))
sys.exit(asyncio.run(run_runner("127.0.0.1:{self.port}", config)))
"""
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "FAKE_SECRET": "do-not-show"}
        runner = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
        self.runners.append(runner)
        return runner

    async def exit_code(self, runner: subprocess.Popen[bytes]) -> int:
        return await asyncio.wait_for(asyncio.to_thread(runner.wait), DEADLINE)

    async def start(self, *command: str, agent_id: str = "a", epoch: int = 1) -> None:
        spec = agent_pb2.AgentSpec(process=agent_pb2.ProcessDriver(command=command), slots=5)
        order = pb.StartAgent(agent_id=agent_id, namespace="default", spec=spec, start_epoch=epoch)
        self.server.wanted.put_nowait(pb.ControlItem(start_agent=order))
        await self.server.until(lambda: [each for each in self.server.all("agent_report") if each.agent_id == agent_id])

    async def assign(self, task_id: str = "t", agent_id: str = "a") -> None:
        spec = task_pb2.TaskSpec(type="probe")
        task = pb.TaskAssignment(agent_id=agent_id, task_id=task_id, lease_epoch=1, attempt=1, spec=spec)
        self.server.wanted.put_nowait(pb.ControlItem(assignment=task))
        await self.server.until(lambda: [each for each in self.server.all("accept") if each.task_id == task_id])

    def output(self) -> str:
        return b"".join(chunk.data for chunk in self.server.all("output")).decode()

    async def pids(self, count: int) -> list[int]:
        """The numbers the agents printed, when there are that many."""

        def found() -> list[int]:
            return [int(word) for word in self.output().split() if word.isdigit()]

        await self.server.until(lambda: len(found()) >= count)
        return found()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    await scene.open()
    yield scene
    for runner in scene.runners:
        if runner.poll() is None:
            runner.kill()
        runner.wait()
    await scene.close_server()


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def home(scene: Scene) -> str:
    return (scene.folder / "runner" / "id").read_text().strip()


def find_guard(runner: subprocess.Popen[bytes]) -> int:
    """The guard of this runner; zero while there is none."""
    for process in list_processes().values():
        if process.parent == runner.pid and process.alive:
            with contextlib.suppress(OSError):
                if b"runner.guard" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                    return process.pid
    return 0


async def test_sigterm_hands_back_stops_all_and_exits_with_zero(scene: Scene) -> None:
    runner = scene.run()
    await scene.start("sh", "-c", """echo '{"checkpoint": "saved"}'; echo $$; exec sleep 600""")
    await scene.assign()
    pids = await scene.pids(1)
    runner.terminate()
    assert await scene.exit_code(runner) == 0
    assert scene.server.all("hand_back")[0].checkpoint == b"saved"
    assert scene.server.all("goodbye")
    await gone(*pids)
    assert list((scene.folder / "runner" / "work").iterdir()) == []
    assert list_members((), home(scene)) == []


async def test_a_second_signal_skips_to_the_end(scene: Scene) -> None:
    runner = scene.run(stop_grace=3600.0)
    await scene.start("sh", "-c", "trap 'echo heard' INT; trap '' TERM; echo $$; while :; do sleep 0.05; done")
    await scene.assign()
    pids = await scene.pids(1)
    runner.send_signal(signal.SIGINT)
    await scene.server.until(lambda: "heard" in scene.output())
    runner.send_signal(signal.SIGINT)
    assert await scene.exit_code(runner) == 0
    await gone(*pids)


async def test_sigterm_after_ctrl_c_is_not_a_second_request(scene: Scene) -> None:
    runner = scene.run(stop_grace=20.0)
    last = """echo heard; sleep 0.5; echo "{\\"checkpoint\\": \\"last\\"}"; exit 1"""
    await scene.start("sh", "-c", f"trap '{last}' INT; echo 1; while :; do sleep 0.05; done")
    await scene.assign()
    await scene.pids(1)
    runner.send_signal(signal.SIGINT)
    await scene.server.until(lambda: "heard" in scene.output())
    runner.terminate()
    assert await scene.exit_code(runner) == 0
    assert scene.server.all("hand_back")[0].checkpoint == b"last"


async def test_nothing_outlives_a_runner_that_is_killed(scene: Scene) -> None:
    runner = scene.run()
    await scene.start(*python(DAEMON.replace("SCRUB", "False")))
    await scene.assign()
    pids = await scene.pids(2)
    guard = find_guard(runner)
    runner.kill()
    await gone(*pids, guard)
    assert list_members((), home(scene)) == []


async def test_what_outlives_runner_and_guard_is_swept_at_the_next_start(scene: Scene) -> None:
    runner = scene.run()
    await scene.start(*python(DAEMON.replace("SCRUB", "False")))
    await scene.assign()
    task, daemon = sorted(await scene.pids(2))
    runner.send_signal(signal.SIGSTOP)
    os.kill(find_guard(runner), signal.SIGKILL)
    runner.kill()
    await scene.exit_code(runner)
    await gone(task)
    assert find_process(daemon)
    scene.run()
    await gone(daemon)
    await scene.server.until(lambda: len(scene.server.hellos) == 2)
    assert not scene.server.hellos[1].agents
    assert list((scene.folder / "runner" / "work").iterdir()) == []


async def test_a_guard_that_dies_is_replaced(scene: Scene) -> None:
    runner = scene.run()
    await scene.start("true")
    first = find_guard(runner)
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: find_guard(runner) not in (0, first))


async def test_a_daemon_without_mark_tree_and_session_ends_with_its_task(scene: Scene) -> None:
    scene.run()
    await scene.start(*python(DAEMON.replace("SCRUB", "True")))
    await scene.assign()
    pids = await scene.pids(2)
    cancel = pb.TaskCancel(task_id="t", lease_epoch=1, grace=duration_pb2.Duration(nanos=1000000))
    scene.server.wanted.put_nowait(pb.ControlItem(cancel=cancel))
    await scene.server.until(lambda: scene.server.all("result"))
    assert scene.server.all("result")[0].WhichOneof("outcome") == "canceled"
    for pid in pids:
        process = find_process(pid)
        assert process is None or not process.alive


async def test_a_daemon_of_one_of_many_tasks_ends_at_the_latest_with_the_runner(scene: Scene) -> None:
    runner = scene.run()
    await scene.start("sleep", "600", agent_id="neighbour")
    await scene.assign("other", "neighbour")
    await scene.start(*python(DAEMON.replace("SCRUB", "True")))
    await scene.assign()
    pids = await scene.pids(2)
    runner.terminate()
    assert await scene.exit_code(runner) == 0
    await gone(*pids)


async def test_without_a_server_it_stops_its_agents_and_ends(scene: Scene) -> None:
    runner = scene.run(orphan_timeout=1.5)
    await scene.start("sh", "-c", "echo $$; exec sleep 600")
    await scene.assign()
    pids = await scene.pids(1)
    await scene.close_server()
    assert await scene.exit_code(runner) == EXIT_ORPHANED
    await gone(*pids)


@pytest.mark.parametrize("replaced", [False, True])
async def test_without_its_folder_it_stops_its_agents_and_ends(scene: Scene, replaced: bool) -> None:
    runner = scene.run()
    await scene.start("sh", "-c", "echo $$; exec sleep 600")
    await scene.assign()
    pids = await scene.pids(1)
    shutil.rmtree(scene.folder / "runner")
    other = Ledger(scene.folder / "runner") if replaced else None
    assert await scene.exit_code(runner) == EXIT_SESSION
    await gone(*pids)
    if other is not None:
        # It has not touched what belongs to the next one.
        assert not other.lost()
        other.begin("b")
        other.close()


async def test_a_task_goes_on_while_the_stream_is_renewed(scene: Scene) -> None:
    scene.run()
    await scene.start("sh", "-c", "while [ ! -e $HOME/go ]; do sleep 0.02; done; echo done")
    await scene.assign()
    scene.server.wanted.put_nowait(pb.ControlItem(reconnect=pb.Reconnect()))
    await scene.server.until(lambda: len(scene.server.hellos) == 2)
    assert [lease.task_id for lease in scene.server.hellos[1].leases] == ["t"]
    assert [agent.agent_id for agent in scene.server.hellos[1].agents] == ["a"]
    [folder] = (scene.folder / "runner" / "work").iterdir()
    (folder / "go").touch()
    await scene.server.until(lambda: scene.server.all("result"))
    assert scene.server.all("result")[0].result.data == b"done\n"


async def test_beats_carry_what_is_held(scene: Scene) -> None:
    scene.run()
    await scene.start("sh", "-c", """echo '{"progress": 0.5}'; exec sleep 600""")
    await scene.assign()
    beats = await scene.server.until(
        lambda: [beat for each in scene.server.all("heartbeat") for beat in each.tasks if beat.HasField("fraction")]
    )
    assert (beats[0].task_id, beats[0].fraction) == ("t", 0.5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every environment")
async def test_an_agent_cannot_read_the_environment_of_its_runner(scene: Scene) -> None:
    scene.run()
    await scene.start("sh", "-c", "cat /proc/$PPID/environ; echo read")
    await scene.assign()
    await scene.server.until(lambda: scene.server.all("result"))
    assert "do-not-show" not in scene.output()


async def test_an_agent_inherits_nothing_of_the_environment_of_its_runner(scene: Scene) -> None:
    scene.run()
    await scene.start("env")
    await scene.assign()
    await scene.server.until(lambda: scene.server.all("result"))
    assert "AGENTHIVE_TASK_ID=t" in scene.output()
    assert "do-not-show" not in scene.output()
    assert "PYTHONPATH" not in scene.output()


async def test_a_second_runner_on_the_same_folder_is_refused(scene: Scene) -> None:
    scene.run()
    await scene.start("true")
    with pytest.raises(LedgerLocked):
        Ledger(scene.folder / "runner")


async def test_fifty_tasks_at_once(scene: Scene) -> None:
    scene.run()
    await scene.start("sh", "-c", "echo $AGENTHIVE_TASK_ID")
    for number in range(50):
        await scene.assign(f"t{number}")
    await scene.server.until(lambda: len(scene.server.all("result")) == 50)
    assert {result.result.data.decode().strip() for result in scene.server.all("result")} == {
        f"t{number}" for number in range(50)
    }
