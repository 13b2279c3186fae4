"""What all messages share: times, enums, payloads, JSON, and the hash of a request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cache
from hashlib import blake2b
from typing import Any, Final

from agenthive.v1 import payload_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.records import Payload, make_payload
from agenthive_server.rpc import validate

_NOT_COMPARED: Final = ("request_id", "wait_for", "wait_timeout")
_EXACT: Final = 2.0**53


def set_time(message: Timestamp, seconds: float) -> None:
    """Write a time, to the microsecond."""
    message.seconds, message.nanos = _split(seconds)


def _split(seconds: float) -> tuple[int, int]:
    """Return whole seconds and nanoseconds, which are whole microseconds."""
    whole = int(seconds)
    micros = round((seconds - whole) * 1e6)
    return (whole, micros * 1_000) if micros < 1_000_000 else (whole + 1, 0)


def set_span(message: Duration, seconds: float) -> None:
    """Write a duration into a message that is new, to the microsecond; present even when it is zero."""
    whole = message.seconds = int(seconds)
    if whole != seconds:
        message.seconds, message.nanos = _split(seconds)


class EnumTable:
    """An enum of the protos and the kernel's enum of the same names."""

    def __init__(self, enum: EnumDescriptor, prefix: str, members: Iterable[StrEnum] | None = None) -> None:
        numbers: dict[str, int] = {name.removeprefix(prefix): number for name, number in _items(enum)}
        wanted: tuple[str, ...] = tuple(numbers if members is None else members)
        self.numbers: Mapping[str, int] = {name: numbers[name] for name in wanted}
        self._members: Mapping[int, Any] = {numbers[name]: name for name in wanted}

    def read(self, number: int, field: str, default: Any = None) -> Any:
        """Return the member of a number; zero means the default, and is refused where there is none."""
        if not number:
            if default is None:
                raise BadRequest("required", field=field)
            return default
        member = self._members.get(number)
        if member is None:
            raise BadRequest(f"{number} is no value of this enum", field=field)
        return member


def _items(enum: EnumDescriptor) -> list[tuple[str, int]]:
    return [(value.name, value.number) for value in enum.values]


def names(table: EnumTable, numbers: Iterable[int], field: str) -> frozenset[str]:
    """Return the names of enum values, for a filter."""
    return frozenset(str(table.read(number, f"{field}[{n}]")) for n, number in enumerate(numbers))


def payload_from(message: payload_pb2.Payload, field: str) -> Payload:
    """Return a payload; raises `BadRequest`."""
    content_type = message.content_type
    if content_type and ("\x00" in content_type or len(content_type.encode()) > validate.NAME):
        validate.text(content_type, f"{field}.content_type")
        raise BadRequest(f"more than {validate.NAME} bytes", field=f"{field}.content_type")
    data = message.data
    kind = "data" if data else message.WhichOneof("content")
    if kind == "data":
        return make_payload(content_type=content_type, data=data)
    if kind == "json":
        return Payload(content_type=content_type, json=json_from(message.json, f"{field}.json"))
    if kind == "blob_id":
        return Payload(content_type=content_type, blob_id=validate.blob_id(message.blob_id, f"{field}.blob_id"))
    return Payload(content_type=content_type)


def required_payload(holder: Any, name: str, field: str) -> Payload:
    """Return the payload in a field that has to be set."""
    if not holder.HasField(name):
        raise BadRequest("required", field=field)
    return payload_from(getattr(holder, name), field)


def fill_payload(message: payload_pb2.Payload, payload: Payload) -> None:
    """Write a payload; it is present even when it is empty."""
    if payload.content_type:
        message.content_type = payload.content_type
    if payload.data is not None:
        message.data = payload.data
    elif payload.json is not None:
        fill_json(message.json, payload.json)
    elif payload.blob_id is not None:
        message.blob_id = payload.blob_id
    else:
        message.SetInParent()


def json_from(message: Struct, field: str) -> str:
    """Return a Struct as JSON text; raises `BadRequest` when it is too deep or holds what JSON cannot."""
    validate.depth(message, field)
    return json.dumps(_plain_fields(message), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain_fields(message: Struct) -> dict[str, Any]:
    return {key: _plain(value) for key, value in message.fields.items()}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if math.floor(number) == number and abs(number) < _EXACT else number
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _plain_fields(value.struct_value)
    if kind == "list_value":
        return [_plain(inner) for inner in value.list_value.values]
    return None


def fill_json(message: Struct, text: str) -> None:
    """Write JSON text of an object into a Struct."""
    message.SetInParent()
    value = json.loads(text)
    if isinstance(value, dict):
        message.update(value)


def digest_of(request: Message) -> str:
    """Return the hash of a request, without its request id and its waits. The request is afterwards as it was."""
    kept: list[tuple[str, Any]] = []
    for name, nested in _left_out(request.DESCRIPTOR):
        if nested and not request.HasField(name):
            continue
        value = getattr(request, name)
        if not value and not nested:
            continue
        kept.append((name, type(value).FromString(value.SerializeToString()) if nested else value))
        request.ClearField(name)
    digest = blake2b(request.SerializeToString(deterministic=True), digest_size=16).hexdigest()
    for name, value in kept:
        if isinstance(value, Message):
            getattr(request, name).CopyFrom(value)
        else:
            setattr(request, name, value)
    return digest


@cache
def _left_out(request: Descriptor) -> tuple[tuple[str, bool], ...]:
    """Return the fields of a request that do not count for its digest, and whether each is a message."""
    fields = request.fields_by_name
    return tuple((name, fields[name].message_type is not None) for name in _NOT_COMPARED if name in fields)
