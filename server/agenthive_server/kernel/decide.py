"""The one path of every change: read from memory, decide in pure code, commit by compare-and-set."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from .agents import Agent
from .changes import ChangeSet, Committed, Conflicted, Rejected
from .errors import BadRequest, Conflict, KernelError, agent_not_found, task_not_found
from .events import Event
from .memory import ALWAYS_COMPLETE, Memory
from .messages import Message
from .pending import Pending
from .ports import Store
from .records import Key, Kind, Record, Ref, RequestRecord, made
from .sessions import Session
from .tasks import Progress, Task

T = TypeVar("T")
R = TypeVar("R", bound=Record)

MAX_TRIES = 64
"""Conflicts after which a verb gives up; its deadline usually comes first."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who makes a mutating call, and what makes its repeat harmless. `digest` is the hash of the request."""

    namespace: str
    principal: str = ""
    method: str = ""
    request_id: str = ""
    digest: str = ""


class NotLoaded(Exception):
    """A decision asked for records that are not in memory; they are read and it is made again."""

    def __init__(self, refs: Sequence[Ref]) -> None:
        super().__init__(refs)
        self.refs = refs


class View:
    """What one decision sees and what it wants changed.

    Reading notes which changes in flight the decision rests on; writing collects a change set. A decision is run
    again after a
    conflict, so it must do nothing but read and write here.
    """

    __slots__ = ("_extra", "_memory", "_rests_on", "changes", "guesses")

    def __init__(self, memory: Memory, extra: dict[Ref, Record | None]) -> None:
        self._memory = memory
        self._extra = extra
        self._rests_on: list[Pending] = []
        self.changes = ChangeSet()
        # Records taken as absent without looking: a commit would find out, a refusal has to look first.
        self.guesses: list[Ref] = []

    @property
    def epoch_floor(self) -> int:
        """What lease and start epochs come after."""
        return self._memory.epoch_floor

    def peek(self, ref: Ref) -> Record | None:
        """Return a record as far as it is known without reading the store."""
        changes = self.changes
        found = changes.puts.get(ref)
        if found is not None:
            return found
        found, flight = self._memory.look(ref)
        if flight is not None:
            self._rests_on.append(flight.outcome)
        elif found is None:
            found = self._extra.get(ref)
        return found if found is None or not changes.deletes or ref not in changes.deletes else None

    def find(self, ref: Ref) -> Record | None:
        """Return a record or None if it does not exist; raises `NotLoaded` when that is not known yet."""
        found = self.peek(ref)
        if found is None and not self._known(ref):
            raise NotLoaded((ref,))
        return found

    def guess(self, ref: Ref) -> Record | None:
        """Return a record as far as it is known, or None, for a decision that inserts it if it does not exist."""
        found = self.peek(ref)
        if found is None and not self._known(ref):
            self.guesses.append(ref)
        return found

    def need(self, refs: Iterable[Ref]) -> None:
        """Have records read together that would else be read one by one; raises `NotLoaded` for those not known."""
        missing = [ref for ref in refs if not self._known(ref)]
        if missing:
            raise NotLoaded(missing)

    def _known(self, ref: Ref) -> bool:
        return (
            ref in self._extra
            or ref[0] in ALWAYS_COMPLETE
            or ref in self.changes.puts
            or self._memory.latest(ref) is not None
            or self._memory.flight(ref) is not None
        )

    def task(self, namespace: str, task_id: str) -> Task:
        """Return a task; raises `NotFound`."""
        found = self.find((Kind.TASK, (namespace, task_id)))
        if found is None:
            raise task_not_found(task_id)
        return found  # type: ignore[return-value]  # the kind says so

    def agent(self, namespace: str, agent_id: str) -> Agent:
        """Return an agent; raises `NotFound`."""
        found = self.find((Kind.AGENT, (namespace, agent_id)))
        if found is None:
            raise agent_not_found(agent_id)
        return found  # type: ignore[return-value]  # the kind says so

    def find_agent(self, key: Key) -> Agent | None:
        """Return an agent or None."""
        return self.find((Kind.AGENT, key))  # type: ignore[return-value]  # the kind says so

    def find_session(self, key: Key) -> Session | None:
        """Return a session or None."""
        return self.find((Kind.SESSION, key))  # type: ignore[return-value]  # the kind says so

    def find_progress(self, key: Key) -> Progress | None:
        """Return a task's progress or None."""
        return self.find((Kind.PROGRESS, key))  # type: ignore[return-value]  # the kind says so

    def find_message(self, key: Key) -> Message | None:
        """Return a message or None."""
        return self.find((Kind.MESSAGE, key))  # type: ignore[return-value]  # the kind says so

    def put(self, record: R, *facts: Event) -> R:
        """Write a record, with the facts that tell of it; returns it with its new revision."""
        ref = record.ref
        changes = self.changes
        staged = changes.puts.get(ref)
        revision = staged.revision if staged is not None else record.revision + 1
        if record.revision != revision:
            # Set in place: a record that is put was made for this, by `evolve` or a transition, and nobody else has it.
            record.__dict__["revision"] = revision
        changes.puts[ref] = record
        if changes.checks:
            changes.checks.pop(ref, None)
        changes.events += facts
        return record

    def delete(self, record: Record) -> None:
        """Remove a record."""
        self.changes.puts.pop(record.ref, None)
        self.changes.deletes[record.ref] = record

    def check(self, record: Record) -> None:
        """Let the change stand only if this record is then still as it is now."""
        ref = record.ref
        if ref not in self.changes.puts and ref not in self.changes.deletes:
            self.changes.checks[ref] = record.revision

    def emit(self, *facts: Event) -> None:
        """Add facts."""
        self.changes.events.extend(facts)

    async def settled(self) -> bool:
        """Wait until the outcome of everything the decision rests on is known; False when any of it failed."""
        for pending in self._rests_on:
            try:
                outcome = await pending
            except KernelError:
                return False
            if not isinstance(outcome, Committed):
                return False
        return True


Submit = Callable[[ChangeSet], Pending]


class Decisions:
    """Runs decisions to their end.

    `fresh` waits until memory knows everything that was committed; where only this server commits there is none. What
    no commit would find out, that a decision changes nothing or refuses, is said only when that was so.
    """

    def __init__(
        self, memory: Memory, store: Store, submit: Submit, fresh: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.memory = memory
        self._store = store
        self._submit = submit
        self._fresh = fresh

    async def run(self, decide: Callable[[View], T]) -> T:
        """Decide, commit, and return what the decision answered, once everything it rests on is durable.

        Raises what the decision raises; `Conflict` after many collisions; `StoreUnavailable` and `Overloaded` when it
        could
        not be committed. Cancelling the caller does not take back a change set in flight.
        """
        extra: dict[Ref, Record | None] = {}
        tries, doubtful = 0, self._fresh is not None
        while tries < MAX_TRIES:
            view = View(self.memory, extra)
            refusal: KernelError | None = None
            try:
                answer = decide(view)
            except NotLoaded as missing:
                # Not a collision: each time more is known.
                await self._read(missing.refs, extra)
                continue
            except KernelError as error:
                answer, refusal = cast(T, None), error
            tries += 1
            if refusal is None and not view.changes.empty:
                outcome = await self.commit(view.changes)
                if isinstance(outcome, Committed):
                    return answer
                await self._refused(outcome, extra)
            elif refusal is not None and view.guesses:
                await self._read(view.guesses, extra)
            elif doubtful:
                # What no commit finds out is said only when everything is known.
                await self.fresh()
                extra.clear()
                doubtful = False
            elif await view.settled():
                if refusal is not None:
                    raise refusal
                return answer
        raise Conflict("the change kept colliding with others; repeat it", retry_after=0.1)

    async def fresh(self) -> None:
        """Wait until memory knows everything that is committed now. Raises `StoreUnavailable`."""
        if self._fresh is not None:
            await self._fresh()

    async def _refused(self, outcome: Conflicted | Rejected, extra: dict[Ref, Record | None]) -> None:
        """Read what collided; raises `BadRequest` for what the store will never take."""
        if isinstance(outcome, Rejected):
            raise BadRequest("the store refuses this data, probably for its size", metadata={"why": outcome.reason})
        await self._read(outcome.refs, extra)

    def commit(self, changes: ChangeSet) -> Pending:
        """Submit a change set and make it the latest state at once."""
        try:
            pending = self._submit(changes)
        except ValueError as error:
            raise BadRequest(f"this is too much for one change: {error}; send less at once") from None
        self.memory.apply(changes, pending)
        return pending

    async def refresh(self, refs: Sequence[Ref]) -> None:
        """Read records anew that turned out to be out of date."""
        await self._read(refs, {})

    async def _read(self, refs: Sequence[Ref], extra: dict[Ref, Record | None]) -> None:
        by_kind: dict[Kind, list[Key]] = {}
        for kind, key in refs:
            by_kind.setdefault(kind, []).append(key)
        for kind, keys in by_kind.items():
            moves = self.memory.moves
            for key, record in zip(keys, await self._store.get(kind, keys), strict=True):
                extra[kind, key] = record
                self.memory.learn((kind, key), record, moves)


def recall(view: View, caller: Caller) -> RequestRecord | None:
    """Return the memory of an earlier call with this request id, or None; raises `BadRequest` if it was another.

    Whoever gets None writes it with `remember`, or raises.
    """
    if not caller.request_id:
        return None
    known = cast("RequestRecord | None", view.guess(_request_ref(caller)))
    if known is not None and known.digest != caller.digest:
        raise BadRequest(
            "this request_id was used before for a different request", reason="REQUEST_ID_REUSED", field="request_id"
        )
    return known


def remember(view: View, caller: Caller, refs: Sequence[str], now: float) -> None:
    """Write the memory of this call into its own change set, if it has a request id and changes anything."""
    if caller.request_id:
        ref = _request_ref(caller)
        namespace, name = ref[1]
        fields = {
            "namespace": namespace,
            "id": name,
            "digest": caller.digest,
            "refs": tuple(refs),
            "create_time": now,
            # At hand, so they are not worked out again.
            "key": ref[1],
            "ref": ref,
        }
        view.put(made(RequestRecord, fields))


def _request_ref(caller: Caller) -> Ref:
    return (Kind.REQUEST, (caller.namespace, f"{caller.principal}|{caller.method}|{caller.request_id}"))
