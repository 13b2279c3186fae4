"""A plugin's handler in a server that is killed again and again: every event has its effect, and has it once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agenthive.client import Client
from agenthive_server.testing.harness import free_port
from agenthive_server.testing.waiting import eventually

ORDERS = 24

PROGRAM = """
import asyncio, os, signal, sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agenthive_server.app import App
from agenthive_server.plugin.api import Config, Event, EventType, NewTask, Plugin, PluginContext, Registration, TaskSpec
from agenthive_server.plugin.registry import Registry
from agenthive_server.settings import load

port, folder, lives, moment = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
journal = open(f"{folder}/journal", "a", buffering=1)


class Orders:
    def __init__(self, ctx: PluginContext[Config]) -> None:
        self.ctx, self.left = ctx, lives

    def maybe_die(self, now: str) -> None:
        self.left -= now == moment
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def confirm(self, event: Event) -> None:
        if event.data["type"] != "order":
            return
        journal.write(f"{event.sequence}\\n")
        self.maybe_die("before")
        receipt = TaskSpec(type="receipt", title=event.task_id, required_capabilities=("none",))
        await self.ctx.verbs.delegate_tasks([NewTask(spec=receipt)])
        self.maybe_die("between")
        await self.ctx.state.put(f"confirmed/{event.task_id}", b"")
        self.maybe_die("after")


@asynccontextmanager
async def opening(ctx: PluginContext[Config]) -> AsyncIterator[Plugin]:
    yield Plugin(handlers={EventType.TASK_DELEGATED: Orders(ctx).confirm})


async def main() -> None:
    flags = {"server.listen": f"127.0.0.1:{port}", "server.runner": False, "server.data_dir": folder}
    registry = Registry([Registration("orders", open=opening)])
    app = App(load(flags={**flags, "plugins.enabled": ["orders"]}, environ={}), registry=registry)
    await app.open()
    print("SERVING", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
"""


class Shop:
    """The server process, started again whenever it was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.starts = 0
        self.dies = True
        self.process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        while True:
            # Never twice at the same moment.
            moment = ("before", "between", "after")[self.starts % 3]
            lives = str(2 + self.starts % 4) if self.dies else "-1"
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PROGRAM, str(self.port), str(self.folder), lives, moment),
                stdout=asyncio.subprocess.PIPE,
            )
            self.starts += 1
            await self.process.wait()

    def handled(self) -> list[int]:
        journal = self.folder / "journal"
        return [int(line) for line in journal.read_text().split()] if journal.exists() else []


@asynccontextmanager
async def open_shop(folder: Path) -> AsyncIterator[Shop]:
    shop = Shop(folder)
    running = asyncio.create_task(shop.run())
    try:
        yield shop
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        if shop.process is not None and shop.process.returncode is None:
            shop.process.kill()
            await shop.process.wait()


@pytest.mark.crash
async def test_a_handler_killed_half_way_skips_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop, Client(f"127.0.0.1:{shop.port}") as client:
        names = [f"order-{number:02}" for number in range(ORDERS)]

        async def order(name: str) -> None:
            await client.delegate("order", task_id=name, required_capabilities=["none"], timeout=60)

        async def receipts() -> list[str]:
            return sorted([task.spec.title async for task in client.list_tasks(type="receipt")])

        async def all_confirmed() -> bool:
            return len(await receipts()) >= ORDERS

        await asyncio.gather(*map(order, names))
        await eventually(lambda: len(set(shop.handled())) == ORDERS, limit=60)
        shop.dies = False
        await eventually(all_confirmed, limit=30)
        # It was killed many times on the way, in the middle of an event each time.
        assert shop.starts > 4
        assert len(shop.handled()) > ORDERS
        first_times = list(dict.fromkeys(shop.handled()))
        assert first_times == sorted(first_times)
        assert await receipts() == names
