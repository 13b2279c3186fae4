"""The ends of a child's pipes: read and written when they are ready, never blocking, never buffering."""

from __future__ import annotations

import asyncio
import os
from typing import IO

_BLOCK = 64 * 1024


class ReadPipe:
    """Reads what a child writes, as it comes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.silent = False
        """Whether somebody reads and there is nothing to read."""
        os.set_blocking(file.fileno(), False)

    async def read(self) -> bytes:
        """Up to 64 KiB as soon as there is any; empty at the end."""
        while True:
            if self._file.closed:
                return b""
            descriptor = self._file.fileno()
            try:
                return os.read(descriptor, _BLOCK)
            except BlockingIOError:
                self.silent = True
                try:
                    await _ready(descriptor, writing=False)
                finally:
                    self.silent = False

    def close(self) -> None:
        """Stop reading; nobody may be in `read`. Repeats are harmless."""
        self._file.close()


class WritePipe:
    """Writes what a child may or may not read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        os.set_blocking(file.fileno(), False)

    async def write(self, content: bytes) -> None:
        """Write all of it, however long the child takes to read.

        Raises BrokenPipeError when the child does not read any more. Cancelled, a part may have been written.
        """
        rest = memoryview(content)
        while rest:
            if self._file.closed:
                raise BrokenPipeError
            descriptor = self._file.fileno()
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                await _ready(descriptor, writing=True)

    def close(self) -> None:
        """The end of the input; nobody may be in `write`. Repeats are harmless."""
        self._file.close()


async def _ready(descriptor: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(descriptor, wake)
    try:
        await ready
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(descriptor)
