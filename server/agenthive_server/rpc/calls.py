"""What every service method needs of a call: who makes it, how long it may wait, which page it wants."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import struct
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar

from agenthive.v1 import orchestrator_service_pb2 as pb
from google.protobuf.message import Message

from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.plugin.api import Call

from . import validate
from .convert.values import digest_of

R = TypeVar("R")

After = tuple[float | str, str]
"""The sort key of the last record of a page, as `Query.after` wants it."""

_POLICIES: Final = frozenset(pb.IdConflictPolicy.values())
_PAGE_FIELDS: Final = ("page_size", "page_token")
_MARGIN_SHARE: Final = 0.1
_MARGIN_MOST: Final = 1.0
_REQUEST_ID: Final = 128


def mutation(call: Call, request: Any) -> Caller:
    """Return who makes a mutating call; the request is hashed only when it has a request id."""
    request_id = request.request_id
    if not request_id:
        return Caller(namespace=call.namespace, principal=call.principal, method=call.method)
    return Caller(
        namespace=call.namespace,
        principal=call.principal,
        method=call.method,
        request_id=validate.text(request_id, "request_id", _REQUEST_ID),
        digest=digest_of(request),
    )


def waiting_time(call: Call, request: Any) -> float:
    """Return how long a call may wait: until shortly before its deadline, no longer than its `wait_timeout`."""
    left = call.deadline - asyncio.get_running_loop().time() if call.deadline else validate.MAX_SPAN
    left = max(0.0, left - min(_MARGIN_MOST, left * _MARGIN_SHARE))
    if request.HasField("wait_timeout"):
        return min(left, validate.span(request.wait_timeout, "wait_timeout"))
    return left


def uses_existing(request: Any) -> bool:
    """Whether an id in use is answered with what has it, instead of an error."""
    policy = request.id_conflict_policy
    if policy not in _POLICIES:
        raise BadRequest(f"{policy} is no value of this enum", field="id_conflict_policy")
    return bool(policy == pb.ID_CONFLICT_POLICY_USE_EXISTING)


def page_after(call: Call, request: Any) -> After | None:
    """Return where the page begins that a request asks for; raises `BadRequest` with INVALID_PAGE_TOKEN."""
    token = request.page_token
    if not token:
        return None
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        (time,) = struct.unpack(">d", raw[8:16])
        record_id = raw[16:].decode()
    except (ValueError, UnicodeError, binascii.Error, struct.error):
        raise _bad_token() from None
    if raw[:8] != _filters(call, request) or not math.isfinite(time) or not validate.is_id(record_id):
        raise _bad_token()
    return ("", record_id) if time == 0.0 else (time, record_id)


def next_page(call: Call, request: Any, records: Sequence[R], size: int, key: Callable[[R], After]) -> str:
    """Return the token of the page after the first `size` records; empty when there are no more."""
    if len(records) <= size:
        return ""
    time, record_id = key(records[size - 1])
    raw = _filters(call, request) + struct.pack(">d", float(time or 0.0)) + record_id.encode()
    return base64.b64encode(raw, altchars=b"-_").decode()


def _filters(call: Call, request: Message) -> bytes:
    """Return the hash of everything a page token belongs to: method, namespace and filters."""
    bare = type(request)()
    bare.CopyFrom(request)
    for name in _PAGE_FIELDS:
        bare.ClearField(name)
    scope = f"{call.method}\n{call.namespace}\n".encode()
    return blake2b(scope + bare.SerializeToString(deterministic=True), digest_size=8).digest()


def _bad_token() -> BadRequest:
    return BadRequest(
        "not a page token of this method with these filters", reason="INVALID_PAGE_TOKEN", field="page_token"
    )
