"""A chain of records shows every change made to it, whatever is changed; its encoding is RFC 8785."""

from __future__ import annotations

import json
from hashlib import sha256

import msgspec
import pytest
from agenthive_plugins.security.records import (
    GENESIS,
    Act,
    Category,
    Ending,
    FaultKind,
    Head,
    Record,
    Unreadable,
    Verifier,
    canonical,
    decode,
    encode,
    hash_of,
    head_after,
    link,
)
from hypothesis import given, settings
from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
acts = st.builds(
    Act,
    time=st.integers(0, 2**50),
    category=st.sampled_from(Category),
    outcome=st.sampled_from(Ending),
    principal=texts,
    method=texts,
    peer=texts,
    text=texts,
    resources=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    count=st.integers(1, 2**53),
)


def chain_of(made: list[Act]) -> list[Record]:
    return link("c", Head(), made)


def faults(
    records: list[Record], head: Head, base: Head | None = None, expected: tuple[Head, ...] = ()
) -> list[FaultKind]:
    verifier = Verifier("c", base or Head(), expected)
    for record in records:
        verifier.take(record)
    verifier.finish(head)
    return [fault.kind for fault in verifier.faults]


@given(acts)
def test_the_encoding_is_that_of_rfc_8785(act: Act) -> None:
    record = chain_of([act])[0]
    fields = {name: value for name, value in msgspec.to_builtins(record).items() if name != "hash"}
    wanted = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert canonical(record) == wanted
    assert record.hash == sha256(wanted).hexdigest()


@given(acts)
def test_a_line_can_be_checked_without_this_program(act: Act) -> None:
    line = encode(chain_of([act])[0])
    fields = json.loads(line)
    claimed = fields.pop("hash")
    bare = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert sha256(bare).hexdigest() == claimed
    assert b"\n" not in line


@given(st.lists(acts, max_size=10))
def test_a_chain_that_nobody_touched_holds(made: list[Act]) -> None:
    records = chain_of(made)
    head = head_after(Head(), records)
    assert faults(records, head) == []
    assert [record.sequence for record in records] == list(range(1, len(made) + 1))
    assert [decode(encode(record)) for record in records] == records
    times = [record.time for record in records]
    assert times == sorted(times)
    # In two parts it is the same chain.
    middle = len(made) // 2
    first = chain_of(made[:middle])
    since = first[-1].time if first else 0
    assert first + link("c", head_after(Head(), first), made[middle:], since=since) == records


@given(st.lists(acts, min_size=2, max_size=8), st.data())
@settings(max_examples=200)
def test_every_flipped_bit_is_found(made: list[Act], data: st.DataObject) -> None:
    records = chain_of(made)
    head = head_after(Head(), records)
    lines = [bytearray(encode(record)) for record in records]
    which = data.draw(st.integers(0, len(lines) - 1))
    lines[which][data.draw(st.integers(0, len(lines[which]) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed = [decode(bytes(line)) for line in lines]
    except Unreadable:
        return
    # Only what another spelling of the same record is (an escape, say) may go unnoticed.
    assert changed == records or faults(changed, head)


@given(st.lists(acts, min_size=2, max_size=8), st.data())
def test_what_is_removed_moved_or_added_is_found(made: list[Act], data: st.DataObject) -> None:
    records = chain_of(made)
    head = head_after(Head(), records)
    at = data.draw(st.integers(0, len(records) - 1))
    without = records[:at] + records[at + 1 :]
    last = at == len(records) - 1
    wanted = FaultKind.TRUNCATED if last else FaultKind.BROKEN_LINK if at else FaultKind.WRONG_BEGINNING
    assert wanted in faults(without, head)
    assert faults([*records[:at], records[at], records[at], *records[at + 1 :]], head)
    other = data.draw(st.integers(0, len(records) - 1).filter(lambda n: n != at))
    swapped = list(records)
    swapped[at], swapped[other] = swapped[other], swapped[at]
    assert faults(swapped, head)


@given(st.lists(acts, min_size=1, max_size=6), st.lists(acts, min_size=1, max_size=6))
def test_a_chain_written_anew_is_found_by_a_head_kept_elsewhere(made: list[Act], others: list[Act]) -> None:
    kept = head_after(Head(), chain_of(made))
    forged = chain_of(others)
    head = head_after(Head(), forged)
    assert faults(forged, head) == []
    if forged != chain_of(made):
        found = faults(forged, head, expected=(kept,))
        longer = len(others) > len(made) and forged[: len(made)] == chain_of(made)
        assert (FaultKind.HEAD_MISSING in found) != longer


def test_a_record_of_another_chain_does_not_belong_here() -> None:
    foreign = link("d", Head(), [Act(time=1, category=Category.DATA_ACCESS, outcome=Ending.OK)])
    assert FaultKind.CHANGED in faults(foreign, head_after(Head(), foreign))


def test_a_chain_begins_after_what_was_removed() -> None:
    records = chain_of([Act(time=n, category=Category.DATA_ACCESS, outcome=Ending.OK) for n in range(5)])
    head, base = head_after(Head(), records), Head(records[1].sequence, records[1].hash)
    assert faults(records[2:], head, base) == []
    assert faults(records[2:], head, Head(2, GENESIS)) == [FaultKind.WRONG_BEGINNING]
    # A head from before what was removed cannot be looked up; one at the border can.
    assert faults(records[2:], head, base, (Head(1, GENESIS),)) == []
    assert faults(records[2:], head, base, (Head(2, GENESIS),)) == [FaultKind.HEAD_MISSING]
    assert faults([], base, base) == []


def test_what_is_no_record_is_refused() -> None:
    for line in (b"", b"{}", b"[1]", b"\xff", b'{"chain":1}', b"null"):
        with pytest.raises(Unreadable):
            decode(line)
    record = Record(chain="c", sequence=1, previous=GENESIS, time=1, category=Category.AUDIT_TRAIL, outcome=Ending.OK)
    assert hash_of(record) == hash_of(msgspec.structs.replace(record, hash="x"))
