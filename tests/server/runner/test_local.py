"""The local runner of a server: found again by later servers, and no burden on those who read the first one."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from agenthive.v1 import worker_service_pb2, worker_service_pb2_grpc
from agenthive_server.runner.ledger import Ledger
from agenthive_server.runner.local import LocalRunner, _living
from agenthive_server.testing.waiting import eventually

SERVER = """
import asyncio, sys
from pathlib import Path
from agenthive_server.runner.local import LocalRunner

folder = Path(sys.argv[1])
runner = LocalRunner(["--server", "127.0.0.1:1", "--data-dir", str(folder)], folder, keep=True)
asyncio.run(runner.run())
"""


async def test_a_runner_that_is_kept_does_not_hold_the_output_of_its_server(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert server.stdout is not None
    runner = await eventually(lambda: _living(tmp_path / "runner"))
    try:
        server.kill()
        async with asyncio.timeout(10):
            assert await server.stdout.read() == b""
            await server.wait()
        assert _living(tmp_path / "runner") == runner
    finally:
        os.kill(runner, signal.SIGKILL)


async def test_a_runner_left_by_a_server_that_was_killed_is_found_by_what_it_wrote_itself(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()
    (tmp_path / "runner" / "pid").write_text("1")  # what a server that was killed too early would leave
    assert _living(tmp_path / "runner") == 0
    ledger = Ledger(tmp_path / "runner")
    assert _living(tmp_path / "runner") == os.getpid()
    ledger.close()
    assert _living(tmp_path / "runner") == 0


async def start_earlier(folder: Path) -> asyncio.Task[None]:
    """A runner that an earlier server started and will not start again."""
    earlier = LocalRunner(["--server", "127.0.0.1:1", "--data-dir", str(folder)], folder, keep=False)
    running = asyncio.create_task(earlier.run())
    await eventually(lambda: _living(folder / "runner"))
    earlier._stopping.set()
    return running


async def test_a_local_runner_stops_the_runner_of_an_earlier_server(tmp_path: Path) -> None:
    running = await start_earlier(tmp_path)
    await LocalRunner([], tmp_path, keep=False).stop()
    assert _living(tmp_path / "runner") == 0
    await running


async def test_a_local_runner_stops_the_earlier_one_also_while_its_own_is_starting(tmp_path: Path) -> None:
    running = await start_earlier(tmp_path)
    later = LocalRunner([], tmp_path, keep=False)
    # As it is when the earlier runner took the lock after the later server had looked.
    later._process = await asyncio.create_subprocess_exec("sleep", "60")
    async with asyncio.timeout(20):
        await later.stop()
    assert _living(tmp_path / "runner") == 0
    assert later._process.returncode == -signal.SIGTERM
    await running


class Door(worker_service_pb2_grpc.WorkerServiceServicer):
    """A server that notes what those who join show, and holds them."""

    def __init__(self) -> None:
        self.hellos: asyncio.Queue[worker_service_pb2.Hello] = asyncio.Queue()

    async def Connect(
        self, requests: AsyncIterator[worker_service_pb2.ConnectRequest], context: object
    ) -> AsyncIterator[worker_service_pb2.ConnectResponse]:
        async for request in requests:
            if request.items and request.items[0].HasField("hello"):
                self.hellos.put_nowait(request.items[0].hello)
                welcome = worker_service_pb2.Welcome(session_id="s-1", credential="earned-by-joining")
                item = worker_service_pb2.ControlItem(welcome=welcome)
                yield worker_service_pb2.ConnectResponse(frame_number=1, items=[item])
            else:
                yield worker_service_pb2.ConnectResponse(frame_number=2, acknowledged_frame=request.frame_number)


@pytest.fixture
async def door() -> AsyncIterator[tuple[Door, str]]:
    made, server = Door(), grpc.aio.server()
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made, f"127.0.0.1:{port}"
    await server.stop(0)


def shows(pid: int, secret: bytes) -> bool:
    """Whether a secret is where `ps` looks."""
    return any(secret in Path(f"/proc/{pid}/{kind}").read_bytes() for kind in ("cmdline", "environ"))


async def test_each_start_gets_a_join_token_of_its_own_that_nobody_else_sees(
    tmp_path: Path, door: tuple[Door, str]
) -> None:
    made, target = door
    minted: list[str] = []

    async def mint() -> str:
        minted.append(f"token-{len(minted) + 1}")
        return minted[-1]

    arguments = ["--server", target, "--data-dir", str(tmp_path)]
    local = LocalRunner(arguments, tmp_path, keep=False, environment=dict(os.environ), join_token=mint)  # noqa: TID251 - a child needs the PATH of this test
    running = asyncio.create_task(local.run())
    try:
        async with asyncio.timeout(30):
            assert (await made.hellos.get()).join_token == "token-1"
            first = _living(tmp_path / "runner")
            assert not shows(first, b"token-1")
            # What it earned by the token of its server is forgotten with it: the next life has a token of its own.
            assert not (tmp_path / "runner" / "credential").exists()
            os.kill(first, signal.SIGKILL)
            assert (await made.hellos.get()).join_token == "token-2"
    finally:
        await local.stop()
        await running
    assert minted == ["token-1", "token-2"]


async def test_a_token_that_cannot_be_made_delays_the_runner_and_is_logged(
    tmp_path: Path, door: tuple[Door, str], caplog: pytest.LogCaptureFixture
) -> None:
    made, target = door
    tries = 0

    async def mint() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("the store is away")
        return "late"

    local = LocalRunner(["--server", target, "--data-dir", str(tmp_path)], tmp_path, keep=False, join_token=mint)
    running = asyncio.create_task(local.run())
    try:
        async with asyncio.timeout(30):
            assert (await made.hellos.get()).join_token == "late"
    finally:
        await local.stop()
        await running
    assert "no join token for the local runner" in caplog.text


async def test_what_a_runner_earned_by_a_token_from_a_file_serves_its_next_life(
    tmp_path: Path, door: tuple[Door, str]
) -> None:
    made, target = door
    (tmp_path / "token").write_text("from-a-file\n")
    arguments = ["--server", target, "--data-dir", str(tmp_path), "--join-token-file", str(tmp_path / "token")]
    for shown in (("from-a-file", ""), ("", "earned-by-joining")):
        local = LocalRunner(arguments, tmp_path, keep=False)
        running = asyncio.create_task(local.run())
        try:
            async with asyncio.timeout(30):
                hello = await made.hellos.get()
                assert (hello.join_token, hello.credential) == shown
                await eventually((tmp_path / "runner" / "credential").exists)
        finally:
            await local.stop()
            await running
    assert stat.S_IMODE((tmp_path / "runner" / "credential").stat().st_mode) == 0o600
