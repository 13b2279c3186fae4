"""Bytes to messages, with their size and syntax checked, and a bidirectional stream of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from agenthive_server.kernel.errors import BadRequest, Overloaded

Context = Any
"""grpc.aio's servicer context; its published types do not cover what is used here."""

Read = Callable[[bytes], Any]
"""Makes a message of raw bytes."""


def reader(request: type[Message], limit: int) -> Read:
    """Return what makes a message of raw bytes.

    It raises `Overloaded` when they are too many and `BadRequest` when they are no such message.
    """
    parse = request.FromString

    def read(raw: bytes) -> Message:
        if len(raw) > limit:
            raise Overloaded(
                f"the message has {len(raw)} bytes, more than the limit of {limit}",
                reason="MESSAGE_TOO_LARGE",
                metadata={"limit": str(limit), "size": str(len(raw))},
            )
        try:
            return parse(raw)
        except DecodeError:
            text = f"the bytes received are no {request.DESCRIPTOR.full_name}"
            raise BadRequest(text, reason="MALFORMED_MESSAGE") from None

    return read


class Duplex:
    """A bidirectional stream: `read` from one coroutine at a time, `write` from one at a time."""

    __slots__ = ("_context", "_read")

    def __init__(self, context: Context, read: Read) -> None:
        self._context = context
        self._read = read

    async def read(self) -> Any:
        """Return the client's next message, or None at its end.

        Raises `BadRequest` or `Overloaded` for bytes that are no such message or too large.
        """
        raw = await self._context.read()
        return None if raw is grpc.aio.EOF else self._read(raw)

    async def write(self, message: Message | bytes) -> None:
        """Send a message; returns when gRPC has taken it, which slow readers delay."""
        await self._context.write(message if isinstance(message, bytes) else message.SerializeToString())

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the client's messages until its end."""
        while (message := await self.read()) is not None:
            yield message
