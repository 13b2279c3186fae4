"""Python values to `Payload` messages and back."""

from __future__ import annotations

import json
from typing import Final, TypeAlias

from google.protobuf import json_format

from agenthive.v1 import payload_pb2

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
BYTES: Final = "application/octet-stream"

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
PayloadLike: TypeAlias = "payload_pb2.Payload | bytes | JsonValue"
"""What can be given where a payload is wanted."""


def payload(value: object) -> payload_pb2.Payload:
    """Return `value` as a payload: bytes and text as they are, a payload unchanged, None as the empty payload.

    Everything else is written as JSON into `data` (not into `json`, whose numbers are doubles).
    Raises TypeError or ValueError when JSON cannot hold it; NaN and infinity are not JSON.
    """
    if isinstance(value, payload_pb2.Payload):
        return value
    if value is None:
        return payload_pb2.Payload()
    if isinstance(value, bytes | bytearray | memoryview):
        return payload_pb2.Payload(content_type=BYTES, data=bytes(value))
    if isinstance(value, str):
        return payload_pb2.Payload(content_type=TEXT, data=value.encode())
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return payload_pb2.Payload(content_type=JSON, data=text.encode())


def value(payload: payload_pb2.Payload) -> JsonValue | bytes:
    """Return what a payload holds: parsed JSON, text, bytes, or None when it is empty.

    JSON and text are recognised by `content_type`; what has another type, or none, is bytes. Raises ValueError for
    content that is not what its type says, and for a blob, which has to be downloaded (`Client.download_blob`).
    """
    content = payload.WhichOneof("content")
    if content is None:
        return None
    if content == "json":
        parsed: JsonValue = json_format.MessageToDict(payload.json)
        return parsed
    if content == "blob_id":
        raise ValueError(f"the payload is the blob {payload.blob_id}; download it")
    media_type = payload.content_type.partition(";")[0].strip().lower()
    if media_type == JSON or media_type.endswith("+json"):
        decoded: JsonValue = json.loads(payload.data)
        return decoded
    return payload.data.decode() if media_type.startswith("text/") else payload.data
