"""Any text at all is stored as it is or refused by name; nobody beside it notices, and no question breaks."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

from agenthive_server.kernel.changes import COMMITTED, Rejected
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.records import Kind, Record, RequestRecord, StateRecord
from agenthive_server.storage.postgres.reader import storable
from agenthive_server.storage.postgres.store import PostgresStore
from agenthive_server.testing.postgres import PostgresServer
from agenthive_server.testing.store_model import changing, fact, task
from hypothesis import given, settings
from hypothesis import strategies as st

_PLACES = itertools.count()

_ANY = st.text(
    st.one_of(
        st.characters(exclude_categories=()),
        st.sampled_from("\x00\x01\x1f\x7f\ud800\udfff\ufffe\uffff\U0010ffff'\"\\{}[]%$;\u2028\u200b\r\n "),
    ),
    max_size=12,
)


@dataclass(frozen=True)
class Odd:
    """Texts where callers and plugins may put some."""

    columns: tuple[str, ...]
    inside: tuple[str, ...]

    def records(self) -> list[Record]:
        """Return records with them: in columns, in labels, in bodies, in events."""
        namespace, name, role, of, key, value = self.columns
        title, words = self.inside
        return [
            task(f"t{name}", namespace=namespace, role=role, type=of, labels={key: value}, title=title),
            RequestRecord(namespace=namespace, id=name, revision=1, digest=words, refs=(title,), create_time=1.0),
            StateRecord(namespace=namespace, id=name, revision=1, value=words.encode(errors="surrogatepass")),
        ]

    def fits(self, record: Record) -> bool:
        """Whether a record of these can be stored: its columns by PostgreSQL, all else by the codec."""
        namespace, name, *others = self.columns
        inside = () if record.kind is Kind.STATE else self.inside
        columns = (namespace, name, *others) if record.kind is Kind.TASK else (namespace, name)
        return storable(*columns) and not any("\ud800" <= c <= "\udfff" for text in inside for c in text)


async def check(store: PostgresStore, odd: Odd) -> None:
    records = odd.records()
    head = (await store.bounds()).head
    group = [changing(record, events=1) for record in records]
    told = fact(data_of=odd.inside[0])
    group.append(changing())
    group[-1].events.append(told)
    plain = f"plain{next(_PLACES)}"
    outcomes = await store.commit([*group, changing(task(plain), events=1)])
    assert outcomes[-1] == COMMITTED
    stored = [outcome == COMMITTED for outcome in outcomes[:-2]]
    assert stored == [odd.fits(record) for record in records]
    assert all(isinstance(outcome, Rejected) for outcome in outcomes if outcome != COMMITTED)
    for record, there in zip(records, stored, strict=True):
        assert await store.get(record.kind, [record.key]) == [record if there else None]
    assert (await store.bounds()).head == head + sum(outcome == COMMITTED for outcome in outcomes)
    events = await store.read_events(head, 100)
    assert (events[-2].data == told.data) is (outcomes[-2] == COMMITTED)
    await ask(store, odd, there=stored[0])
    gone = [changing(deletes=(record,)) for record, there in zip(records, stored, strict=True) if there]
    assert set(await store.commit(gone)) <= {COMMITTED}


async def ask(store: PostgresStore, odd: Odd, *, there: bool) -> None:
    namespace, name, role, of, key, value = odd.columns
    found = await store.query(
        Kind.TASK,
        Query(namespace=namespace, role=role, type=of, labels={key: value} if key or value else {}, prefix=f"t{name}"),
    )
    assert len(found) == there
    await store.query(Kind.STATE, Query(namespace=namespace, prefix=name, after=("", value)))
    await store.query(Kind.TASK, Query(namespace=namespace, states=frozenset({role}), after=(0.0, of)))


def test_any_text_is_stored_as_it_is_or_refused(postgres: PostgresServer) -> None:
    async def run(odds: list[Odd]) -> None:
        clock = ManualClock()
        store = PostgresStore(postgres.url("texts"), clock=clock, now=clock.now)
        await store.open()
        for odd in odds:
            await check(store, odd)
        await store.close()

    odd = st.builds(Odd, columns=st.tuples(*[_ANY] * 6), inside=st.tuples(*[_ANY] * 2))

    @settings(max_examples=40, deadline=None)
    @given(st.lists(odd, min_size=1, max_size=10))
    def tried(odds: list[Odd]) -> None:
        asyncio.run(run(odds))

    tried()
