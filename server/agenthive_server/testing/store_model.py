"""A store as a page of plain code: what a real one is compared with, and records to fill it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agenthive_server.kernel.agents import Agent, AgentSpec, AgentState, RestartMode, RestartPolicy, Wanted
from agenthive_server.kernel.changes import COMMITTED, ChangeSet, Conflicted, Outcome
from agenthive_server.kernel.events import Event, EventType
from agenthive_server.kernel.messages import Broadcast, Message, MessageState, Urgency
from agenthive_server.kernel.records import (
    CursorRecord,
    Key,
    Kind,
    Payload,
    Record,
    Ref,
    RequestRecord,
    RoleRecord,
    StateRecord,
)
from agenthive_server.kernel.sessions import RunnerCapacity, Session, SessionState
from agenthive_server.kernel.tasks import (
    Attempt,
    ErrorClass,
    Lease,
    Progress,
    Question,
    RetryPolicy,
    Strategy,
    Task,
    TaskError,
    TaskSpec,
    TaskState,
    Timeouts,
    Usage,
)


@dataclass
class Model:
    """What a store must come to. `commit` judges and applies as the port says, in the plainest way."""

    records: dict[Ref, Record] = field(default_factory=dict)
    sets: list[list[Event]] = field(default_factory=list)
    head: int = 0

    def revision(self, ref: Ref) -> int:
        """Return the revision of a row, 0 for none."""
        record = self.records.get(ref)
        return record.revision if record else 0

    def commit(self, changes: ChangeSet) -> Outcome:
        """Apply one change set."""
        expected = {
            **{ref: record.revision - 1 for ref, record in changes.puts.items()},
            **{ref: record.revision for ref, record in changes.deletes.items()},
            **changes.checks,
        }
        stale = tuple(ref for ref, revision in expected.items() if self.revision(ref) != revision)
        if stale:
            return Conflicted(stale)
        for ref in changes.deletes:
            del self.records[ref]
        self.records.update(changes.puts)
        if changes.events:
            self.sets.append(changes.events)
            self.head += len(changes.events)
        return COMMITTED


def changing(*records: Record, events: int = 0, deletes: tuple[Record, ...] = ()) -> ChangeSet:
    """Return a change set that puts and deletes records and tells of so many events."""
    return ChangeSet(
        puts={record.ref: record for record in records},
        deletes={record.ref: record for record in deletes},
        events=[fact(number) for number in range(events)],
    )


def fact(number: int = 0, **data: object) -> Event:
    """Return an event."""
    return Event(
        type=EventType.TASK_DELEGATED, namespace="default", task_id=f"task-{number}", data={"attempt": number, **data}
    )


def task(name: str = "t", *, revision: int = 1, namespace: str = "default", **fields: object) -> Task:
    """Return a task; `fields` may be those of its specification too."""
    spec_fields = {key: fields.pop(key) for key in list(fields) if key in TaskSpec.__dataclass_fields__}
    made = Task(
        namespace=namespace,
        id=name,
        revision=revision,
        spec=TaskSpec(**{"type": "review", **spec_fields}),  # type: ignore[arg-type] # as the test says
        state=TaskState.QUEUED,
        create_time=100.0,
    )
    return made.evolve(**fields)


def sample(kind: Kind, key: Key, revision: int, number: int) -> Record:
    """Return a record of any kind; `number` makes them differ in everything that can be asked for."""
    namespace, name = key
    time = float(number % 7)
    role, labels = ("", "coder", "tester")[number % 3], [{}, {"team": "red"}, {"team": "blue", "tier": "1"}][number % 3]
    payload = Payload(content_type="text/plain", data=bytes([number % 256]))
    match kind:
        case Kind.AGENT:
            states, spec = list(AgentState), AgentSpec(role=role, labels=labels)
            return Agent(namespace=namespace, id=name, revision=revision, state=states[number % len(states)], spec=spec)
        case Kind.TASK:
            state = list(TaskState)[number % len(TaskState)]
            lease = Lease(agent_id="a", session_id="s", epoch=number, assign_time=time) if number % 4 == 1 else None
            made = task(name, namespace=namespace, revision=revision, state=state, create_time=time, lease=lease)
            spec_ = TaskSpec(type=f"type-{number % 2}", role=role, labels=labels, parent_task_id=("", "p")[number % 2])
            return made.evolve(spec=spec_, update_time=time, end_time=time + 1 if made.terminal else 0.0)
        case Kind.PROGRESS:
            return Progress(
                namespace=namespace, id=name, revision=revision, attempt=number, checkpoint=bytes(number % 9)
            )
        case Kind.SESSION:
            return Session(namespace=namespace, id=name, revision=revision, epoch=number, labels=labels)
        case Kind.MESSAGE:
            state_ = list(MessageState)[number % 4]
            return Message(
                namespace=namespace,
                id=name,
                revision=revision,
                agent_id=role,
                payload=payload,
                state=state_,
                create_time=time,
                expire_time=time + 2,
            )
        case Kind.BROADCAST:
            return Broadcast(
                namespace=namespace,
                id=name,
                revision=revision,
                role=role,
                payload=payload,
                create_time=time,
                expire_time=9.0,
            )
        case Kind.REQUEST:
            return RequestRecord(
                namespace=namespace, id=name, revision=revision, digest="d", refs=(name, role), create_time=time
            )
        case _:
            return _plain_sample(kind, key, revision, number)


def _plain_sample(kind: Kind, key: Key, revision: int, number: int) -> Record:
    """Return a record of a kind of which nothing can be asked but its key."""
    namespace, name = key
    match kind:
        case Kind.CURSOR:
            return CursorRecord(namespace=namespace, id=name, revision=revision, sequence=number)
        case Kind.ROLE:
            return RoleRecord(
                namespace=namespace, id=name, revision=revision, holder="h", epoch=number, expire_time=float(number % 7)
            )
        case Kind.STATE:
            return StateRecord(namespace=namespace, id=name, revision=revision, value=bytes(number % 9))
        case _:
            raise AssertionError(kind)


def unchanging(record: Record, successor: Record) -> Record:
    """Return `successor` with what never changes of a record taken from it, as the kernel would have made it."""
    if isinstance(record, Task) and isinstance(successor, Task):
        return successor.evolve(spec=record.spec, create_time=record.create_time)
    if isinstance(record, Message) and isinstance(successor, Message):
        return successor.evolve(agent_id=record.agent_id, create_time=record.create_time)
    if isinstance(record, Broadcast) and isinstance(successor, Broadcast):
        return successor.evolve(role=record.role, create_time=record.create_time, expire_time=record.expire_time)
    if isinstance(record, RequestRecord) and isinstance(successor, RequestRecord):
        return successor.evolve(create_time=record.create_time)
    return successor


_TEXT = "ünï 'quoted' \"text\" \u2028 \N{ROCKET}"
_FULL_PAYLOAD = Payload(content_type="application/json", json='{"a": 1}')


def full_records() -> list[Record]:
    """Return records in which no field has its default."""
    error = TaskError(error_class=ErrorClass.TOOL, reason="R", message=_TEXT, next_retry_delay=1.5)
    attempt = Attempt(
        number=1, agent_id="a", epoch=1, assign_time=1.0, start_time=2.0, end_time=3.0, error=error, counted=False
    )
    return [
        Task(
            namespace=_TEXT,
            id=_TEXT,
            revision=1,
            spec=TaskSpec(
                type="t",
                input=Payload(content_type="x", data=b"\x00\xff"),
                labels={"a.b/c": _TEXT},
                depends_on=("x", "y"),
                retry=RetryPolicy(maximum_attempts=7, non_retryable_reasons=("A",)),
                timeouts=Timeouts(heartbeat=1.0),
                strategy=Strategy.WEIGHTED,
                parent_task_id="p",
            ),
            state=TaskState.INPUT_REQUIRED,
            ancestors=("r", "p"),
            lease=Lease(agent_id="a", session_id="s", epoch=2**40, assign_time=1.25),
            attempts=(attempt, attempt),
            avoid=(("a", 1.5),),
            result=Payload(blob_id="sha256:00"),
            error=error,
            question=Question(question=_TEXT, default=_FULL_PAYLOAD, deadline=9.0),
            answers=(_FULL_PAYLOAD,),
            paused_from=TaskState.RUNNING,
            create_time=1_700_000_000.123456,
        ),
        Agent(
            namespace="n",
            id="a",
            revision=1,
            spec=AgentSpec(
                capabilities=("x",), restart=RestartPolicy(mode=RestartMode.ALWAYS), driver_config=b"\x00", slots=3
            ),
            state=AgentState.WAKING,
            wanted=Wanted.ASLEEP,
            restarts=(1.0, 2.0),
            start_again=True,
        ),
        Session(
            namespace="n",
            id="s",
            revision=1,
            state=SessionState.SUSPECT,
            runner=RunnerCapacity(drivers=("process",), memory_bytes=2**62),
            labels={"": ""},
        ),
        Progress(
            namespace="n",
            id="t",
            revision=1,
            attempt=2,
            fraction=0.1,
            checkpoint=b"\x00" * 10,
            usage=Usage(cost_micros=3),
        ),
        Message(
            namespace="n",
            id="m",
            revision=1,
            payload=_FULL_PAYLOAD,
            urgency=Urgency.NOW,
            state=MessageState.READ,
            create_time=0.0,
            expire_time=1.0,
        ),
        *(
            sample(kind, ("n", "z"), 1, 5)
            for kind in (Kind.BROADCAST, Kind.REQUEST, Kind.CURSOR, Kind.ROLE, Kind.STATE)
        ),
    ]
