"""What the local runner is told."""

from __future__ import annotations

from pathlib import Path

from agenthive_server.local_runner import build_runner
from agenthive_server.settings import load


async def no_token() -> str:
    return ""


def test_it_is_told_where_the_server_is_and_what_the_settings_say(tmp_path: Path) -> None:
    flags = {
        "server.listen": "0.0.0.0:7",
        "server.insecure": True,
        "server.data_dir": str(tmp_path),
        "runner.labels": {"zone": "a"},
        "runner.maximum_agents": 3,
    }
    words = build_runner(load(flags=flags, environ={}), 4711, None, no_token)._command
    assert words[words.index("--server") + 1] == "127.0.0.1:4711"
    assert words[words.index("--label") + 1] == "zone=a"
    assert words[words.index("--maximum-agents") + 1] == "3"
    assert "--insecure" in words
    assert "--ca" not in words
