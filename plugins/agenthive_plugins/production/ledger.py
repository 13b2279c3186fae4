"""Records in the plugin's state, and the request ids that make a repeat harmless.

A changing call reads, decides and writes in one change of the state, together with the memo of its request id: a repeat
within 24 hours is answered as the first time, also after a crash. Nothing is cached, so that there is nothing to be
late.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Generic, TypeVar

import msgspec
from agenthive_server.plugin.api import BadRequest, Call, Clock, Exists, HookState, NotFound, Overloaded, State
from google.protobuf.message import Message

from .fields import digest_of, text

MEMO: Final = "memo/"
REMEMBERED: Final = 86_400.0
_MOST_BYTES: Final = 60 * 1024
_PAGE: Final = 500

T = TypeVar("T")
M = TypeVar("M", bound=Message)
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Family(Generic[T]):
    """Records of one kind: where they are kept, what they are called, how many there may be."""

    prefix: str
    kind: type[T]
    word: str
    most: int = 1_000

    def key(self, record_id: str) -> str:
        """Return the key of a record."""
        return f"{self.prefix}{record_id}"

    def pack(self, record: T) -> bytes:
        """Return a record as bytes; raises `BadRequest` when it is too large to be kept."""
        raw = msgspec.json.encode(record)
        if len(raw) > _MOST_BYTES:
            raise BadRequest(f"larger than {_MOST_BYTES} bytes", field=self.word)
        return raw

    def unpack(self, raw: bytes) -> T:
        """Return a record of its bytes."""
        return msgspec.json.decode(raw, type=self.kind)

    def missing(self, record_id: str) -> NotFound:
        """Return the error for a record that is not there."""
        facts = {"record": self.word, "record_id": record_id}
        return NotFound(f"no {self.word} {record_id!r}", reason="RECORD_NOT_FOUND", metadata=facts)

    def taken(self, record_id: str) -> Exists:
        """Return the error for an id that is in use."""
        facts = {"record": self.word, "record_id": record_id}
        return Exists(f"{self.word} {record_id!r} exists", reason="RECORD_EXISTS", metadata=facts)


@dataclass(frozen=True, kw_only=True)
class _Memo:
    digest: str
    answer: bytes
    time: float


class Rows:
    """Records as one change sees and writes them."""

    def __init__(self, state: HookState) -> None:
        self._state = state

    def find(self, family: Family[T], record_id: str) -> T | None:
        """Return a record, or None."""
        raw = self._state.get(family.key(record_id))
        return None if raw is None else family.unpack(raw)

    def get(self, family: Family[T], record_id: str) -> T:
        """Return a record; raises `NotFound`."""
        found = self.find(family, record_id)
        if found is None:
            raise family.missing(record_id)
        return found

    def put(self, family: Family[T], record_id: str, record: T) -> None:
        """Write a record."""
        self._state.put(family.key(record_id), family.pack(record))

    def delete(self, family: Family[T], record_id: str) -> None:
        """Remove a record."""
        self._state.delete(family.key(record_id))


class Ledger:
    """All records of the plugin."""

    def __init__(self, state: State, clock: Clock) -> None:
        self._state = state
        self._clock = clock

    async def find(self, family: Family[T], record_id: str) -> T | None:
        """Return a record, or None."""
        stored = await self._state.get(family.key(record_id))
        return None if stored is None else family.unpack(stored.value)

    async def get(self, family: Family[T], record_id: str) -> T:
        """Return a record; raises `NotFound`."""
        found = await self.find(family, record_id)
        if found is None:
            raise family.missing(record_id)
        return found

    async def all(self, family: Family[T], begin: str = "") -> list[T]:
        """Return all records of a family in the order of their ids; with `begin` those whose id begins with it."""
        found: list[T] = []
        after, prefix = "", family.key(begin)
        while True:
            page = await self._state.scan(prefix, after=after, limit=_PAGE)
            found += [family.unpack(stored.value) for stored in page]
            if len(page) < _PAGE:
                return found
            after = page[-1].key

    async def page(
        self,
        family: Family[T],
        after: str,
        size: int,
        *,
        begin: str = "",
        wanted: Callable[[T], bool] = lambda record: True,
    ) -> tuple[list[T], str]:
        """Return a page of records, and the id after which the next begins; empty on the last."""
        found: list[tuple[str, T]] = []
        key, prefix = family.key(after) if after else "", family.key(begin)
        while len(found) <= size:
            stored = await self._state.scan(prefix, after=key, limit=_PAGE)
            for each in stored:
                record = family.unpack(each.value)
                if wanted(record):
                    found.append((each.key.removeprefix(family.prefix), record))
            if len(stored) < _PAGE:
                break
            key = stored[-1].key
        last = found[size - 1][0] if len(found) > size else ""
        return [record for _, record in found[:size]], last

    async def has_room(self, family: Family[T], begin: str = "") -> None:
        """Raise `Overloaded` when there are as many records as there may be."""
        if len(await self._state.scan(family.key(begin), limit=family.most)) >= family.most:
            raise Overloaded(
                f"there are {family.most} already", reason="QUOTA_EXCEEDED", metadata={"subject": family.word}
            )

    async def seed(self, family: Family[T], records: dict[str, T]) -> None:
        """Write the first records of a family, once in the life of a hive: what was deleted stays away."""
        mark = f"seeded/{family.prefix}"
        if await self._state.get(mark) is not None:
            return
        values = {family.key(record_id): family.pack(record) for record_id, record in records.items()}
        await self._state.put_many({**values, mark: b"1"})

    async def change(self, decide: Callable[[Rows], A]) -> A:
        """Read and write several records as one change; `decide` may run more than once."""
        return await self._state.change(lambda state: decide(Rows(state)))

    # Request ids ----------------------------------------------------------------------------------------------------

    async def once(self, call: Call, request: Message, answer: type[M], decide: Callable[[Rows], M]) -> M:
        """Answer a changing call; a repeat with the same request id is answered as the first time."""
        key, digest = _memo_key(call, request), digest_of(request, "request_id")
        now = self._clock.now()

        def run(state: HookState) -> M:
            known = state.get(key) if key else None
            if known is not None:
                return _told(known, digest, answer)
            made = decide(Rows(state))
            if key:
                state.put(key, msgspec.json.encode(_Memo(digest=digest, answer=made.SerializeToString(), time=now)))
            return made

        return await self._state.change(run)

    async def once_after(self, call: Call, request: Message, answer: type[M], act: Callable[[], Awaitable[M]]) -> M:
        """The same for a call with effects beyond the state: these may happen twice if the server ends in between."""
        key, digest = _memo_key(call, request), digest_of(request, "request_id")
        known = await self._state.get(key) if key else None
        if known is not None:
            return _told(known.value, digest, answer)
        made = await act()
        if key:
            memo = _Memo(digest=digest, answer=made.SerializeToString(), time=self._clock.now())
            await self._state.put(key, msgspec.json.encode(memo))
        return made

    async def forget(self) -> None:
        """Remove the memos whose time is over."""
        before = self._clock.now() - REMEMBERED
        after = ""
        while page := await self._state.scan(MEMO, after=after, limit=_PAGE):
            old = [stored.key for stored in page if msgspec.json.decode(stored.value, type=_Memo).time < before]
            if old:
                await self._state.delete_many(old)
            after = page[-1].key


def _memo_key(call: Call, request: Message) -> str:
    request_id = text(getattr(request, "request_id", ""), "request_id", 128)
    if not request_id:
        return ""
    whose = f"{call.namespace}\x1f{call.principal}\x1f{call.method}\x1f{request_id}"
    return MEMO + blake2b(whose.encode(), digest_size=16).hexdigest()


def _told(raw: bytes, digest: str, answer: type[M]) -> M:
    memo = msgspec.json.decode(raw, type=_Memo)
    if memo.digest != digest:
        raise BadRequest("was used for another request of this method", field="request_id", reason="REQUEST_ID_REUSED")
    return answer.FromString(memo.answer)
