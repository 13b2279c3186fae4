"""The bytes of a health check, sent to a real server as HAProxy sends them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from agenthive_server.app import App
from agenthive_server.rpc.health import LIVENESS, READINESS
from agenthive_server.testing.harness import open_app


async def _asked(app: App, rules: list[str], until: bytes) -> bytes:
    """Send what the rules say; return what comes back, until there is what is waited for, or for a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    for rule in rules:
        words = rule.split()
        if words[1] == "send-binary":
            writer.write(bytes.fromhex(words[2]))
    received = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            while until not in received and (more := await reader.read(4_096)):
                received += more
    writer.close()
    await writer.wait_closed()
    return received


@pytest.mark.parametrize("name", ["", READINESS, "agenthive.v1.WorkerService"])
async def test_a_server_says_whether_it_serves(health_check: ModuleType, name: str) -> None:
    serving, not_serving = health_check.answer(1), health_check.answer(2)
    async with open_app() as app:
        rules = health_check.rules(name)
        assert serving in await _asked(app, rules, serving)
        app.board.drain()
        answer = await _asked(app, rules, not_serving)
        assert not_serving in answer
        assert serving not in answer
        # Liveness is another question.
        assert serving in await _asked(app, health_check.rules(LIVENESS), serving)


async def test_nobody_is_up_under_an_unknown_name(health_check: ModuleType) -> None:
    async with open_app() as app:
        answer = await _asked(app, health_check.rules("no.such.Service"), health_check.answer(1))
    assert health_check.answer(1) not in answer
    assert b"grpc-status" in answer


def test_it_prints_lines_for_a_configuration(deploy: Path, health_check: ModuleType) -> None:
    command = [sys.executable, str(deploy / "health_check.py"), READINESS]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [line.strip() for line in printed.splitlines()] == health_check.rules(READINESS)


def test_a_name_too_long_for_its_place_is_refused(health_check: ModuleType) -> None:
    with pytest.raises(ValueError, match="127 bytes"):
        health_check.rules("x" * 128)
