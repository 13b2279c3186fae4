"""Compliance reports: what the audit trail holds for each control of a standard, and what it does not hold.

A report counts records and names them, and says what a program can see to be missing. It gives no score and passes no
judgement: whether a control is met is for an auditor to say.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from .chains import ChainRow
from .records import Category, Ending, Record
from .trail import Found

DAY: Final = 86_400


class Framework(StrEnum):
    """Standards reports can be made for."""

    SOC2 = "SOC2"
    ISO27001 = "ISO27001"
    NIST = "NIST"


class GapKind(StrEnum):
    """What is missing from the evidence for a control."""

    NO_EVIDENCE = "NO_EVIDENCE"
    PERIOD_NOT_COVERED = "PERIOD_NOT_COVERED"
    RETENTION_TOO_SHORT = "RETENTION_TOO_SHORT"
    TRAIL_BROKEN = "TRAIL_BROKEN"
    NOT_RECORDED = "NOT_RECORDED"
    RECORDS_LOST = "RECORDS_LOST"
    INCOMPLETE_RECORDS = "INCOMPLETE_RECORDS"


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that is missing, in a sentence."""

    kind: GapKind
    text: str


@dataclass(frozen=True, slots=True)
class Control:
    """What a standard asks for. `complete`: that each record says who did what, from where, and how it ended."""

    id: str
    title: str
    categories: tuple[Category, ...]
    retention_days: int
    complete: bool = False


_ALL: Final = tuple(category for category in Category if category is not Category.AUDIT_TRAIL)

CONTROLS: Final[Mapping[Framework, tuple[Control, ...]]] = {
    Framework.SOC2: (
        Control(
            "CC6.1",
            "Logical access is restricted to those who are authenticated and authorised",
            (Category.AUTHENTICATION, Category.AUTHORIZATION),
            365,
        ),
        Control(
            "CC6.2",
            "Credentials and rights are given and taken by those who may, and that is recorded",
            (Category.PRIVILEGE_ESCALATION, Category.USER_MANAGEMENT),
            2_555,
        ),
        Control(
            "CC6.3",
            "Access to data is controlled, and incidents are found",
            (Category.SECURITY_INCIDENT, Category.DATA_ACCESS),
            365,
        ),
    ),
    Framework.ISO27001: (
        Control("A.12.4.1", "Events are recorded, kept and reviewed", _ALL, 2_555),
        Control(
            "A.9.2.6",
            "Rights of access are removed or adjusted when they are not needed any more",
            (Category.AUTHORIZATION, Category.PRIVILEGE_ESCALATION),
            1_095,
        ),
    ),
    Framework.NIST: (
        Control("AU-2", "The events that have to be recorded are recorded", _ALL, 2_555),
        Control("AU-3", "Records say what happened, when, where, from where, how it ended and who", _ALL, 2_555, True),
    ),
}
"""Controls by standard, with the categories of records that are evidence for them and how long those are to be kept."""


@dataclass(frozen=True, slots=True)
class ControlReport:
    """What the trail says about one control: counts by category and ending, some records, and what is missing."""

    control: Control
    counts: Mapping[tuple[Category, Ending], int]
    references: tuple[tuple[str, int], ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of the plugin's settings a report depends on."""

    retention_days: int
    reads_recorded: bool


@dataclass(slots=True)
class _Evidence:
    """Gathers what one control needs, record by record, oldest first."""

    control: Control
    most: int
    counts: Counter[tuple[Category, Ending]] = field(default_factory=Counter)
    incomplete: int = 0
    refused: deque[tuple[str, int]] = field(init=False)
    others: deque[tuple[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.refused, self.others = deque(maxlen=self.most), deque(maxlen=self.most)

    def take(self, record: Record) -> None:
        if record.category not in self.control.categories:
            return
        self.counts[record.category, record.outcome] += record.count
        kept = self.refused if record.outcome is Ending.DENIED else self.others
        kept.append((record.chain, record.sequence))
        self.incomplete += not is_complete(record)

    @property
    def references(self) -> tuple[tuple[str, int], ...]:
        return (*reversed(self.refused), *reversed(self.others))[: self.most]


@dataclass(slots=True)
class _Interruptions:
    """Finds the times in which nothing was recorded, and what was lost."""

    lost: int = 0
    killed: int = 0
    count: int = 0
    milliseconds: int = 0
    _ended: dict[str, int] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        if record.category is not Category.AUDIT_TRAIL:
            return
        if record.method == "audit.lost":
            self.lost += record.count
        elif record.method == "audit.ended":
            self._ended[record.chain] = record.time
        elif record.method == "audit.began":
            self.killed += record.reason == "NOT_ENDED"
            ended = self._ended.pop(record.chain, None)
            if ended is not None and record.time > ended:
                self.count += 1
                self.milliseconds += record.time - ended


class Report:
    """A report in the making: `take` the records of the period, oldest first in each chain, then `finish`."""

    def __init__(self, framework: Framework, start: int, end: int, settings: Settings, *, most: int = 20) -> None:
        self.count = 0
        self._start = start
        self._end = end
        self._settings = settings
        self._evidence = [_Evidence(control, most) for control in CONTROLS[framework]]
        self._interruptions = _Interruptions()

    def take(self, records: Iterable[Record]) -> None:
        """Take records of the period."""
        for record in records:
            self.count += 1
            self._interruptions.take(record)
            for evidence in self._evidence:
                evidence.take(record)

    def finish(self, found: Found, first: int, now: int) -> list[ControlReport]:
        """Return the report, control by control. `first` is the time of the oldest record that is kept, zero for none.

        Times in milliseconds.
        """
        rows = [row for row, _ in found.rows]
        shared = [*self._trail_gaps(found), *self._period_gaps(rows, first, now), *self._lost()]
        return [
            ControlReport(
                evidence.control,
                {
                    (category, ending): evidence.counts[category, ending]
                    for category in evidence.control.categories
                    for ending in Ending
                },
                evidence.references,
                (*self._own_gaps(evidence, rows, now), *shared),
            )
            for evidence in self._evidence
        ]

    def _own_gaps(self, evidence: _Evidence, rows: Sequence[ChainRow], now: int) -> Iterable[Gap]:
        control = evidence.control
        for category in control.categories:
            if category is Category.DATA_ACCESS and not self._settings.reads_recorded:
                yield Gap(GapKind.NOT_RECORDED, "reading is recorded for administrators' calls only, by the settings")
            if not any(evidence.counts[category, ending] for ending in Ending):
                yield Gap(GapKind.NO_EVIDENCE, f"no record of the category {category} in the period")
        if self._settings.retention_days < control.retention_days:
            days = f"{self._settings.retention_days} days, and {control.retention_days} are asked for"
            yield Gap(GapKind.RETENTION_TOO_SHORT, f"records are kept for {days}")
        removed = max((row.base_time for row in rows), default=0)
        if removed > now - control.retention_days * DAY * 1_000:
            text = f"records were removed for their size before {control.retention_days} days had passed"
            yield Gap(GapKind.RETENTION_TOO_SHORT, text)
        if control.complete and evidence.incomplete:
            text = f"{evidence.incomplete} records do not say who, from where, or how it ended"
            yield Gap(GapKind.INCOMPLETE_RECORDS, text)

    def _period_gaps(self, rows: Sequence[ChainRow], first: int, now: int) -> Iterable[Gap]:
        if not first:
            yield Gap(GapKind.PERIOD_NOT_COVERED, "the trail is empty")
            return
        removed = max((row.base_time for row in rows), default=0)
        if max(first, removed) > self._start:
            yield Gap(GapKind.PERIOD_NOT_COVERED, "the trail begins after the period does")
        if self._end > now:
            yield Gap(GapKind.PERIOD_NOT_COVERED, "the period has not ended yet")
        if self._interruptions.count:
            count, seconds = self._interruptions.count, self._interruptions.milliseconds // 1_000
            text = f"nothing was recorded {count} times, for {seconds} seconds together: stopped, or switched off"
            yield Gap(GapKind.PERIOD_NOT_COVERED, text)

    def _trail_gaps(self, found: Found) -> Iterable[Gap]:
        if found.faults:
            broken = sorted({fault.chain for fault in found.faults})
            text = f"{len(found.faults)} faults in {len(broken)} chains; VerifyAuditLog says where"
            yield Gap(GapKind.TRAIL_BROKEN, text)

    def _lost(self) -> Iterable[Gap]:
        seen = self._interruptions
        if seen.lost:
            yield Gap(GapKind.RECORDS_LOST, f"{seen.lost} acts could not be recorded")
        if seen.killed:
            text = f"the server was killed {seen.killed} times, each time with what it had not written yet"
            yield Gap(GapKind.RECORDS_LOST, text)


def is_complete(record: Record) -> bool:
    """Whether a record of a call says who did what, from where, and how it ended. Who was not let in has no name."""
    if not record.method.startswith("/"):
        return bool(record.method)
    return bool(record.peer and record.code and (record.principal or record.outcome is not Ending.OK))
