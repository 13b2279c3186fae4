"""HAProxy before a fleet, with the configuration that is shipped, on ports of its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agenthive_server.testing.harness import end_process, free_port
from agenthive_server.testing.waiting import eventually

DRAIN_DELAY: Final = 3.0
"""Seconds a replica serves on after it has said that it goes: longer than HAProxy takes to notice."""

_PLACES: Final = ("10.0.0.11:50051", "10.0.0.12:50051", "10.0.0.13:50051")


@dataclass(frozen=True)
class Front:
    """The program, and the file that is shipped."""

    program: Path
    config: Path


@asynccontextmanager
async def open_haproxy(front: Front, targets: Sequence[str], folder: Path) -> AsyncIterator[str]:
    """Run it before three replicas; yields its HOST:PORT. Raises ValueError when the file is not as expected."""
    port = free_port()
    swaps = [*zip(_PLACES, targets, strict=True), ("bind :50051", f"bind 127.0.0.1:{port}")]
    # The folder of a test has too long a name for a socket in it; this one is in none.
    swaps += [("127.0.0.1:8404", f"127.0.0.1:{free_port()}"), ("/run/haproxy/admin.sock", f"abns@hive-{port}")]
    text = front.config.read_text(encoding="utf-8")
    for old, new in swaps:
        if old not in text:
            raise ValueError(f"{front.config} says nothing of {old!r}")
        text = text.replace(old, new)
    config, log = folder / "haproxy.cfg", folder / "haproxy.log"
    config.write_text(text, encoding="utf-8")
    with log.open("ab") as said:
        process = await asyncio.create_subprocess_exec(front.program, "-f", str(config), stdout=said, stderr=said)
    try:
        await eventually(lambda: _listens(port), what="HAProxy listens")
        yield f"127.0.0.1:{port}"
    finally:
        await end_process(process, signal.SIGTERM)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
