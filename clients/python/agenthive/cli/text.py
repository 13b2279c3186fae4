"""Small texts for people: times, spans, sizes, payloads, and anything that came from elsewhere made harmless."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from datetime import datetime

    from agenthive.v1.payload_pb2 import Payload


def now() -> float:
    """Return this machine's time in seconds; people mean it when they write `--since 10m`."""
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return seconds(stamp)


def seconds(stamp: Timestamp) -> float:
    """Return a timestamp as seconds since 1970."""
    return stamp.seconds + stamp.nanos / 1e9


def local(stamp: Timestamp) -> datetime:
    """Return a timestamp in this machine's time zone."""
    from datetime import UTC

    return stamp.ToDatetime(tzinfo=UTC).astimezone()


def clock_time(stamp: Timestamp) -> str:
    """Return `14:03:07.250`, empty when it is not set."""
    return local(stamp).strftime("%H:%M:%S.%f")[:-3] if stamp.ByteSize() else ""


def date_time(stamp: Timestamp) -> str:
    """Return `2025-03-01 14:03:07`, empty when it is not set."""
    return local(stamp).strftime("%Y-%m-%d %H:%M:%S") if stamp.ByteSize() else ""


def age(stamp: Timestamp, at: float) -> str:
    """Return how long before `at` that was; empty when it is not set."""
    return span(max(0.0, at - seconds(stamp))) if stamp.ByteSize() else ""


def span(length: float) -> str:
    """Return seconds as people say them: `0.3s`, `42s`, `12m`, `3h`, `5d`."""
    if length < 10:
        return f"{length:.1f}s" if length % 1 else f"{length:.0f}s"
    for unit, size, most in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if length < most:
            return f"{length / size:.0f}{unit}"
    return f"{length / 86_400:.0f}d"


def size(count: int) -> str:
    """Return a number of bytes as `512 B`, `1.5 KiB`, `3.0 MiB`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def clean(text: str, *, lines: bool = False) -> str:
    """Return text that cannot steer a terminal: control characters are shown, line ends kept only with `lines`."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        each if each.isprintable() or each in kept else " " if each in "\r\n\t" else f"\\x{ord(each):02x}"
        for each in text
    )


def payload_text(payload: Payload) -> str:
    """Return what a payload holds for people: JSON indented, text as it is, bytes as their number."""
    kind = payload.WhichOneof("content")
    if kind is None:
        return ""
    if kind == "blob_id":
        return f"blob {payload.blob_id}"
    if kind == "json":
        from google.protobuf.json_format import MessageToDict

        return json.dumps(MessageToDict(payload.json), ensure_ascii=False, indent=2)
    try:
        text = payload.data.decode()
    except UnicodeDecodeError:
        return f"{size(len(payload.data))} of {payload.content_type or 'bytes'}"
    if "json" in payload.content_type and len(text) < 100_000:
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    return clean(text, lines=True)
