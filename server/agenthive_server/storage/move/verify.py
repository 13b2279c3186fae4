"""Compares a source and a target whole: every row, the log without holes, blobs by their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from agenthive_server.kernel.errors import DataLoss
from agenthive_server.storage.schema import BLOB, BLOB_CHUNK, EVENT

from .compare import Sealed, pairs
from .parts import PARTS, Part, Row
from .progress import Progress
from .source import Source, Standing
from .target import Target

EXAMPLES: Final = 3
"""Rows that are named of those that differ in a table."""

_ADDRESS: Final = re.compile("sha256:[0-9a-f]{64}")

_pack = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, kw_only=True)
class Sum:
    """What a table comes to on both sides: its rows, and the SHA-256 of all of them, in hex."""

    table: str
    rows: int
    digest: str


class Differs(DataLoss):
    """Source and target are not the same. `differences` are sentences."""

    def __init__(self, differences: list[str]) -> None:
        super().__init__(f"source and target differ: {'; '.join(differences)}")
        self.differences = differences


@dataclass
class _Tally:
    """Counts and digests of both sides of a table, and what is different."""

    part: Part
    ours: hashlib._Hash = field(default_factory=hashlib.sha256)
    theirs: hashlib._Hash = field(default_factory=hashlib.sha256)
    rows: int = 0
    rows_there: int = 0
    wrong: dict[str, list[Sealed]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, mine: Sealed | None, other: Sealed | None) -> None:
        packed = _pack(mine)
        if mine is not None:
            self.rows += 1
            self.ours.update(packed)
        if other is not None:
            self.rows_there += 1
            self.theirs.update(packed if mine == other else _pack(other))
        if mine != other:
            what = "different" if mine and other else "missing" if mine else "too many"
            self.counts[what] = self.counts.get(what, 0) + 1
            named = self.wrong.setdefault(what, [])
            if len(named) < EXAMPLES:
                named.append(self.part.key_of(mine or other or ()))

    def differences(self) -> Iterator[str]:
        for what, named in self.wrong.items():
            names = ", ".join("/".join(map(str, key)) for key in named)
            more = ", …" if self.counts[what] > len(named) else ""
            count = self.counts[what]
            yield f"{self.part.name}: {count} {'row' if count == 1 else 'rows'} {what} in the target ({names}{more})"
        same = self.ours.digest() == self.theirs.digest() and self.rows == self.rows_there
        if not self.wrong and not same:
            yield f"{self.part.name}: the digests of all rows differ"


async def verify(source: Source, target: Target, standing: Standing, progress: Progress) -> list[Sum]:
    """Read all of both and compare; raises `Differs`. Nobody may write to either."""
    sums: list[Sum] = []
    differences: list[str] = []
    for part in PARTS:
        progress.begin(f"comparing {part.name}", source.count(part))
        tally, log = _Tally(part), _Log(standing)
        async for _, mine, other in pairs(source, target, part):
            tally.add(mine, other)
            if part.table is EVENT and other is not None:
                log.add(other)
            progress.step()
        differences += tally.differences()
        if part.table is EVENT:
            differences += log.differences()
        sums.append(Sum(table=part.name, rows=tally.rows, digest=tally.ours.hexdigest()))
    differences += _wrong_blobs(source)
    if differences:
        raise Differs(differences)
    return sums


class _Log:
    """The events of the target: one after the other, up to the head."""

    def __init__(self, standing: Standing) -> None:
        self._head = standing.head
        self._last = -1
        self._holes: list[str] = []

    def add(self, row: Row) -> None:
        last, first = row[0], row[1]
        if self._last >= 0 and first != self._last + 1 and len(self._holes) < EXAMPLES:
            self._holes.append(f"the log has a hole: event {first} follows event {self._last}")
        self._last = last

    def differences(self) -> Iterator[str]:
        yield from self._holes
        if self._last >= 0 and self._last != self._head:
            yield f"the log ends with event {self._last}, its head is {self._head}"


def _wrong_blobs(source: Source) -> Iterator[str]:
    """Yield which blobs are not what their ids say; that the chunks of both sides are the same is known by now."""
    parts = {part.table: part for part in PARTS}
    for namespace, blob_id, size, _, _, upload_id in source.rows(parts[BLOB]):
        digest, length, number = hashlib.sha256(), 0, 0
        while (row := source.row(parts[BLOB_CHUNK], (upload_id, number))) is not None:
            digest.update(row[2])
            length, number = length + len(row[2]), number + 1
        if length != size:
            yield f"the blob {blob_id} of {namespace} has {length} bytes, not {size}, in the source too"
        elif _ADDRESS.fullmatch(blob_id) and blob_id != f"sha256:{digest.hexdigest()}":
            yield f"the content of the blob {blob_id} of {namespace} is another, in the source too"
