"""A disk that is full, a database that is read-only, damaged or taken: what callers, operators and workers are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agenthive.client import Client
from agenthive.errors import HiveError, ResourceExhausted, Unavailable
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive.v1 import task_pb2
from agenthive_server.app import App
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.harness import free_port, open_process, open_served, open_worker
from agenthive_server.testing.history import facts, fold, read_log
from agenthive_server.testing.waiting import eventually

MIB = 2**20
SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 16 MiB; where nothing can be mounted, the other tests have to do."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    """Take all free space but `leave` bytes; returns the file that does."""
    ballast = folder / "ballast"
    stat = os.statvfs(folder)
    wanted = stat.f_bavail * stat.f_frsize - leave
    with ballast.open("ab") as file, contextlib.suppress(OSError):
        while wanted > 0:
            wanted -= file.write(b"\0" * min(wanted, MIB))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while not leave:
            file.write(b"\0" * 4096)
    return ballast


async def store_of(client: Client) -> pb.ComponentHealth:
    health = await client.health()
    return next(each for each in health.components if each.name == "store")


async def store_is(client: Client, status: pb.HealthStatus.ValueType) -> pb.ComponentHealth | None:
    found = await store_of(client)
    return found if found.status == status else None


async def refused(client: Client, size: int = 200_000) -> HiveError | None:
    """Delegate something; returns why it was refused, None when it was not."""
    try:
        await client.delegate("never", b"x" * size, role="nobody", timeout=5)
    except HiveError as error:
        return error
    return None


async def test_a_full_disk_refuses_changes_and_is_forgotten_when_space_returns(
    small_disk: Path, tmp_path: Path
) -> None:
    settings: dict[str, object] = {"server.minimum_free_disk_bytes": 0}
    async with (
        open_process(small_disk / "data", settings=settings) as server,
        Client(server.target) as client,
        open_worker(server.target, "worker", folder=tmp_path) as worker,
    ):
        gate = tmp_path / "gate"
        held = await client.delegate("until", {"file": str(gate)})
        await eventually(lambda: [note for note in worker.journal() if note["task_id"] == held.task_id])
        known = await client.delegate("never", role="nobody")

        ballast = fill(small_disk, leave=0)
        failed = await eventually(lambda: refused(client), limit=30)
        assert isinstance(failed, Unavailable)
        assert failed.reason == "STORE_UNAVAILABLE"
        assert "full" in str(failed)
        component = await store_of(client)
        assert component.status == pb.HEALTH_STATUS_DEGRADED
        assert "full" in component.reason
        assert (await client.get_task(known.task_id)).task_id == known.task_id  # what is there can be read
        gate.touch()  # a result that cannot be stored now

        ballast.unlink()
        done = await client.wait_task(held.task_id, timeout=20)
        assert (done.state, done.attempt) == (SUCCEEDED, 1)
        assert (await client.delegate("echo", wait=True, timeout=20)).state == SUCCEEDED
        await eventually(lambda: store_is(client, pb.HEALTH_STATUS_OK))
        log = await read_log(client)
        fold(log)
        assert facts(log, held.task_id) == ["task_delegated", "task_assigned", "task_started", "task_succeeded"]
        assert await server.stop() == 0
        assert "Traceback" not in server.log()
        check_whole(server.data_dir / "hive.db")


def check_whole(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_below_the_minimum_new_work_is_refused_and_results_are_still_stored(
    small_disk: Path, tmp_path: Path
) -> None:
    settings: dict[str, object] = {"server.minimum_free_disk_bytes": 4 * MIB}
    async with (
        open_process(small_disk / "data", settings=settings) as server,
        Client(server.target) as client,
        open_worker(server.target, "worker", folder=tmp_path) as worker,
    ):
        gate = tmp_path / "gate"
        held = await client.delegate("until", {"file": str(gate)})
        waiting = await client.delegate("never", role="nobody")
        await eventually(lambda: [note for note in worker.journal() if note["task_id"] == held.task_id])

        ballast = fill(small_disk, leave=3 * MIB)
        failed = await eventually(lambda: refused(client, 10))
        assert isinstance(failed, ResourceExhausted)
        assert failed.reason == "DISK_LOW"
        assert failed.retry_after is not None
        component = await store_of(client)
        assert component.status == pb.HEALTH_STATUS_DEGRADED
        assert "nearly full" in component.reason
        gate.touch()
        assert (await client.wait_task(held.task_id, timeout=20)).state == SUCCEEDED
        assert (await client.cancel_task(waiting.task_id)).state == task_pb2.TASK_STATE_CANCELED

        ballast.unlink()
        await eventually(lambda: store_is(client, pb.HEALTH_STATUS_OK))
        assert await refused(client) is None


class Connections:
    """Gives a store in this process connections that can do less than they should."""

    def __init__(self, app: App) -> None:
        assert isinstance(app.store, SqliteStore)
        self._store = app.store
        self._connect = self._store._database._sqlite
        self.pragma = ""
        self._store._database._sqlite = self._open

    def _open(self, *arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = self._connect(*arguments, **more)
        if self.pragma:
            connection.execute(self.pragma)
        return connection

    async def use(self, pragma: str) -> None:
        """Let the writer have a new connection with this pragma; an empty one is a whole one."""
        self.pragma = pragma
        await self._store._writer.submit(self._store._writer.drop)


@pytest.mark.parametrize(
    ("pragma", "word"), [("PRAGMA query_only=ON", "readonly"), ("PRAGMA max_page_count=1", "full")]
)
async def test_a_database_that_cannot_be_written_is_told_in_health_and_recovers(
    tmp_path: Path, pragma: str, word: str
) -> None:
    async with open_served(tmp_path / "data") as (app, client):
        await client.delegate("never", role="nobody", task_id="before")
        connections = Connections(app)
        await connections.use(pragma)
        failed = await eventually(lambda: refused(client), limit=30)
        assert isinstance(failed, Unavailable)
        assert failed.reason == "STORE_UNAVAILABLE"
        component = await store_of(client)
        assert component.status == pb.HEALTH_STATUS_DEGRADED
        assert word in component.reason
        assert (await client.get_task("before")).task_id == "before"
        before = (await client.health()).last_sequence

        await connections.use("")
        task = await client.delegate("never", role="nobody", task_id="after")
        assert task.state == task_pb2.TASK_STATE_QUEUED
        await eventually(lambda: store_is(client, pb.HEALTH_STATUS_OK))
        log = await read_log(client)
        assert log[-1].sequence == before + 1
        fold(log)


# What keeps a server from starting ------------------------------------------------------------------------------------


def start(*arguments: str) -> tuple[int, str]:
    """Run `agenthived serve` until it ends by itself; returns its exit code and what it says."""
    command = [sys.executable, "-m", "agenthive_server", "serve", "--no-runner", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert "SERVING" not in ended.stdout
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


def one_sentence(stderr: str) -> str:
    """Return what a person reads: a single line that says who speaks."""
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("agenthived: ")
    return lines[0]


def test_a_damaged_database_is_told_and_nothing_is_touched(tmp_path: Path) -> None:
    async def make() -> None:
        async with open_served(tmp_path) as (_, client):
            for _ in range(50):
                await client.delegate("any", b"x" * 10_000)

    asyncio.run(make())
    path = tmp_path / "hive.db"
    raw = bytearray(path.read_bytes())
    raw[8_192 : len(raw) // 2] = b"\xa5" * (len(raw) // 2 - 8_192)
    path.write_bytes(raw)
    code, said = start("--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "hive.db" in one_sentence(said)
    assert "damaged" in said
    assert path.read_bytes() == raw


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "hive.db").write_text("these are my notes, not a database\n" * 200)
    code, said = start("--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "hive.db is not a SQLite database" in one_sentence(said)


def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "hive.db")) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
        connection.commit()
    code, said = start("--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "another program" in one_sentence(said)


def test_a_folder_that_cannot_be_written_is_told(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, said = start("--data-dir", str(small_disk), "--listen", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "Read-only file system" in one_sentence(said)


def test_a_disk_that_is_full_at_the_start_is_told(small_disk: Path) -> None:
    fill(small_disk, leave=0)
    code, said = start("--data-dir", str(small_disk), "--listen", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "space" in one_sentence(said).lower()


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = start("--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{port}")
    assert code == 1
    assert f"127.0.0.1:{port}" in one_sentence(said)
    assert "in use" in said


async def test_a_second_server_on_the_same_data_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data") as server, Client(server.target) as client:
        code, said = await asyncio.to_thread(
            start, "--data-dir", str(tmp_path / "data"), "--listen", f"127.0.0.1:{free_port()}"
        )
        assert code == 1
        assert "is in use by another process" in one_sentence(said)
        code, said = await asyncio.to_thread(start, "--data-dir", str(tmp_path / "other"), "--listen", server.target)
        assert (code, "in use" in said) == (1, True)
        assert (await client.health()).status == pb.HEALTH_STATUS_OK


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_an_address_others_can_reach_is_refused_unless_told_otherwise(tmp_path: Path, listen: str) -> None:
    code, said = start("--data-dir", str(tmp_path), "--listen", listen)
    assert code == 1
    assert "--insecure" in one_sentence(said)


async def test_insecure_is_logged_on_every_start(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data", "--insecure", "--listen", "0.0.0.0:0") as server:
        assert "without TLS and authentication" in server.log()
        assert await server.stop() == 0
        await server.start()
        assert server.log().count("without TLS and authentication") == 2


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_is_none_is_told(tmp_path: Path, listen: str) -> None:
    code, said = start("--data-dir", str(tmp_path), "--listen", listen)
    assert code == 1
    assert "HOST:PORT" in one_sentence(said)


def test_a_store_of_no_known_kind_is_told(tmp_path: Path) -> None:
    code, said = start("--data-dir", str(tmp_path), "--store", "mysql://somewhere")
    assert code == 1
    assert "sqlite:///PATH" in one_sentence(said)


def test_a_mistake_in_the_fleet_file_is_told_with_its_line(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[server]\nlog_level = "info"\n\n[[agents]]\nid = "one"\ncommand = ["x"]\nslots = "many"\n')
    code, said = start("--config", str(fleet), "--data-dir", str(tmp_path))
    assert code == 1
    assert f"{fleet}:7: " in one_sentence(said)
    assert "Expected `int`" in said


async def test_a_database_copied_while_nobody_uses_it_serves_on(tmp_path: Path) -> None:
    async with open_process(tmp_path / "data") as server, Client(server.target) as client:
        await client.delegate("any", task_id="kept", role="nobody")
        assert await server.stop() == 0
        await asyncio.to_thread(shutil.copytree, tmp_path / "data", tmp_path / "copy")
    async with open_process(tmp_path / "copy") as server, Client(server.target) as client:
        assert (await client.get_task("kept")).task_id == "kept"
