"""Audit records, their canonical encoding, and the chain of hashes that ties them together.

Each record holds the hash of the one before it and is hashed with it, so that nothing can be changed, taken out, put
in or put elsewhere without every later hash being another: a forward hash chain (B. Schneier, J. Kelsey, Secure audit
logs to support computer forensics, 1999). The encoding is canonical JSON (RFC 8785) of what is not empty, with
integers only, so that anybody can check an exported trail with a few lines of any language.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final

import msgspec
from msgspec.structs import asdict

GENESIS: Final = "0" * 64
"""The previous hash of the first record of a chain."""

MOST_RESOURCES: Final = 8


class Category(StrEnum):
    """What kind of act a record tells of."""

    AUTHENTICATION = "AUTHENTICATION"
    AUTHORIZATION = "AUTHORIZATION"
    DATA_ACCESS = "DATA_ACCESS"
    DATA_MODIFICATION = "DATA_MODIFICATION"
    CONFIGURATION_CHANGE = "CONFIGURATION_CHANGE"
    SYSTEM_ADMINISTRATION = "SYSTEM_ADMINISTRATION"
    USER_MANAGEMENT = "USER_MANAGEMENT"
    PRIVILEGE_ESCALATION = "PRIVILEGE_ESCALATION"
    SECURITY_INCIDENT = "SECURITY_INCIDENT"
    AUDIT_TRAIL = "AUDIT_TRAIL"


class Ending(StrEnum):
    """How an act ended."""

    OK = "OK"
    DENIED = "DENIED"
    FAILED = "FAILED"


class Act(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who did what from where, and how it ended: a record before it has its place in a chain. Times in milliseconds."""

    time: int
    category: Category
    outcome: Ending
    principal: str = ""
    token_id: str = ""
    method: str = ""
    namespace: str = ""
    peer: str = ""
    code: str = ""
    reason: str = ""
    resources: tuple[tuple[str, str], ...] = ()
    call_id: str = ""
    count: int = 1
    text: str = ""


class Record(Act, frozen=True, kw_only=True, omit_defaults=True):
    """An act with its place in a chain; hashes are hexadecimal."""

    chain: str
    sequence: int
    previous: str
    hash: str = ""


class Head(msgspec.Struct, frozen=True):
    """The last record of a chain: its sequence and hash. Zero and the genesis for a chain without records."""

    sequence: int = 0
    hash: str = GENESIS


_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder(Record)


class Unreadable(Exception):
    """Bytes that are no audit record."""


def canonical(record: Record) -> bytes:
    """Return what is hashed: the record without its hash."""
    bare = record if not record.hash else msgspec.structs.replace(record, hash="")
    return _encoder.encode(bare)


def hash_of(record: Record) -> str:
    """Return the hash a record should have."""
    return sha256(canonical(record)).hexdigest()


def encode(record: Record) -> bytes:
    """Return a record as it is stored and exported: one line of canonical JSON, with its hash."""
    return _encoder.encode(record)


def decode(line: bytes) -> Record:
    """Return a record from its line; raises `Unreadable`."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from None


def link(chain: str, head: Head, acts: Iterable[Act], *, since: int = 0) -> list[Record]:
    """Return acts as records that follow a head, at or after the time `since`: times never go back in a chain."""
    records: list[Record] = []
    sequence, previous = head.sequence, head.hash
    for act in acts:
        sequence += 1
        since = max(since, act.time)
        fields = asdict(act)
        fields.update(time=since, chain=chain, sequence=sequence, previous=previous)
        previous = sha256(_encoder.encode(Record(**fields))).hexdigest()
        records.append(Record(**fields, hash=previous))
    return records


def head_after(head: Head, records: Sequence[Record]) -> Head:
    """Return the head of a chain with these records added."""
    return Head(records[-1].sequence, records[-1].hash) if records else head


class FaultKind(StrEnum):
    """What can be wrong with a chain."""

    CHANGED = "CHANGED"
    BROKEN_LINK = "BROKEN_LINK"
    TRUNCATED = "TRUNCATED"
    WRONG_BEGINNING = "WRONG_BEGINNING"
    UNREADABLE = "UNREADABLE"
    HEAD_MISSING = "HEAD_MISSING"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a chain, at a sequence."""

    kind: FaultKind
    chain: str
    sequence: int
    text: str


class Verifier:
    """Checks a chain record by record, oldest first; `base` is what retention has removed up to."""

    def __init__(self, chain: str, base: Head, expected: Sequence[Head] = ()) -> None:
        self.faults: list[Fault] = []
        self.count = 0
        self.last = base
        self._chain = chain
        self._base = base
        # What retention has removed cannot be looked up any more.
        self._expected = {head.sequence: head.hash for head in expected if head.sequence > base.sequence}
        if any(head.sequence == base.sequence != 0 and head.hash != base.hash for head in expected):
            self._fault(FaultKind.HEAD_MISSING, base.sequence, "an expected head is not what the chain begins after")

    def take(self, record: Record) -> None:
        """Check the next record."""
        self.count += 1
        if record.chain != self._chain or hash_of(record) != record.hash:
            self._fault(FaultKind.CHANGED, record.sequence, "the record is not what its hash was made of")
        if record.sequence != self.last.sequence + 1 or record.previous != self.last.hash:
            first = self.last is self._base
            kind = FaultKind.WRONG_BEGINNING if first else FaultKind.BROKEN_LINK
            after = self.last.sequence
            self._fault(kind, record.sequence, f"record {record.sequence} does not follow record {after}")
        self.last = Head(record.sequence, record.hash)
        wanted = self._expected.pop(record.sequence, None)
        if wanted is not None and wanted != record.hash:
            self._fault(FaultKind.HEAD_MISSING, record.sequence, "an expected head has another hash here")

    def unreadable(self, text: str) -> None:
        """Note that what comes next cannot be read; checking goes on with what follows."""
        self._fault(FaultKind.UNREADABLE, self.last.sequence + 1, text)

    def finish(self, head: Head) -> None:
        """Note the end; `head` is where the chain should end."""
        if self.last != head:
            text = f"the chain ends with record {self.last.sequence}, and its head is record {head.sequence}"
            self._fault(FaultKind.TRUNCATED, self.last.sequence, text)
        for sequence in sorted(self._expected):
            self._fault(FaultKind.HEAD_MISSING, sequence, "an expected head is beyond the end of the chain")

    def _fault(self, kind: FaultKind, sequence: int, text: str) -> None:
        self.faults.append(Fault(kind, self._chain, sequence, text))
