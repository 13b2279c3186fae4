"""Plugins on three servers of one hive: one of them calls the handlers, and when it is killed another goes on."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from agenthive.client import Client
from agenthive.errors import PermissionDenied, Unauthenticated
from agenthive.v1 import plugin_service_pb2
from agenthive_server.testing.harness import ServerProcess, end_process, free_port
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.waiting import eventually

_PLACES = itertools.count()

PROGRAM = """
import asyncio, signal, sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agenthive_server.app import App
from agenthive_server.plugin.api import (
    Background, Config, Event, EventType, NewTask, Plugin, PluginContext, Registration, TaskSpec
)
from agenthive_server.plugin.registry import Registry
from agenthive_server.settings import load

name, port, folder, store = sys.argv[1:]
journal = open(f"{folder}/journal", "a", buffering=1)


@asynccontextmanager
async def opening(ctx: PluginContext[Config]) -> AsyncIterator[Plugin]:
    async def confirm(event: Event) -> None:
        if event.data["type"] == "order":
            journal.write(f"{name} handles {event.task_id}\\n")
            receipt = TaskSpec(type="receipt", title=event.task_id, required_capabilities=("none",))
            await ctx.verbs.delegate_tasks([NewTask(spec=receipt)])

    async def loop() -> None:
        journal.write(f"{name} begins loop\\n")
        try:
            await asyncio.Event().wait()
        finally:
            journal.write(f"{name} ends loop\\n")

    async def takes_over() -> None:
        journal.write(f"{name} takes over\\n")

    yield Plugin(
        handlers={EventType.TASK_DELEGATED: confirm}, tasks=(Background("loop", loop),), takes_over=takes_over
    )


async def main() -> None:
    flags = {"server.listen": f"127.0.0.1:{port}", "server.runner": False, "server.data_dir": f"{folder}/{name}"}
    app = App(load(flags={**flags, "server.store": store}, environ={}), registry=Registry([registration]))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await app.open()
    print("SERVING", flush=True)
    await stopped.wait()
    await app.close()


registration = Registration("orders", open=opening)
asyncio.run(main())
"""


class Shop:
    """Three server processes with the plugin `orders`, and a client of each."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self._store = store
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.clients: dict[str, Client] = {}

    async def start(self, stack: AsyncExitStack, name: str) -> None:
        port = free_port()
        errors = (self.folder / f"{name}.log").open("ab")
        stack.callback(errors.close)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(self.folder / "program.py"),
            *(name, str(port), str(self.folder), self._store),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
        stack.push_async_callback(end_process, process, signal.SIGKILL)
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert (await process.stdout.readline()).startswith(b"SERVING"), (self.folder / f"{name}.log").read_text()
        self.processes[name] = process
        self.clients[name] = await stack.enter_async_context(Client(f"127.0.0.1:{port}"))

    def journal(self) -> list[str]:
        path = self.folder / "journal"
        return path.read_text().splitlines() if path.exists() else []

    def holder(self) -> str:
        return next((line.split()[0] for line in reversed(self.journal()) if line.endswith("begins loop")), "")

    async def receipts(self) -> Counter[str]:
        client = next(iter(self.clients.values()))
        return Counter([task.spec.title async for task in client.list_tasks() if task.spec.type == "receipt"])

    async def confirmed(self, orders: set[str]) -> bool:
        return set(await self.receipts()) == orders


@pytest.fixture
async def shop(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[Shop]:
    (tmp_path / "program.py").write_text(PROGRAM)
    made = Shop(tmp_path, postgres.url(f"shop{next(_PLACES)}"))
    async with AsyncExitStack() as stack:
        for name in ("a", "b", "c"):
            await made.start(stack, name)
        yield made


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_handlers_and_loops_go_on_elsewhere_when_their_server_is_gone(shop: Shop, how: signal.Signals) -> None:
    orders: set[str] = set()
    clients = itertools.cycle(shop.clients.values())

    async def order(count: int) -> None:
        for _ in range(count):
            orders.add((await next(clients).delegate("order", required_capabilities=["none"])).task_id)

    await shop.clients["a"].enable_plugin("orders")
    for client in shop.clients.values():
        assert (await client.get_plugin("orders")).state == plugin_service_pb2.PLUGIN_STATE_ENABLED
    await eventually(shop.holder)
    await order(15)
    first = shop.holder()
    process = shop.processes.pop(first)
    if how is signal.SIGTERM:
        await eventually(lambda: shop.confirmed(orders))
    began = asyncio.get_running_loop().time()
    ending = asyncio.create_task(end_process(process, how))
    del shop.clients[first]
    clients = itertools.cycle(shop.clients.values())
    await order(15)
    await eventually(lambda: shop.confirmed(orders))
    assert asyncio.get_running_loop().time() - began < 10
    await ending
    # Every order was confirmed, and no repeat of a handler confirmed it twice.
    assert max((await shop.receipts()).values()) == 1
    second = shop.holder()
    assert second != first
    lines = [line for line in shop.journal() if "loop" in line or "takes over" in line]
    ended = [f"{first} ends loop"] if how is signal.SIGTERM else []
    begun = [[f"{name} takes over", f"{name} begins loop"] for name in (first, second)]
    assert lines == [*begun[0], *ended, *begun[1]]
    # Switched off on any server it is so on all; what happens meanwhile it comes to when it is switched on again.
    await next(clients).disable_plugin("orders")
    for client in shop.clients.values():
        assert (await client.get_plugin("orders")).state == plugin_service_pb2.PLUGIN_STATE_DISABLED
    before = len(shop.journal())
    missed = set(orders)
    await order(4)
    assert set(await shop.receipts()) == missed
    assert [line for line in shop.journal()[before:] if "handles" in line] == []
    await next(clients).enable_plugin("orders")
    await eventually(lambda: shop.confirmed(orders))
    assert max((await shop.receipts()).values()) == 1


async def test_protection_that_is_switched_on_anywhere_is_on_everywhere(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    settings = {"server.store": postgres.url(f"protected{next(_PLACES)}"), "server.drain_delay_seconds": 0}
    servers = [ServerProcess(tmp_path / f"replica{number}", settings=settings) for number in range(3)]
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.kill)
        await asyncio.gather(*(server.start() for server in servers))
        nobody = [await stack.enter_async_context(Client(server.target)) for server in servers]
        await nobody[1].enable_plugin("security")

        async def shut() -> bool:
            for client in nobody:
                try:
                    await client.delegate("any", role="nobody", request_id="")
                except (Unauthenticated, PermissionDenied):
                    continue
                return False
            return True

        await eventually(shut, limit=5)
        token = (servers[1].data_dir / "plugins/security/admin.token").read_text().strip()
        admins = [await stack.enter_async_context(Client(server.target, token=token)) for server in servers]
        for admin in admins:
            await admin.delegate("any", role="nobody")
        # A server that is killed and comes back is as protected as it was.
        await servers[2].kill()
        await servers[2].start()
        with pytest.raises(Unauthenticated):
            await nobody[2].delegate("any", role="nobody", request_id="")
        await admins[2].delegate("any", role="nobody")
        await admins[0].disable_plugin("security")

        async def open_again() -> bool:
            try:
                for client in nobody:
                    await client.delegate("any", role="nobody", request_id="")
            except Unauthenticated:
                return False
            return True

        await eventually(open_again, limit=5)
        for server in servers:
            assert "Traceback" not in server.log()
