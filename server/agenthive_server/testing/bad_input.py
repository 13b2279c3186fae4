"""Calls of raw bytes, and what is wrong with them: for proofs that garbage is answered with a typed error."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from agenthive.v1 import error_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships without types

REASONS: Final = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}  # noqa: SIM118 - no dict


@dataclass(frozen=True)
class Failed:
    """How a call ended: a code, and the reason and the field in its details."""

    code: str
    reason: str = ""
    field: str = ""
    text: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


class RawCaller:
    """Calls any method with any bytes."""

    def __init__(self, channel: grpc.aio.Channel, patience: float = 20.0) -> None:
        """`patience`: the deadline of each call in seconds."""
        self._channel = channel
        self._patience = patience

    async def call(self, path: str, raw: bytes, namespace: str = "default") -> Failed:
        """Send raw bytes as the only request; returns how the call ended."""
        open_call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(path)
        call = open_call(raw, metadata=(("agenthive-namespace", namespace),), timeout=self._patience)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return failure(error)
        return Failed("OK")

    async def send(self, path: str, raws: Sequence[bytes], namespace: str = "default") -> Failed:
        """Send raw requests and read all answers; returns how the call ended.

        CANCELLED without a reason: it had ended while a request was being sent, and gRPC's client does not say how.
        """
        open_call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(path)
        call = open_call(iter(raws), metadata=(("agenthive-namespace", namespace),), timeout=self._patience)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            ended = failure(error)
            return Failed("CANCELLED") if ended.text == "Internal error from Core" else ended
        return Failed("OK")


def failure(error: grpc.aio.AioRpcError) -> Failed:
    """Return what an error says of itself."""
    reason = name = ""
    metadata: tuple[tuple[str, str], ...] = ()
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                assert info.domain == "agenthive"
                reason, metadata = info.reason, tuple(info.metadata.items())
            elif detail.Unpack(bad):
                name = bad.field_violations[0].field
    return Failed(error.code().name, reason, name, error.details() or "", metadata)


BAD: Final[dict[int, tuple[Any, ...]]] = {
    FieldDescriptor.TYPE_STRING: ("x" * 100_000, "a\x00b"),
    FieldDescriptor.TYPE_ENUM: (9_999, -1),
    FieldDescriptor.TYPE_INT32: (-1, 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-1,),
    FieldDescriptor.TYPE_DOUBLE: (float("nan"), float("inf"), -1.0),
}


def malformed(message: Message, depth: int = 0) -> Iterator[tuple[str, Message]]:
    """Yield copies of a message, each with one field that is wrong, and the path of that field."""
    for each in message.DESCRIPTOR.fields:
        if each.message_type is not None:
            yield from malformed_inside(message, each, depth)
            continue
        for bad in BAD.get(each.type, ()):
            copy = type(message)()
            copy.CopyFrom(message)
            if each.is_repeated:
                getattr(copy, each.name).append(bad)
            else:
                setattr(copy, each.name, bad)
            yield each.name, copy


def malformed_inside(message: Message, each: Any, depth: int) -> Iterator[tuple[str, Message]]:
    """Yield copies with one wrong field further in."""
    kind = each.message_type
    assert kind is not None
    if kind.GetOptions().map_entry:
        for key, value in (("x" * 1_000, ""), ("", "x"), ("a\x00b", "x"), ("x", "y" * 1_000)):
            copy = type(message)()
            copy.CopyFrom(message)
            getattr(copy, each.name)[key] = value
            yield each.name, copy
        return
    if depth > 3 or kind.full_name == "google.protobuf.Struct":
        return
    if kind.full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp"):
        inner: Iterator[tuple[str, Message]] = iter(
            [
                ("", GetMessageClass(kind)(seconds=seconds, nanos=nanos))
                for seconds, nanos in ((-1, 0), (2**60, 0), (0, -1))
            ]
        )
    else:
        inner = malformed(GetMessageClass(kind)(), depth + 1)
    for name, wrong in inner:
        copy = type(message)()
        copy.CopyFrom(message)
        if each.is_repeated:
            getattr(copy, each.name).append(wrong)
        else:
            getattr(copy, each.name).MergeFrom(wrong)
        yield f"{each.name}.{name}".rstrip("."), copy


def mutated(chance: random.Random, raw: bytes) -> bytes:
    """Return bytes like these, with some of them changed, lost, doubled or added."""
    made = bytearray(raw or b"\x0a\x01a")
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(made) + 1)
        what = chance.randrange(4)
        if what == 0 and at < len(made):
            made[at] = chance.randrange(256)
        elif what == 1:
            made[at:at] = chance.randbytes(chance.randint(1, 12))
        elif what == 2:
            del made[at : at + chance.randint(1, 6)]
        else:
            made += made[at : at + 20]
    return bytes(made)


_OURS: Final = {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}
"""Codes that may come from this side of the call, without a reason."""


def harmless(failed: Failed) -> bool:
    """Whether a call ended as any call may: well, or with a reason of the catalogue, and not with a defect."""
    return failed.code not in ("INTERNAL", "UNKNOWN") and (
        failed.code in ("OK", "CANCELLED") or failed.reason in REASONS
    )
