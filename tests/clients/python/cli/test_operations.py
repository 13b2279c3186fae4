"""Messages, blobs, plugins, health, metrics and routing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agenthive.v1 import message_pb2, orchestrator_service_pb2, plugin_service_pb2, task_pb2

Hive = Callable[..., Any]
OK, DEGRADED, DOWN = (
    orchestrator_service_pb2.HEALTH_STATUS_OK,
    orchestrator_service_pb2.HEALTH_STATUS_DEGRADED,
    orchestrator_service_pb2.HEALTH_STATUS_DOWN,
)


def test_a_message_steers_a_task(hive: Hive, fake: Any) -> None:
    answer = hive("messages", "send", "--task", "t-1", "look here", "--urgency", "now", "--ttl", "1h", "--from", "a-9")
    assert answer.code == 0
    assert "m-1 QUEUED NOW  a caller to task t-1: look here" in answer.out
    [asked] = fake.requests["SendMessageRequest"]
    assert asked.urgency == message_pb2.MESSAGE_URGENCY_NOW
    assert asked.ttl.seconds == 3600
    assert asked.sender_agent_id == "a-9"


def test_a_message_has_one_recipient(hive: Hive) -> None:
    assert hive("messages", "send", "hello").code == 2
    assert hive("messages", "send", "hello", "--task", "t", "--agent", "a").code == 2


def test_a_broadcast_tells_its_id(hive: Hive, fake: Any) -> None:
    assert hive("messages", "broadcast", "stop", "--role", "builder").out == "b-1\n"
    assert hive("messages", "broadcast", "stop", "-o", "json").json == {"broadcast_id": "b-1"}
    assert fake.requests["BroadcastMessageRequest"][0].role == "builder"


def test_messages_are_read_and_acknowledged(hive: Hive, fake: Any) -> None:
    hive("messages", "send", "--agent", "a-1", '{"n": 1}')
    hive("messages", "send", "--agent", "a-1", "two")
    first, second = hive("messages", "read", "a-1", "--ack", "-o", "json").lines
    assert first["payload"]["data"] == {"n": 1}
    assert second["payload"]["data"] == "two"
    assert {message.state for message in fake.messages.values()} == {message_pb2.MESSAGE_STATE_READ}
    assert hive("messages", "read", "a-2").err == "no messages for a-2\n"


def test_messages_are_acknowledged_by_id(hive: Hive, fake: Any) -> None:
    hive("messages", "send", "--agent", "a-1", "one")
    assert hive("messages", "ack", "a-1", "m-1").code == 0
    assert fake.messages["m-1"].state == message_pb2.MESSAGE_STATE_READ


def test_a_blob_goes_up_and_comes_down(hive: Hive, fake: Any, tmp_path: Path) -> None:
    there, back = tmp_path / "a.json", tmp_path / "b"
    there.write_bytes(b"[1]")
    blob_id = hive("blobs", "put", str(there)).out.strip()
    assert fake.requests["UploadBlobRequest"][0].content_type == "application/json"
    assert hive("blobs", "get", blob_id).out == "[1]"
    assert hive("blobs", "get", blob_id, str(back)).code == 0
    assert back.read_bytes() == b"[1]"
    assert hive("blobs", "get", blob_id, str(back)).code == 2
    assert hive("blobs", "get", blob_id, str(back), "--force").code == 0
    assert hive("blobs", "get", "sha256:0").code == 4
    assert hive("blobs", "put", "-", stdin=b"\x00\xff", ).code == 0  # fmt: skip


def test_plugins_are_listed_and_shown(hive: Hive, fake: Any) -> None:
    plugin = plugin_service_pb2.Plugin(
        name="security", summary="Who may do what.", state=plugin_service_pb2.PLUGIN_STATE_ENABLED
    )
    plugin.config.update({"mode": "strict"})
    fake.plugins["security"] = plugin
    assert hive("plugins", "list").out.splitlines()[1].split()[:2] == ["security", "ENABLED"]
    assert '"mode": "strict"' in hive("plugins", "get", "security").out
    assert hive("plugins", "get", "security", "-o", "json").json["config"] == {"mode": "strict"}
    assert hive("plugins", "get", "other").code == 4
    plugin.acts.add(name="Authenticate", kind=plugin_service_pb2.PLUGIN_ACT_KIND_INTERCEPTOR, stage="IDENTIFY")
    plugin.acts[0].call_count, plugin.acts[0].total_time.nanos = 1_000, 1_500_000
    words = " ".join(hive("plugins", "show", "security").out.split())
    assert "Authenticate interceptor identify 1000 0 1.5 µs" in words


def test_plugins_are_switched(hive: Hive, fake: Any) -> None:
    fake.plugins["security"] = plugin_service_pb2.Plugin(name="security")
    assert "ENABLED" in hive("plugins", "enable", "security").out
    assert "DISABLED" in hive("plugins", "disable", "security", "--request-id", "r").out
    assert fake.requests["DisablePluginRequest"][0].request_id == "r"


def test_settings_are_changed_one_by_one_or_all_at_once(hive: Hive, fake: Any, tmp_path: Path) -> None:
    plugin = plugin_service_pb2.Plugin(name="security", revision=7)
    plugin.config.update({"mode": "strict", "limit": 5})
    fake.plugins["security"] = plugin
    assert hive("plugins", "configure", "security", "limit=9", "names=[1]", "note=so so").code == 0
    request = fake.requests["ConfigurePluginRequest"][0]
    assert request.revision == 7
    assert dict(request.config)["note"] == "so so"
    assert hive("plugins", "show", "security", "-o", "json").json["config"] == {
        "mode": "strict", "limit": 9, "names": [1], "note": "so so"
    }  # fmt: skip
    file = tmp_path / "settings.json"
    file.write_text('{"limit": 2}')
    assert hive("plugins", "configure", "security", "--replace", "--file", str(file)).code == 0
    assert '"limit": 2' in hive("plugins", "show", "security").out
    assert "strict" not in hive("plugins", "show", "security").out
    file.write_text("[]")
    assert hive("plugins", "configure", "security", "--file", str(file)).code == 2
    assert hive("plugins", "configure", "security", "--file", str(tmp_path / "none")).code == 2
    assert hive("plugins", "configure", "security").code == 2


@pytest.mark.parametrize(
    ("status", "draining", "words", "code"),
    [
        (OK, False, (), 0),
        (DEGRADED, False, (), 0),
        (DEGRADED, False, ("--strict",), 1),
        (DOWN, False, (), 2),
        (OK, True, (), 2),
    ],
)
def test_health_is_in_the_exit_code(
    hive: Hive, fake: Any, status: Any, draining: bool, words: tuple[str, ...], code: int
) -> None:
    fake.health.status = status
    fake.health.draining = draining
    fake.health.components.add(name="store", status=status, reason="slow disk")
    answer = hive("health", *words)
    assert answer.code == code
    assert "version 9.9" in answer.out
    assert "slow disk" in answer.out


def replicas(fake: Any) -> None:
    fake.add_replica("r-1", sessions=2, held_tasks=1, calls_per_second=12.4, cpu_cores=0.5, memory_bytes=2**27,
                     roles=["dispatcher"], lag_events=3)  # fmt: skip
    ill = fake.add_replica("r-2", state=orchestrator_service_pb2.REPLICA_STATE_AWAY, status=DOWN)
    ill.event_loop_lag.FromMilliseconds(40)
    ill.troubles.add(name="store", status=DOWN, reason="no route to\nhost")
    fake.add_replica("r-3", status=DEGRADED)


def test_health_shows_all_replicas_and_what_is_wrong_with_others(hive: Hive, fake: Any) -> None:
    fake.health.status = OK
    replicas(fake)
    answer = hive("health")
    # The exit code is that of the replica that answers.
    assert answer.code == 0
    assert ", replica r-1" in answer.out
    rows = {line.split()[0]: line.split() for line in answer.out.splitlines() if line.startswith("r-")}
    assert " ".join(rows["r-1"]) == "r-1 r-1.example:50051 OK 2 1 12 0 ms 3 50% 128.0 MiB dispatcher"
    assert rows["r-2"][2:7] == ["AWAY", "0", "0", "0", "40"]
    assert rows["r-3"][2] == "DEGRADED"
    assert "DOWN store of r-2: no route to host" in answer.out
    assert [each["replica_id"] for each in hive("health", "-o", "json").json["replicas"]] == ["r-1", "r-2", "r-3"]


def test_health_of_one_replica_leaves_out_the_others(hive: Hive, fake: Any) -> None:
    replicas(fake)
    answer = hive("health", "--replica")
    assert ", replica r-1" in answer.out
    assert "r-2" not in answer.out
    assert "REPLICA" not in answer.out
    assert fake.requests["HealthCheckRequest"][-1].this_replica_only


def test_health_of_nobody_is_2(alone: Hive) -> None:
    answer = alone("health", "--server", "127.0.0.1:1")
    assert (answer.code, answer.out) == (2, "")
    assert "no connection to" in answer.err


def test_health_waits_until_it_serves(hive: Hive, fake: Any) -> None:
    fake.health_answers = [DOWN, DOWN, OK]
    assert hive("health", "--wait", "10").code == 0
    fake.health_answers = []
    fake.health.status = DOWN
    assert hive("health", "--wait", "300ms").code == 2


def test_metrics_are_numbers_with_labels(hive: Hive, fake: Any) -> None:
    metric = orchestrator_service_pb2.Metric(name="agenthive_tasks_total", value=3)
    metric.labels.add(name="state", value="ok")
    fake.metrics = [metric, orchestrator_service_pb2.Metric(name="other", value=0.25)]
    first, second = hive("metrics").out.splitlines()[1:]
    assert first.split() == ["agenthive_tasks_total", "3", "state=ok"]
    assert second.split() == ["other", "0.25"]
    assert [each["name"] for each in hive("metrics", "agenthive", "-o", "json").json] == ["agenthive_tasks_total"]


def test_routing_says_why_not(hive: Hive, fake: Any) -> None:
    fake.routing.strategy = task_pb2.ROUTING_STRATEGY_ROUND_ROBIN
    fake.routing.candidates.add(agent_id="a-1", eligible=True, score=0.5)
    fake.routing.candidates.add(agent_id="a-2", exclusions=["CAPABILITIES", "NO_FREE_SLOT"])
    out = hive("explain", "--type", "review", "-c", "python").out
    assert out.startswith("1 of 2 agents could get it now; strategy round-robin\n")
    assert "a-2    no               CAPABILITIES, NO_FREE_SLOT" in out
    assert list(fake.requests["ExplainRoutingRequest"][0].spec.required_capabilities) == ["python"]
    assert hive("explain", "t-1", "-o", "json").json["candidates"][0]["agent_id"] == "a-1"
    assert hive("explain").code == 2
    assert hive("explain", "t-1", "--type", "x").code == 2
