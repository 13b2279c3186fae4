"""Remembers changing calls by their request id, in the change they make: a repeat has no second effect."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec
from agenthive_server.plugin.api import BadRequest, Call, HookState
from google.protobuf.message import Message

KEPT_SECONDS: Final = 86_400.0
PREFIX: Final = "request/"
_LONGEST: Final = 128


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was made: the hash of its request, what it made or changed, and when."""

    digest: str
    ref: str
    time: float


_decoder: Final = msgspec.json.Decoder(Remembered)


class Request:
    """One changing call: `earlier` and `remember` are used inside its change."""

    def __init__(self, call: Call, message: Message) -> None:
        request_id: str = getattr(message, "request_id", "")
        if len(request_id) > _LONGEST or "\x00" in request_id:
            raise BadRequest(f"longer than {_LONGEST} characters, or with NUL", field="request_id")
        self.principal = call.principal
        self._key = ""
        if request_id:
            scope = f"{call.principal}\n{call.method}\n{request_id}".encode("utf-8", "surrogatepass")
            self._key = PREFIX + blake2b(scope, digest_size=20).hexdigest()
        self._digest = blake2b(message.SerializeToString(deterministic=True), digest_size=16).hexdigest()

    def earlier(self, rows: HookState) -> str | None:
        """Return what the same call made before, None for a new one. Raises `BadRequest` (REQUEST_ID_REUSED)."""
        raw = rows.get(self._key) if self._key else None
        if raw is None:
            return None
        known = _decoder.decode(raw)
        if known.digest != self._digest:
            raise BadRequest(
                "this request_id was used before for a different request",
                reason="REQUEST_ID_REUSED",
                field="request_id",
            )
        return known.ref

    def remember(self, rows: HookState, ref: str, now: float) -> None:
        """Remember what this call makes."""
        if self._key:
            rows.put(self._key, msgspec.json.encode(Remembered(digest=self._digest, ref=ref, time=now)))


def is_over(raw: bytes, now: float) -> bool:
    """Whether a memory has been kept for long enough."""
    return now - _decoder.decode(raw).time > KEPT_SECONDS
