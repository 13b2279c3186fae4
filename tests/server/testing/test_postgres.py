"""A private server keeps its data over a kill, lets nobody in without the password, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # the driver has no types
import pytest
from agenthive_server.testing.postgres import PostgresServer, open_postgres


async def ask(url: str, question: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


def test_it_runs_as_an_ordinary_user_and_survives_what_is_done_to_it(postgres_binaries: Path) -> None:
    with open_postgres(postgres_binaries, {"work_mem": "7MB"}) as server:
        folder, pid = server._folder, _pid(server)
        assert Path(f"/proc/{pid}").stat().st_uid == (os.geteuid() or 65_534)
        assert asyncio.run(ask(server.url(), "SHOW work_mem")) == "7MB"
        asyncio.run(ask(server.url(), "CREATE TABLE notes (n int)"))
        for harm in (server.kill, server.stop):
            asyncio.run(ask(server.url(), "INSERT INTO notes VALUES (1)"))
            harm()
            with pytest.raises(OSError, match="Connect"):
                asyncio.run(ask(server.url(), "SELECT 1"))
            server.start()
        assert asyncio.run(ask(server.url(), "SELECT count(*) FROM notes")) == 2
        with pytest.raises(asyncpg.InvalidPasswordError):
            asyncio.run(ask(server.url().replace("hive:", "hive:not"), "SELECT 1"))
        pid = _pid(server)
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def _pid(server: PostgresServer) -> int:
    assert server._process is not None
    return server._process.pid


def test_what_keeps_it_from_starting_is_told(postgres_binaries: Path) -> None:
    with (
        pytest.raises(RuntimeError, match='invalid value for parameter "work_mem"'),
        open_postgres(postgres_binaries, {"work_mem": "a little"}),
    ):
        pass
