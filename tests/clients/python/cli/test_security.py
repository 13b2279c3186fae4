"""`hive tokens`, `roles`, `audit`, `threats` and `compliance` against a real server with the plugin security on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.testing.harness import ServerProcess, open_process

Hive = Callable[..., Any]
SECURED = {"plugins.enabled": '["security"]'}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with open_process(tmp_path / "data", settings=SECURED) as running:
        yield running


@pytest.fixture
def admin(server: ServerProcess) -> Path:
    return server.data_dir / "plugins/security/admin.token"


@pytest.fixture
def hive(alone: Hive, server: ServerProcess, admin: Path) -> Hive:
    """Run one command line as the administrator; another `--token-file` behind it counts instead."""
    return lambda *words: alone("--server", server.target, "--token-file", str(admin), *words)


def written(folder: Path, secret: str, name: str = "a.token") -> str:
    (folder / name).write_text(secret)
    return str(folder / name)


def test_a_secret_is_printed_alone_and_lets_in_until_it_is_revoked(hive: Hive, tmp_path: Path) -> None:
    issued = hive("tokens", "issue", "alice", "--role", "viewer", "--ttl", "30d", "--description", "for a look")
    assert issued.code == 0, issued
    assert issued.out.startswith("ahv_")
    assert len(issued.out.split()) == 1
    assert "for a look" in issued.err
    assert issued.out.strip() not in issued.err

    alice = ("--token-file", written(tmp_path, issued.out))
    assert hive("agents", "list", *alice).code == 0
    refused = hive("agents", "shutdown", "a-1", *alice)
    assert (refused.code, refused.out) == (8, "")

    (token,) = hive("tokens", "list", "--principal", "alice", "-o", "json").json
    assert (token["namespaces"], token["roles"]) == (["default"], ["ROLE_VIEWER"])
    assert "alice" in hive("tokens", "list").out
    assert issued.out.strip() not in hive("tokens", "list", "-o", "json").out
    revoked = hive("tokens", "revoke", token["token_id"])
    assert (revoked.code, "REVOKED" in revoked.out) == (0, True)
    assert hive("agents", "list", *alice).code == 8
    assert [each["principal"] for each in hive("tokens", "list", "--state", "revoked", "-o", "json").json] == ["alice"]
    assert hive("tokens", "revoke", "nobody").code == 4


def test_a_secret_in_a_file_is_for_its_owner_only_and_not_printed(hive: Hive, tmp_path: Path) -> None:
    file = tmp_path / "out.token"
    issued = hive("tokens", "issue", "ops", "--role", "admin", "--all-namespaces", "--out", str(file))
    assert issued.code == 0, issued
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = file.read_text().strip()
    assert secret.startswith("ahv_")
    assert secret not in issued.out + issued.err
    assert "every one" in issued.out
    assert hive("tokens", "list", "--token-file", str(file)).code == 0
    assert list(tmp_path.glob(".*")) == []

    again = hive("tokens", "issue", "ops", "--role", "admin", "--out", str(file))
    assert (again.code, "--force" in again.err) == (2, True)
    assert file.read_text().strip() == secret
    assert len(hive("tokens", "list", "--principal", "ops", "-o", "json").json) == 1, "none was made in vain"
    assert hive("tokens", "issue", "ops", "--out", str(tmp_path / "no/such/folder")).code == 2
    forced = hive("tokens", "issue", "ops", "--out", str(file), "--force", "-o", "json")
    assert forced.json["principal"] == "ops"
    assert file.read_text().strip() != secret


def test_a_token_that_could_not_be_issued_leaves_no_file(hive: Hive, tmp_path: Path) -> None:
    refused = hive("tokens", "issue", "jwt:alice", "--out", str(tmp_path / "out.token"))
    assert refused.code == 2
    assert "principal" in refused.err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data"]


def test_a_repeat_says_that_the_secret_is_gone_and_what_to_do(hive: Hive) -> None:
    words = ("tokens", "issue", "ci", "--request-id", "r-1", "-o", "json")
    made = hive(*words).json
    assert made["secret"].startswith("ahv_")
    repeat = hive(*words)
    assert (repeat.code, repeat.out) == (5, "")
    error = json.loads(repeat.err)["error"]
    assert error["reason"] == "SECRET_GONE"
    assert f"hive tokens revoke {made['token']['token_id']}" in error["message"]


def test_join_tokens_name_whom_they_let_in(hive: Hive, tmp_path: Path) -> None:
    one = hive("tokens", "join", "--agent", "rev-1", "--namespace", "blue", "-o", "json").json
    assert one["secret"].startswith("ahvj_")
    assert one["token"]["scope"]["agent_id"] == "rev-1"
    assert one["token"]["namespaces"] == ["blue"]
    file = tmp_path / "build.join"
    assert "agents build-" in hive("tokens", "join", "--prefix", "build-", "--ttl", "1h", "--out", str(file)).out
    assert file.read_text().startswith("ahvj_")
    assert "zone=eu" in hive("tokens", "join", "--runner", "--label", "zone=eu").err
    kinds = {each["kind"] for each in hive("tokens", "list", "--kind", "join", "-o", "json").json}
    assert kinds == {"TOKEN_KIND_JOIN"}
    assert hive("tokens", "join").code == 2
    assert hive("tokens", "join", "--agent", "a", "--runner").code == 2


def test_roles_are_set_in_one_namespace_or_in_all(hive: Hive, tmp_path: Path) -> None:
    alice = ("--token-file", written(tmp_path, hive("tokens", "issue", "alice").out))
    assert hive("agents", "list", *alice).code == 8
    bound = hive("roles", "set", "alice", "--role", "viewer", "--role", "operator", "--namespace", "blue")
    assert bound.code == 0, bound
    assert "viewer, operator" in bound.out
    assert hive("agents", "list", "--namespace", "blue", *alice).code == 0
    assert hive("agents", "list", *alice).code == 8
    assert hive("roles", "set", "alice", "--role", "viewer", "-A").code == 0
    assert hive("agents", "list", *alice).code == 0
    found = hive("roles", "list", "--principal", "alice", "-o", "json").json
    assert {each["namespace"] for each in found} == {"*", "blue"}
    assert hive("roles", "delete", "alice", "--all-namespaces").code == 0
    assert hive("agents", "list", *alice).code == 8
    assert "blue" in hive("roles", "list").out
    assert hive("roles", "set", "alice", "--role", "king").code == 2
    assert hive("roles", "set", "alice").code == 2


def test_the_trail_is_listed_by_who_what_and_how_it_ended(hive: Hive, tmp_path: Path) -> None:
    alice = ("--token-file", written(tmp_path, hive("tokens", "issue", "alice", "--role", "viewer").out))
    assert hive("agents", "shutdown", "a-1", *alice).code == 8
    denied = hive("audit", "list", "--principal", "alice", "--outcome", "denied", "--since", "1h", "-o", "json").json
    assert [each["method"].rpartition("/")[2] for each in denied] == ["ShutdownAgent"]
    assert len(denied[0]["hash"]) == len(denied[0]["previous_hash"]) == 64
    out = hive("audit", "list", "--method", "IssueToken", "--method", "ShutdownAgent").out
    assert "DENIED" in out
    assert "IssueToken" in out
    assert hive("audit", "list", "--until", "2020-01-01").out == "no records\n"
    assert hive("audit", "list", "--category", "user-management", "--limit", "1", "-o", "json").json
    assert hive("audit", "list", "--since", "yester-day").code == 2


def test_an_export_is_whole_private_and_holds_the_hashes_of_the_list(hive: Hive, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        hive("tokens", "issue", name)
    file = tmp_path / "trail.jsonl"
    exported = hive("audit", "export", str(file))
    assert exported.code == 0, exported
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert f"{len(lines)} records" in exported.err
    assert [each["previous"] for each in lines[1:]] == [each["hash"] for each in lines[:-1]]
    listed = hive("audit", "list", "--limit", "0", "-o", "json").json
    assert {each["hash"] for each in lines} <= {each["hash"] for each in listed}
    piped = hive("audit", "export", "-", "--method", "IssueToken").lines
    assert {each["method"].rpartition("/")[2] for each in piped} == {"IssueToken"}
    assert hive("audit", "export", str(file)).code == 2
    assert hive("audit", "export", str(file), "--force", "-o", "json").json["record_count"] >= len(lines)


def flip(folder: Path) -> None:
    """Change one byte of the trail in the database of a server that is stopped."""
    database = sqlite3.connect(folder / "hive.db")
    with database:
        key, body = database.execute(
            "SELECT id, body FROM state WHERE id LIKE 'audit/%' ORDER BY length(body) DESC"
        ).fetchone()
        flipped = bytearray(body)
        flipped[len(body) // 2] ^= 1
        database.execute("UPDATE state SET body = ? WHERE id = ?", (bytes(flipped), key))
    database.close()


async def test_a_damaged_trail_ends_in_1_and_says_where(tmp_path: Path, alone: Hive) -> None:
    folder = tmp_path / "data"
    heads = tmp_path / "heads.json"
    admin = str(folder / "plugins/security/admin.token")

    async def hive(server: ServerProcess, *words: str) -> Any:
        return await asyncio.to_thread(alone, "--server", server.target, "--token-file", admin, *words)

    async with open_process(folder, settings=SECURED) as server:
        for name in ("a", "b", "c"):
            await hive(server, "tokens", "issue", name)
        whole = await hive(server, "audit", "verify")
        assert (whole.code, "INTACT" in whole.out) == (0, True), whole
        heads.write_text((await hive(server, "audit", "verify", "-o", "json")).out)
        assert (await hive(server, "audit", "verify", "--against", str(heads))).code == 0
        other = json.loads(heads.read_text())
        other["chains"][0]["head"]["hash"] = "00" * 32
        (tmp_path / "other.json").write_text(json.dumps(other))
        missing = await hive(server, "audit", "verify", "--against", str(tmp_path / "other.json"))
        assert (missing.code, "head missing" in missing.out) == (1, True)
        assert (await hive(server, "audit", "verify", "--against", admin)).code == 2
    flip(folder)
    async with open_process(folder, settings=SECURED) as server:
        damaged = await hive(server, "audit", "verify")
        assert damaged.code == 1
        assert "the trail is damaged" in damaged.out
        found = (await hive(server, "audit", "verify", "-o", "json")).json
        assert not found["intact"]
        assert found["faults"][0]["text"] in damaged.out
        assert str(found["faults"][0]["sequence"]) in damaged.out
        assert "trail broken" in (await hive(server, "compliance", "soc2")).out


def test_guessing_is_a_threat_that_can_be_resolved(hive: Hive, tmp_path: Path) -> None:
    for number in range(20):
        assert hive("agents", "list", "--token-file", written(tmp_path, f"ahv_{number:064d}")).code in (7, 8)
    (threat,) = hive("threats", "list", "--state", "open", "-o", "json").json
    assert threat["kind"] == "THREAT_KIND_FAILED_LOGINS"
    assert "failed logins" in hive("threats", "list").out
    resolved = hive("threats", "resolve", threat["threat_id"], "--comment", "a test")
    assert (resolved.code, "a test" in resolved.out) == (0, True)
    assert hive("threats", "list", "--state", "open").out == "no threats\n"
    assert hive("threats", "list", "--min-severity", "critical", "-o", "json").json == []
    assert hive("threats", "resolve", "nobody").code == 4


def test_a_report_counts_evidence_and_says_what_is_missing(hive: Hive) -> None:
    hive("tokens", "issue", "a")
    report = hive("compliance", "iso27001", "--since", "1d", "-o", "json").json
    assert report["framework"] == "COMPLIANCE_FRAMEWORK_ISO27001"
    assert {each["control_id"] for each in report["controls"]} == {"A.12.4.1", "A.9.2.6"}
    assert len(report["chains"][0]["head"]["hash"]) == 64
    out = hive("compliance", "soc2").out
    assert "CC6.1" in out
    assert "period not covered" in out
    assert hive("compliance", "soc2", "--strict").code == 1
    assert hive("compliance", "sox").code == 2


async def test_while_the_plugin_is_off_the_command_to_switch_it_on_is_named(alone: Hive, tmp_path: Path) -> None:
    async with open_process(tmp_path / "data") as server:
        for words, plugin in (
            (("tokens", "list"), "security"), (("audit", "verify"), "security"), (("roles", "list"), "security"),
            (("audit", "export", "-"), "security"), (("sla",), "production"), (("production",), "production"),
            (("backups", "create"), "production"), (("alerts", "list"), "production"),
        ):  # fmt: skip
            off = await asyncio.to_thread(alone, "--server", server.target, *words)
            assert (off.code, off.out) == (7, ""), words
            assert "PLUGIN_DISABLED" in off.err
            assert f"`hive plugins enable {plugin}`" in off.err
