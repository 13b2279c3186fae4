"""What every record has in common: a kind, a key, a revision, and how a changed copy is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Generic, Self, TypeVar

D = TypeVar("D")
T = TypeVar("T")

Key = tuple[str, str]
"""Namespace and id; unique within a kind."""

LAST_CODE_POINT = "\U0010ffff"
"""No character, and in no id: what begins with a text sorts before the text with this added."""


class Kind(StrEnum):
    """The kinds of records a store keeps."""

    AGENT = "agent"
    TASK = "task"
    PROGRESS = "progress"
    SESSION = "session"
    MESSAGE = "message"
    BROADCAST = "broadcast"
    REQUEST = "request"
    CURSOR = "cursor"
    ROLE = "role"
    STATE = "state"


Ref = tuple[Kind, Key]
"""A record named from anywhere."""


class _Once(Generic[T]):
    """A property worked out when first asked for and carried on by copies: it follows from what never changes."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, record: Any, owner: type) -> T:
        if record is None:
            return self  # type: ignore[return-value]  # asked of the class, by those who inspect it
        value = record.__dict__[self._name] = self._make(record)
        return value


@dataclass(frozen=True, kw_only=True)
class Record:
    """An immutable record. `revision` is 1 when it is first written and grows by one with every committed change."""

    kind: ClassVar[Kind]

    namespace: str
    id: str
    revision: int = 0

    @_Once
    def key(self) -> Key:
        """Namespace and id."""
        return (self.namespace, self.id)

    @_Once
    def ref(self) -> Ref:
        """Kind and key."""
        return (self.kind, self.key)

    def evolve(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; namespace and id stay what they are."""
        return evolved(self, changes)


def evolved(record: D, changes: dict[str, Any]) -> D:
    """Return a copy of a frozen dataclass with some fields changed.

    Does what `dataclasses.replace` does at an eighth of its cost, which matters: every task passes here several times.
    """
    copy = _new(record.__class__)
    _set(copy, "__dict__", record.__dict__ | changes)
    return copy


def made(of: type[D], fields: dict[str, Any]) -> D:
    """Return a frozen dataclass of a type; `fields` has all fields without a default, and belongs to it then.

    Fields with their defaults are left to the class, so a task that uses ten of thirty is made, copied and written at a
    third of the cost. Who reads `__dict__` or `vars` of a record finds only those that were given; where a field has a
    `default_factory`, it has to be among them.
    """
    record = _new(of)
    _set(record, "__dict__", fields)
    return record


_new = object.__new__
_set = object.__setattr__


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Free-form content: bytes, JSON text of a Struct (`json`), or a blob's id. At most one of the three is set."""

    content_type: str = ""
    data: bytes | None = None
    json: str | None = None
    blob_id: str | None = None


def make_payload(**fields: Any) -> Payload:
    """Return a payload, as its constructor does, at less cost."""
    return made(Payload, fields)


@dataclass(frozen=True, kw_only=True)
class RequestRecord(Record):
    """The memory of a mutating call: `id` is principal, method and request id; `refs` the ids it made or changed."""

    kind: ClassVar[Kind] = Kind.REQUEST

    digest: str
    refs: tuple[str, ...]
    create_time: float


@dataclass(frozen=True, kw_only=True)
class CursorRecord(Record):
    """How far a handler has come in the event log; `id` is the handler's name."""

    kind: ClassVar[Kind] = Kind.CURSOR

    sequence: int


@dataclass(frozen=True, kw_only=True)
class RoleRecord(Record):
    """That a replica is there until `expire_time` of the database's clock, or which one acts in a role.

    `holder` is a process in the first case, and what it says of itself is in `facts`, JSON; a replica in the second.
    """

    kind: ClassVar[Kind] = Kind.ROLE

    holder: str
    epoch: int
    expire_time: float
    facts: str = ""


@dataclass(frozen=True, kw_only=True)
class StateRecord(Record):
    """A value a plugin keeps: `namespace` is the plugin's name, `id` the key."""

    kind: ClassVar[Kind] = Kind.STATE

    value: bytes
