"""What each replica tells the others of itself: a small JSON text that other versions understand too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from .health import ComponentReport, Status

LARGEST: Final = 4_096
"""Bytes of the text at most; of many troubles the least is left out."""

LONGEST: Final = 120
"""Characters of one text in it."""

MOST: Final = 8
"""Troubles in it, and replicas that are gone."""


class MemberState(IntEnum):
    """What a replica does at present; numbers as in the protos."""

    UNKNOWN = 0
    STARTING = 1
    SERVING = 2
    DRAINING = 3
    AWAY = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One replica as it told of itself; times in seconds since 1970 by the database's clock."""

    id: str = ""
    state: MemberState = MemberState.UNKNOWN
    address: str = ""
    version: str = ""
    start_time: float = 0.0
    status: Status = Status.OK
    # Its components that are not OK, the worst first.
    troubles: tuple[ComponentReport, ...] = ()
    sessions: int = 0
    agents: int = 0
    held_tasks: int = 0
    streams: int = 0
    calls_per_second: float = 0.0
    loop_lag: float = 0.0
    cpu_cores: float = 0.0
    memory_bytes: int = 0
    # How far it has followed: the last group and the last event it knows, and how many more it knew of.
    group: int = 0
    sequence: int = 0
    lag_groups: int = 0
    lag_events: int = 0
    # Replicas it found to be gone, with when, and whose work it let others take over.
    expelled: tuple[tuple[str, float], ...] = ()
    # What others know of it.
    roles: tuple[str, ...] = ()
    told_time: float = 0.0


_NUMBERS: Final = (
    "start_time", "sessions", "agents", "held_tasks", "streams", "calls_per_second", "loop_lag", "cpu_cores",
    "memory_bytes", "group", "sequence", "lag_groups", "lag_events",
)  # fmt: skip
_WHOLE: Final = frozenset(_NUMBERS) - {"start_time", "calls_per_second", "loop_lag", "cpu_cores"}


def tell(member: Member) -> str:
    """Return what a replica says of itself, as JSON of at most `LARGEST` bytes."""
    told: dict[str, Any] = {name: _short(getattr(member, name)) for name in _NUMBERS}
    told |= {"state": int(member.state), "status": int(member.status)}
    told |= {"address": member.address[:LONGEST], "version": member.version[:LONGEST]}
    troubles = [
        [each.name[:LONGEST], int(each.status), each.reason[:LONGEST], _short(each.since)]
        for each in member.troubles[:MOST]
    ]
    expelled = [[name[:LONGEST], _short(time)] for name, time in member.expelled[-MOST:]]
    while True:
        text = json.dumps({**told, "troubles": troubles, "expelled": expelled}, separators=(",", ":"))
        if len(text) <= LARGEST or not (troubles or expelled):
            return text
        max(expelled, troubles, key=len).pop()


def heard(replica: str, text: str, told_time: float) -> Member:
    """Return what another replica said; what cannot be understood is left out."""
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        told = {}
    numbers: dict[str, Any] = {name: _number(told.get(name)) for name in _NUMBERS}
    numbers |= {name: int(numbers[name]) for name in _WHOLE}
    return Member(
        id=replica,
        told_time=told_time,
        state=_state(told.get("state")),
        status=_status(told.get("status")),
        address=_text(told.get("address")),
        version=_text(told.get("version")),
        troubles=tuple(_trouble(each) for each in _rows(told, "troubles", 4)),
        expelled=tuple((_text(name), _number(time)) for name, time in _rows(told, "expelled", 2)),
        **numbers,
    )


def _short(number: float) -> float:
    return round(number, 3)


def _rows(told: Mapping[str, Any], name: str, width: int) -> list[list[Any]]:
    found = told.get(name)
    return [row for row in found if isinstance(row, list) and len(row) >= width] if isinstance(found, list) else []


def _trouble(row: list[Any]) -> ComponentReport:
    return ComponentReport(_text(row[0]), _status(row[1]), _text(row[2]), _number(row[3]), None)


def _number(value: object) -> float:
    return value if isinstance(value, (int, float)) and abs(value) < 2**62 else 0.0


def _text(value: object) -> str:
    return value[:LONGEST] if isinstance(value, str) else ""


def _state(value: object) -> MemberState:
    return next((state for state in MemberState if state == value), MemberState.UNKNOWN)


def _status(value: object) -> Status:
    # One of a newer version is not as it should be, whatever it is.
    return next((status for status in Status if status == value), Status.DEGRADED)
