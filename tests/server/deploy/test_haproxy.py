"""HAProxy: what its file says, and what its health check sees."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from agenthive import Client, TaskContext, Worker
from agenthive.v1 import (
    blob_service_pb2,
    event_pb2,
    messaging_service_pb2,
    orchestrator_service_pb2,
    plugin_service_pb2,
    production_service_pb2,
    security_service_pb2,
    task_pb2,
    worker_service_pb2,
)
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.authority import Authority
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.limits import Limits
from agenthive_server.rpc.policy import POLICIES
from agenthive_server.testing.harness import free_port, open_sdk_workers
from agenthive_server.testing.waiting import eventually

Opens = Callable[..., AbstractAsyncContextManager[Any]]

FILES = (
    blob_service_pb2,
    messaging_service_pb2,
    orchestrator_service_pb2,
    plugin_service_pb2,
    production_service_pb2,
    security_service_pb2,
    worker_service_pb2,
)


# What the file says -------------------------------------------------------------------------------------------------


async def test_the_file_is_valid_without_a_warning(haproxy_binary: Path, tmp_path: Path, render: Any) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(render("haproxy.cfg", ("bind :50051", f"bind 127.0.0.1:{free_port()}")))
    command = (str(haproxy_binary), "-c", "-f", str(config))
    check = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=asyncio.subprocess.STDOUT)
    told = (await check.communicate())[0].decode()
    assert check.returncode == 0, told
    assert "WARNING" not in told
    assert "ALERT" not in told


def test_the_check_in_the_file_is_what_the_script_prints(deploy: Path, health_check: Any) -> None:
    lines = (deploy / "haproxy.cfg").read_text().splitlines()
    written = [line.strip() for line in lines if line.strip().startswith("tcp-check")]
    assert written == health_check.rules()


def test_every_stream_of_the_contract_travels_apart(deploy: Path) -> None:
    found = re.search(r"acl stream path -m end (.+)", (deploy / "haproxy.cfg").read_text())
    assert found
    services = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
    assert {service.full_name for service in services} >= {p.split("/")[1] for p in POLICIES if "agenthive" in p}
    streams = {
        f"/{method.name}"
        for service in services
        for method in service.methods
        if method.client_streaming or method.server_streaming
    }
    assert set(found[1].split()) == streams


def test_no_timeout_is_shorter_than_the_longest_call(deploy: Path) -> None:
    longest = max(policy.longest_deadline for policy in POLICIES.values())
    text = (deploy / "haproxy.cfg").read_text()
    for side in ("client", "server"):
        hours = re.search(rf"^    timeout {side} (\d+)h$", text, re.MULTILINE)
        assert hours
        assert int(hours[1]) * 3_600 > longest


def test_a_replica_that_lost_its_network_is_given_up_before_leases_end(deploy: Path) -> None:
    text = (deploy / "haproxy.cfg").read_text()
    servers = re.findall(r"^    server .*$", text, re.MULTILINE)
    assert len(servers) == 6
    # For what was sent and stays unanswered. On every line: of `default-server` it is not taken.
    unanswered = {int(found[1]) for line in servers if (found := re.search(r" tcp-ut (\d+)s", line))}
    assert all(" tcp-ut " in line for line in servers)
    probes = {name: int(n) for name, n in re.findall(r"srvtcpka-(\w+) (\d+)", text)}
    silent = probes["idle"] + probes["intvl"] * probes["cnt"]
    limits = Limits()
    assert max(limits.heartbeat_interval + max(unanswered), silent) < limits.reconnect_grace


# What the check sees ------------------------------------------------------------------------------------------------


async def test_a_replica_that_drains_is_taken_out_while_it_serves_and_comes_back(
    open_replicas: Opens, open_haproxy: Opens, make_callers: Callable[..., Any]
) -> None:
    async with (
        open_replicas(3) as (one, two, three),
        open_haproxy(one.target, two.target, three.target) as haproxy,
        make_callers(haproxy.target) as callers,
    ):
        await callers.more(20)
        assert one.process is not None
        now = asyncio.get_running_loop().time
        began = now()
        one.process.send_signal(signal.SIGTERM)
        await eventually(lambda: _down(haproxy, "one"), limit=5)
        assert now() - began < 3.0
        row = (await haproxy.stats())["one"]
        # Told apart from one that hangs, for whoever looks.
        assert (row["check_status"], row["last_chk"]) == ("L7RSP", "NOT_SERVING")
        assert (await haproxy.stats("streams"))["one"]["status"] == "DOWN"
        assert one.process.returncode is None, "it was still serving when nothing new came any more"
        assert await one.stop() == 0
        await callers.more(20)
        await one.start()
        await eventually(lambda: _up(haproxy, "one"), limit=5)
        await callers.more(20)
    assert callers.failures == []


async def test_a_replica_that_hangs_is_taken_out(open_replicas: Opens, open_haproxy: Opens) -> None:
    async with open_replicas(2) as (one, two), open_haproxy(one.target, two.target) as haproxy:
        one.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: _down(haproxy, "one"), limit=8)
        assert (await haproxy.stats())["one"]["check_status"] == "L7TOUT"
        async with Client(haproxy.target) as client:
            assert (await client.health()).status == pb.HEALTH_STATUS_OK
        one.process.send_signal(signal.SIGCONT)
        await eventually(lambda: _up(haproxy, "one"), limit=8)


async def _down(haproxy: Any, name: str) -> bool:
    return bool((await haproxy.stats())[name]["status"] == "DOWN")


async def _up(haproxy: Any, name: str) -> bool:
    return bool((await haproxy.stats())[name]["status"] == "UP")


async def test_streams_are_spread(open_replicas: Opens, open_haproxy: Opens) -> None:
    async with (
        open_replicas(3) as servers,
        open_haproxy(*(server.target for server in servers)) as haproxy,
        Client(haproxy.target) as client,
    ):
        made = [
            client._orchestrator.StreamEvents(pb.StreamEventsRequest(), metadata=client._metadata) for _ in range(9)
        ]
        for stream in made:
            await stream.read()
        # From one client, on one connection.
        assert [row["scur"] for row in (await haproxy.stats("streams")).values()] == ["3", "3", "3"]


async def test_without_a_replica_callers_are_told_in_their_own_terms(open_haproxy: Opens) -> None:
    async with open_haproxy() as haproxy, Client(haproxy.target) as client:
        message = ""
        try:
            await client.health(timeout=10)
        except Exception as error:  # noqa: BLE001 - looked at below
            message = str(error)
    assert message == "UNAVAILABLE: no replica serves"


# What the age of a connection does through it -----------------------------------------------------------------------


async def test_sessions_and_streams_move_on_with_age_and_nobody_notices(
    open_replicas: Opens, open_haproxy: Opens
) -> None:
    async with (
        open_replicas(1, server__maximum_connection_age_seconds=2.0) as (server,),
        open_haproxy(server.target) as haproxy,
        Client(haproxy.target) as client,
    ):
        worker = Worker(haproxy.target, agent_id="a", capabilities=["x"])
        release = asyncio.Event()
        told: list[event_pb2.Event] = []

        @worker.task("long")
        async def handle(task: TaskContext) -> str:
            await release.wait()
            return "done"

        async def follow() -> None:
            async for event in client.events(start=pb.STREAM_START_EARLIEST):
                told.append(event)  # noqa: PERF401 - it is looked at meanwhile

        following = asyncio.create_task(follow())
        async with open_sdk_workers(client, worker):
            task = await client.delegate("long")
            await eventually(lambda: _moves(told) >= 3)
            release.set()
            done = await client.wait_task(task.task_id)
            await eventually(lambda: following.done() or told[-1].task_id == task.task_id)
        assert not following.done()
        following.cancel()
    assert (done.state, done.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, 1)
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))
    reasons = {event.session_suspect.reason for event in told if event.HasField("session_suspect")}
    assert reasons == {"it was told to go on elsewhere"}


def _moves(told: list[event_pb2.Event]) -> int:
    return sum(event.HasField("session_suspect") for event in told)


# TLS ----------------------------------------------------------------------------------------------------------------


async def test_with_tls_on_both_sides(open_replicas: Opens, open_haproxy: Opens, folder: Path) -> None:
    authority = Authority.new(folder / "tls", SystemClock())
    pair = authority.issue_server([])
    both = folder / "hive.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    ca = str(authority.folder / "ca.pem")
    swaps = (("/etc/haproxy/hive.pem", str(both)), ("/etc/haproxy/hive-ca.pem", ca))
    flags = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    async with (
        open_replicas(2, *flags) as servers,
        open_haproxy(*(server.target for server in servers), swaps=swaps, tls=True) as haproxy,
        Client(haproxy.target, ca=Path(ca)) as client,
    ):
        assert (await client.health()).status == pb.HEALTH_STATUS_OK
        stream = client._orchestrator.StreamEvents(pb.StreamEventsRequest(), metadata=client._metadata)
        assert await stream.read()
        stream.cancel()
        assert await haproxy.states() == ["UP", "UP", "DOWN"]
