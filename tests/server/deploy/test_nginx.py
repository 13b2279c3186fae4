"""nginx: what its file says, and what callers see when nobody serves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from agenthive import Client
from agenthive.errors import Unavailable
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.authority import Authority
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.rpc.policy import POLICIES
from agenthive_server.testing.waiting import eventually

Opens = Callable[..., AbstractAsyncContextManager[Any]]


def test_no_timeout_is_shorter_than_the_longest_call(deploy: Path) -> None:
    longest = max(policy.longest_deadline for policy in POLICIES.values())
    text = (deploy / "nginx.conf").read_text()
    for name in ("client_body_timeout", "send_timeout", "grpc_read_timeout", "grpc_send_timeout"):
        hours = re.search(rf"^ *{name} (\d+)h;$", text, re.MULTILINE)
        assert hours, name
        assert int(hours[1]) * 3_600 > longest


async def test_without_a_replica_callers_are_told_in_their_own_terms(open_nginx: Opens) -> None:
    async with open_nginx() as nginx, Client(nginx.target) as client:
        with pytest.raises(Unavailable, match="no replica answered"):
            await client.health(timeout=10)


async def test_a_drain_is_over_before_its_calls_are(open_replicas: Opens, open_nginx: Opens) -> None:
    """What nginx cannot do is told in its file: it passes calls on to a replica that says NOT_SERVING."""
    async with open_replicas(1) as (server,), open_nginx(server.target) as nginx, Client(nginx.target) as client:
        await client.health()
        stopping = asyncio.create_task(server.stop())
        await eventually(lambda: _draining(client))
        await client.delegate("work")
        assert await stopping == 0


async def _draining(client: Client) -> bool:
    return (await client.health()).draining


async def test_with_tls_on_both_sides(open_replicas: Opens, open_nginx: Opens, folder: Path) -> None:
    authority = Authority.new(folder / "tls", SystemClock())
    pair = authority.issue_server([])
    ca = authority.folder / "ca.pem"
    swaps = (
        ("/etc/nginx/hive.pem", str(pair.certificate)),
        ("/etc/nginx/hive.key", str(pair.key)),
        ("/etc/nginx/hive-ca.pem", str(ca)),
    )
    flags = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    async with (
        open_replicas(1, *flags) as (server,),
        open_nginx(server.target, swaps=swaps, tls=True) as nginx,
        Client(nginx.target, ca=ca) as client,
    ):
        assert (await client.health()).status == pb.HEALTH_STATUS_OK
