"""`hive agents` against a hive in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agenthive.v1 import agent_pb2

Hive = Callable[..., Any]


def test_agents_are_listed_a_line_each(hive: Hive, fake: Any) -> None:
    fake.add_agent("reviewer-1", "BUSY", role="reviewer", capabilities=["python"], slots=2, open_lease_count=2)
    fake.add_agent("builder-1", "IDLE", role="builder")
    answer = hive("agents", "list")
    assert answer.code == 0
    head, first, second = answer.out.splitlines()
    assert head.split() == ["AGENT", "STATE", "SLOTS", "ROLE", "CAPABILITIES", "DRIVER", "AGE", "WHY"]
    assert first.split()[:5] == ["reviewer-1", "BUSY", "2/2", "reviewer", "python"]
    assert second.split()[:4] == ["builder-1", "IDLE", "0/1", "builder"]


def test_the_list_is_filtered_by_the_server(hive: Hive, fake: Any) -> None:
    fake.add_agent("a", "IDLE", role="reviewer")
    fake.add_agent("b", "BUSY", role="reviewer")
    answer = hive("agents", "list", "--state", "idle", "--role", "reviewer", "--label", "team=blue", "-o", "json")
    assert [agent["agent_id"] for agent in answer.json] == ["a"]
    [asked] = fake.requests["ListAgentsRequest"]
    assert asked.states == [agent_pb2.AGENT_STATE_IDLE]
    assert asked.labels == {"team": "blue"}


def test_no_agents_are_a_sentence_for_people_and_an_empty_list_for_scripts(hive: Hive) -> None:
    assert hive("agents", "list").out == "no agents\n"
    assert hive("agents", "list", "--output", "json").json == []


def test_an_unknown_state_names_the_known_ones(hive: Hive) -> None:
    answer = hive("agents", "list", "--state", "lazy")
    assert answer.code == 2
    assert "'lazy' is none of starting, idle, busy" in answer.err


def test_one_agent_is_shown_with_all_about_it(hive: Hive, fake: Any) -> None:
    agent = fake.add_agent("a-1", "FAILED", role="r", labels={"x": "1"})
    agent.state_reason = "exit code 3"
    out = hive("agents", "get", "a-1").out
    assert "state     FAILED\n" in out
    assert "why       exit code 3\n" in out
    assert "labels    x=1\n" in out


def test_a_process_agent_is_spawned_with_its_command(hive: Hive, fake: Any) -> None:
    answer = hive(
        "agents", "spawn", "--id", "p-1", "--role", "reviewer", "-c", "python", "-c", "rust", "--slots", "2",
        "--label", "team=blue", "--process", "--mode", "agent", "--restart", "always", "--env", "LEVEL=3",
        "--stop-grace", "1m", "-o", "json", "--", "python", "agent.py", "--server", "not-ours",
    )  # fmt: skip
    assert answer.code == 0
    assert answer.json["state"] == "AGENT_STATE_STARTING"
    [asked] = fake.requests["SpawnAgentRequest"]
    assert asked.agent_id == "p-1"
    assert asked.request_id
    spec = asked.spec
    assert list(spec.process.command) == ["python", "agent.py", "--server", "not-ours"]
    assert spec.process.mode == agent_pb2.PROCESS_MODE_AGENT
    assert [(each.name, each.value) for each in spec.process.environment] == [("LEVEL", "3")]
    assert (spec.role, list(spec.capabilities), spec.slots) == ("reviewer", ["python", "rust"], 2)
    assert spec.restart_policy.mode == agent_pb2.RESTART_MODE_ALWAYS
    assert spec.stop_grace.seconds == 60


def test_an_agent_without_a_command_is_remote(hive: Hive, fake: Any) -> None:
    assert hive("agents", "spawn", "--id", "far").code == 0
    assert fake.requests["SpawnAgentRequest"][0].spec.WhichOneof("driver") == "remote"


@pytest.mark.parametrize("words", [("--process",), ("--remote", "--process"), ("--remote", "--", "sleep")])
def test_a_contradiction_is_a_usage_error(hive: Hive, fake: Any, words: tuple[str, ...]) -> None:
    assert hive("agents", "spawn", *words).code == 2
    assert "SpawnAgentRequest" not in fake.requests


def test_spawn_can_wait_until_the_agent_is_ready(hive: Hive) -> None:
    answer = hive("agents", "spawn", "--id", "a", "--wait", "-o", "json")
    assert answer.code == 0
    assert answer.json["state"] == "AGENT_STATE_IDLE"


def test_an_update_keeps_what_it_does_not_name(hive: Hive, fake: Any) -> None:
    fake.add_agent("a", role="r", capabilities=["old"], labels={"x": "1", "y": "2"}, slots=1)
    answer = hive("agents", "update", "a", "-c", "new", "--label", "z=3", "--remove-label", "x", "--slots", "4")
    assert answer.code == 0
    [asked] = fake.requests["UpdateAgentRequest"]
    assert asked.revision == 1
    assert (asked.spec.role, list(asked.spec.capabilities), asked.spec.slots) == ("r", ["new"], 4)
    assert asked.spec.labels == {"y": "2", "z": "3"}


def test_shutdown_tells_reason_and_grace(hive: Hive, fake: Any) -> None:
    fake.add_agent("a")
    assert "DRAINING" in hive("agents", "shutdown", "a", "--reason", "old", "--grace", "0").out
    [asked] = fake.requests["ShutdownAgentRequest"]
    assert asked.reason == "old"
    assert asked.HasField("grace")
    assert asked.grace.seconds == 0


@pytest.mark.parametrize("verb", ["restart", "sleep", "wake"])
def test_the_other_verbs_answer_with_the_agent(hive: Hive, fake: Any, verb: str) -> None:
    fake.add_agent("a")
    answer = hive("agents", verb, "a", "-o", "json")
    assert answer.json["agent_id"] == "a"
    assert fake.requests[f"{verb.capitalize()}AgentRequest"][0].request_id
