"""`hive production`, `alerts`, `sla`, `pools` and `backups` against a real server with the plugin production on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.testing.harness import ServerProcess, open_process
from agenthive_server.testing.waiting import eventually

Hive = Callable[..., Any]
QUICK: dict[str, object] = {
    "plugins.enabled": '["production"]',
    "plugins.production.sample_interval_seconds": 0.2,
    "plugins.production.alert_interval_seconds": 0.2,
    "plugins.production.sla_interval_seconds": 0.2,
    "plugins.production.backup_enabled": "false",
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with open_process(tmp_path / "data", runner=True, settings=QUICK) as running:
        yield running


@pytest.fixture
def hive(alone: Hive, server: ServerProcess) -> Hive:
    return lambda *words: alone("--server", server.target, *words)


def test_the_status_says_what_was_measured_and_what_is_missing(hive: Hive) -> None:
    answer = hive("production")
    assert answer.code == 0, answer
    for word in ("health", "last backup", "none", "availability", "BUDGET LEFT"):
        assert word in answer.out
    found = hive("production", "-o", "json").json
    assert len(found["targets"]) == 4
    assert not found["recovery"]["can_recover"]


def test_a_new_hive_meets_its_levels(hive: Hive) -> None:
    answer = hive("sla")
    assert answer.code == 0, answer
    assert len(answer.out.splitlines()) == 5
    one = answer.out.splitlines()[1].split()[0]
    assert [each["target"]["target_id"] for each in hive("sla", one, "-o", "json").json["reports"]] == [one]
    assert hive("sla", "nobody").code == 4
    assert all(" 60m" in line for line in hive("sla", "--window", "60m").out.splitlines()[1:])
    assert hive("sla", "--window", "1s").code == 2


async def test_a_missed_level_ends_in_1_with_who_broke_it_and_its_alert_is_looked_after(
    server: ServerProcess, alone: Hive
) -> None:
    async def hive(*words: str) -> Any:
        return await asyncio.to_thread(alone, "--server", server.target, *words)

    assert (await hive("agents", "spawn", "-c", "work", "--process", "--", "false")).code == 0
    for number in range(3):
        words = ("tasks", "delegate", "work", "-c", "work", "--attempts", "1", "--id", f"t-{number}")
        assert (await hive(*words)).code == 0
    for number in range(3):
        assert (await hive("tasks", "wait", f"t-{number}", "--timeout", "30")).code == 1

    async def missed() -> Any:
        answer = await hive("sla", "task_completion_rate")
        return answer if answer.code == 1 and "TOOL: 3" in answer.out else None

    answer = await eventually(missed, limit=30)
    assert "MISSED" in answer.out
    assert "3 failed tasks of 3" in answer.out

    async def fired() -> Any:
        return (await hive("alerts", "list", "--rule", "task_completion_rate", "-o", "json")).json

    (alert, *_) = await eventually(fired, limit=30)
    assert "task_completion_rate" in (await hive("alerts", "list", "--min-severity", "high")).out
    taken = await hive("alerts", "acknowledge", alert["alert_id"], "--note", "on it")
    assert (taken.code, "ACKNOWLEDGED" in taken.out, "on it" in taken.out) == (0, True, True)
    assert "ACKNOWLEDGED" in (await hive("alerts", "get", alert["alert_id"])).out
    ended = await hive("alerts", "resolve", alert["alert_id"], "-o", "json")
    assert ended.json["state"] == "ALERT_STATE_RESOLVED"
    assert (await hive("alerts", "acknowledge", alert["alert_id"])).code == 5
    listed = (await hive("alerts", "list", "--state", "resolved", "-o", "json")).json
    assert alert["alert_id"] in [each["alert_id"] for each in listed]


def test_alert_rules_are_told_as_people_say_them(hive: Hive) -> None:
    out = hive("alerts", "rules").out
    assert len(out.splitlines()) == 15
    assert "cpu_usage_percent > 80 over 5m" in out
    assert "critical" in out
    assert len(hive("alerts", "rules", "-o", "json").json) == 14
    assert hive("alerts", "list", "--rule", "nobody").out == "no alerts\n"
    assert hive("alerts", "get", "nobody").code == 4
    assert hive("alerts", "list", "--state", "gone").code == 2


def test_a_pool_is_made_changed_scaled_and_removed(hive: Hive) -> None:
    assert (hive("pools", "set", "w", "--max", "3").code, hive("pools", "get", "w").code) == (4, 4)
    made = hive(
        "pools", "set", "w", "--min", "1", "--max", "3", "--role", "builder", "-c", "work", "--cooldown", "1m", "-o",
        "json", "--", "true",
    )  # fmt: skip
    assert made.code == 0, made
    assert (made.json["min_agents"], made.json["cooldown"], made.json["stabilization"]) == (1, "60s", "300s")
    changed = hive("pools", "set", "w", "--max", "4", "-l", "team=blue", "--disable", "-o", "json").json
    assert (changed["min_agents"], changed["max_agents"], changed["disabled"]) == (1, 4, True)
    template = changed["template"]
    assert (template["role"], template["process"]["command"]) == ("builder", ["true"])
    assert (template["capabilities"], template["labels"]["team"]) == (["work"], "blue")
    assert int(changed["revision"]) > int(made.json["revision"])
    assert "team=blue" in hive("pools", "get", "w").out

    dry = hive("pools", "scale", "w", "--dry-run", "-o", "json").json
    assert (dry["current_agents"], dry["recommended_agents"]) == (0, 1)
    scaled = hive("pools", "scale", "w")
    assert (scaled.code, "scale up" in scaled.out, "0 to 1" in scaled.out) == (0, True, True)
    assert [each["current_agents"] for each in hive("pools", "list", "-o", "json").json] == [1]
    assert "builder" in hive("pools", "list").out
    assert hive("pools", "list", "--namespace", "blue").out.startswith("no pools")
    assert hive("pools", "set", "w", "--min", "9").code == 2
    assert hive("pools", "delete", "w").code == 0
    assert hive("pools", "scale", "w").code == 4


def test_a_pool_may_be_empty(hive: Hive) -> None:
    made = hive("pools", "set", "w", "--min", "0", "-o", "json", "--", "true").json
    assert (made["allow_empty"], made["min_agents"]) == (True, 0)
    made = hive("pools", "set", "w", "--min", "2", "--enable", "-o", "json").json
    assert (made["allow_empty"], made["min_agents"]) == (False, 2)


def test_a_backup_is_made_read_and_found_damaged(hive: Hive) -> None:
    assert hive("backups", "list").out == "no backups\n"
    made = hive("backups", "create", "--verify")
    assert (made.code, "VERIFIED" in made.out) == (0, True), made
    (backup,) = hive("backups", "list", "-o", "json").json
    assert hive("backups", "verify", backup["backup_id"]).code == 0
    assert "can recover     yes" in hive("production").out

    database = Path(backup["path"]) / "hive.db"
    raw = bytearray(database.read_bytes())
    raw[len(raw) // 2] ^= 1
    database.write_bytes(raw)
    damaged = hive("backups", "verify", backup["backup_id"])
    assert (damaged.code, "DAMAGED" in damaged.out) == (1, True)
    problems = hive("backups", "verify", backup["backup_id"], "-o", "json").json["problems"]
    assert problems[0] in hive("backups", "list").out
    assert hive("backups", "verify", "nobody").code == 4
