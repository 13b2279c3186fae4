"""What is written about output in Redis: names of keys and channels, chunks in streams, and bells that tell of them."""

from __future__ import annotations

import msgspec

from agenthive_server.events.attempt_output import AttemptKey
from agenthive_server.kernel.events import Event, EventType


class About(msgspec.Struct, array_like=True, frozen=True):
    """Whose output it is, as filters ask for it."""

    agent_id: str
    session_id: str
    role: str
    labels: dict[str, str]
    ancestors: tuple[str, ...]
    # Where the log stood when the attempt began.
    begun: int


class Record(msgspec.Struct, array_like=True, frozen=True):
    """Some chunks that follow each other, of one stream of an attempt; its id in Redis' stream is where it ends.

    `sequence` is where the log stood when the first of them came.
    """

    offset: int
    stream: str
    time: float
    sequence: int
    data: bytes
    about: About


class Bell(msgspec.Struct, array_like=True, frozen=True):
    """Tells where the output of an attempt stands: whether there is `more` from an offset on, and how far the work is.

    `progress` is a fraction, a text, the time, and where the log stood.
    """

    server: str
    namespace: str
    task_id: str
    attempt: int
    offset: int
    more: bool
    progress: tuple[float, str, float, int] | None
    about: About

    @property
    def key(self) -> AttemptKey:
        """Which attempt."""
        return (self.namespace, self.task_id, self.attempt)


encode = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(Record).decode
decode_bell = msgspec.msgpack.Decoder(Bell).decode


def about(sample: Event, begun: int) -> About:
    """Return what a chunk says of its attempt."""
    labels = dict(sample.labels)
    return About(sample.agent_id, sample.session_id, sample.role, labels, tuple(sample.ancestors), begun)


def event_about(key: AttemptKey, told: About, kind: EventType = EventType.TASK_OUTPUT) -> Event:
    """Return an event of an attempt without content."""
    namespace, task_id, number = key
    return Event(
        type=kind,
        namespace=namespace,
        task_id=task_id,
        agent_id=told.agent_id,
        session_id=told.session_id,
        role=told.role,
        labels=told.labels,
        ancestors=told.ancestors,
        data={"attempt": number},
    )


class Names:
    """The names of a hive's keys and channels. Ids hold no colon and no star."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.directory = f"{prefix}attempts"

    def stream(self, key: AttemptKey) -> str:
        """Return the key of an attempt's stream."""
        return f"{self._prefix}output:{key[0]}:{key[1]}:{key[2]}"

    def channel(self, namespace: str, task_id: str) -> str:
        """Return where bells of a task ring."""
        return f"{self._prefix}bell:{namespace}:{task_id}"

    def channels(self, namespace: str | None) -> str:
        """Return where bells of all tasks of a namespace ring, or of all."""
        return f"{self._prefix}bell:{namespace}:*" if namespace is not None else f"{self._prefix}bell:*"


def member(key: AttemptKey) -> str:
    """Return an attempt as it stands in the directory."""
    return f"{key[0]}:{key[1]}:{key[2]}"


def attempt_of(name: bytes) -> AttemptKey | None:
    """Return the attempt of an entry of the directory; None for nonsense."""
    namespace, _, rest = name.decode("utf-8", "replace").partition(":")
    task_id, _, number = rest.partition(":")
    return (namespace, task_id, int(number)) if number.isdecimal() else None
