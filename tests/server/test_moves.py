"""`agenthived migrate-store`, as a person types it."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
from pathlib import Path

import pytest
from agenthive_server.__main__ import main
from agenthive_server.testing.harness import ServerProcess, free_port, open_process, open_served
from agenthive_server.testing.postgres import PostgresServer

_SCHEMAS = itertools.count()

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url(f"cli{next(_SCHEMAS)}")


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    """The data directory of a hive that has ended."""
    async with open_served(tmp_path / "data") as (_, client):
        for name in ("a", "b", "c"):
            await client.delegate("work", task_id=name)
    return tmp_path / "data"


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    code = main(["migrate-store", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def place(data: Path) -> str:
    return f"sqlite:///{data}/hive.db"


def test_a_hive_is_moved_compared_and_taken_back(data: Path, url: str, capsys: Capture) -> None:
    hive = ("--from", place(data), "--to", url)
    code, told, error = run(capsys, *hive)
    assert (code, error) == (0, "")
    assert told.startswith(f"moved {data}/hive.db to postgresql://127.0.0.1:")
    assert "everything up to event 3 of log " in told
    assert "task                 3 rows" in told
    secret = url.partition("@")[0].rpartition(":")[2]
    assert secret not in told
    assert "agenthived serve --store 'postgresql://hive:***@127.0.0.1:" in told
    code, told, _ = run(capsys, *hive)
    assert (code, "there is nothing to do" in told) == (0, True)
    code, told, _ = run(capsys, *hive, "--verify-only")
    assert (code, "are the same" in told) == (0, True)
    code, told, _ = run(capsys, *hive, "--undo")
    assert (code, "can be served again, postgresql://127" in told) == (0, True)
    assert run(capsys, *hive)[0] == 0
    code, told, _ = run(capsys, "--from", place(data), "--undo")
    assert (code, "Do not serve postgresql://127" in told) == (0, True)
    assert run(capsys, "--from", place(data), "--undo")[0] == 1


def test_programs_are_told_in_json(data: Path, url: str, capsys: Capture) -> None:
    code, told, _ = run(capsys, "--from", place(data), "--to", url, "--output", "json")
    facts = json.loads(told)
    assert code == 0
    assert (facts["last_sequence"], facts["tables"]["task"]["rows"], facts["moved_before"]) == (3, 3, False)
    assert len(facts["tables"]["task"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--from", "hive.db", "--to", "postgresql://h/d"), "--from"),
        (("--from", "sqlite:///x", "--to", "sqlite:///y"), "--to sqlite:///y: expected postgresql://"),
        (("--from", "sqlite:///x"), "--to is missing"),
        (
            ("--from", "postgresql://me:secret@h/d", "--to", "postgresql://h/d"),
            "--from postgresql://h/d: expected sqlite",
        ),
    ],
)
def test_wrong_usage_is_told(words: tuple[str, ...], sentence: str, capsys: Capture) -> None:
    code, told, error = run(capsys, *words)
    assert (code, told) == (2, "")
    assert sentence in error
    assert "secret" not in error


def test_failures_are_sentences_with_codes_of_their_own(data: Path, url: str, capsys: Capture) -> None:
    code, _, error = run(capsys, "--from", "sqlite:///nowhere.db", "--to", url)
    assert (code, error) == (1, "agenthived: there is no database at nowhere.db\n")
    code, _, error = run(capsys, "--from", place(data), "--to", f"postgresql://me:secret@127.0.0.1:{free_port()}/hive")
    assert code == 1
    assert "cannot be opened" in error
    assert "secret" not in error


async def start(*words: str) -> asyncio.subprocess.Process:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "agenthive_server", "migrate-store", *words]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)


async def until_told(process: asyncio.subprocess.Process, words: str) -> None:
    """Wait until it has said something on stderr."""
    assert process.stderr is not None
    while words not in (line := (await process.stderr.readline()).decode()):
        assert line, "it has ended"


async def test_a_server_that_runs_is_told_of_and_nothing_is_served_twice(tmp_path: Path, url: str) -> None:
    async with open_process(tmp_path / "data") as server:
        hive = ("--from", place(tmp_path / "data"), "--to", url)
        refused = await start(*hive)
        _, error = await refused.communicate()
        assert refused.returncode == 75
        assert error.decode().splitlines()[-1].startswith("agenthived: all of ")
        waiting = await start(*hive, "--wait")
        await until_told(waiting, "stop the server now")
        assert await server.stop() == 0
        told, _ = await waiting.communicate()
        assert (waiting.returncode, told.split()[0]) == (0, b"moved")
        with pytest.raises(RuntimeError, match="was moved to postgresql://127"):
            await server.start()
    after = ServerProcess(tmp_path / "data", settings={"server.store": url})
    await after.start()
    assert await after.stop() == 0


async def test_ctrl_c_says_how_to_go_on(tmp_path: Path, url: str) -> None:
    async with open_process(tmp_path / "data"):
        waiting = await start("--from", place(tmp_path / "data"), "--to", url, "--wait")
        await until_told(waiting, "stop the server now")
        waiting.send_signal(signal.SIGINT)
        _, error = await waiting.communicate()
        assert waiting.returncode == 130
        assert error == b"agenthived: interrupted; the same command goes on where it was\n"
