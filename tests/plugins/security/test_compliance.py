"""A report counts what is there and names what is not; it invents nothing."""

from __future__ import annotations

import random

import pytest
from agenthive_plugins.security.chains import ChainRow
from agenthive_plugins.security.compliance import CONTROLS, ControlReport, Framework, GapKind, Report, Settings
from agenthive_plugins.security.records import Act, Category, Ending, Fault, FaultKind, Head, link
from agenthive_plugins.security.trail import Found

DAY = 86_400_000
NOW = 3_000 * DAY
START = 2_990 * DAY
GOOD = Settings(retention_days=2_555, reads_recorded=True)


def act(category: Category, outcome: Ending = Ending.OK, **fields: object) -> Act:
    made: dict[str, object] = {
        "time": START + 5,
        "principal": "ann",
        "peer": "10.0.0.1",
        "method": "/S/M",
        "code": "OK",
        **fields,
    }
    return Act(category=category, outcome=outcome, **made)  # type: ignore[arg-type]  # tests write fields by name


def report(
    framework: Framework,
    acts: list[Act],
    settings: Settings = GOOD,
    *,
    found: Found | None = None,
    first: int = START - DAY,
    end: int = NOW,
    most: int = 20,
) -> list[ControlReport]:
    made = Report(framework, START, end, settings, most=most)
    made.take(link("c", Head(), acts))
    return made.finish(found or Found(rows=[(ChainRow(chain="c"), len(acts))]), first, NOW)


def gaps(control: ControlReport) -> list[GapKind]:
    return [gap.kind for gap in control.gaps]


EVERY = [act(category, ending) for category in Category for ending in Ending if category is not Category.AUDIT_TRAIL]


@pytest.mark.parametrize("framework", list(Framework))
def test_with_evidence_of_every_kind_no_gap_is_named(framework: Framework) -> None:
    for control in report(framework, EVERY):
        assert gaps(control) == []
        assert all(count == 1 for count in control.counts.values())
        assert {category for category, _ in control.counts} == set(control.control.categories)


@pytest.mark.parametrize("framework", list(Framework))
def test_of_an_empty_trail_nothing_is_claimed(framework: Framework) -> None:
    for control in report(framework, [], first=0):
        assert sum(control.counts.values()) == 0
        assert control.references == ()
        assert gaps(control).count(GapKind.NO_EVIDENCE) == len(control.control.categories)
        assert GapKind.PERIOD_NOT_COVERED in gaps(control)


def test_counts_are_those_of_the_records() -> None:
    draw = random.Random(1)
    acts = [
        act(
            draw.choice([Category.AUTHENTICATION, Category.AUTHORIZATION, Category.DATA_ACCESS]),
            draw.choice(list(Ending)),
        )
        for _ in range(500)
    ]
    first = report(Framework.SOC2, acts)[0]
    assert first.control.id == "CC6.1"
    for (category, ending), count in first.counts.items():
        assert count == sum(made.category is category and made.outcome is ending for made in acts)


def test_refusals_that_were_folded_count_as_many() -> None:
    control = report(Framework.SOC2, [act(Category.AUTHENTICATION, Ending.DENIED, count=1_000)])[0]
    assert control.counts[Category.AUTHENTICATION, Ending.DENIED] == 1_000


def test_references_name_records_that_are_evidence_refusals_first_and_newest_first() -> None:
    acts = [act(Category.DATA_ACCESS)] * 3
    acts += [act(Category.AUTHENTICATION), act(Category.AUTHENTICATION, Ending.DENIED)] * 5
    control = report(Framework.SOC2, acts, most=7)[0]
    assert control.references == (("c", 13), ("c", 11), ("c", 9), ("c", 7), ("c", 5), ("c", 12), ("c", 10))


def test_a_broken_trail_is_named_in_every_control() -> None:
    found = Found(rows=[(ChainRow(chain="c"), 1)], faults=[Fault(FaultKind.CHANGED, "c", 1, "")])
    assert all(GapKind.TRAIL_BROKEN in gaps(control) for control in report(Framework.NIST, EVERY, found=found))


def test_a_period_that_is_not_covered_is_named() -> None:
    assert GapKind.PERIOD_NOT_COVERED in gaps(report(Framework.NIST, EVERY, first=START + 1)[0])
    assert GapKind.PERIOD_NOT_COVERED in gaps(report(Framework.NIST, EVERY, end=NOW + 1)[0])
    removed = Found(rows=[(ChainRow(chain="c", base_time=START + DAY), 1)])
    assert GapKind.PERIOD_NOT_COVERED in gaps(report(Framework.NIST, EVERY, found=removed)[0])


def test_time_in_which_nothing_was_recorded_is_named_with_its_length() -> None:
    own = Category.AUDIT_TRAIL
    acts = [*EVERY, act(own, method="audit.ended"), act(own, method="audit.began", time=START + 3_600_005)]
    control = report(Framework.NIST, acts)[0]
    assert [gap.text for gap in control.gaps] == [
        "nothing was recorded 1 times, for 3600 seconds together: stopped, or switched off"
    ]


def test_lost_records_are_named() -> None:
    own = Category.AUDIT_TRAIL
    acts = [*EVERY, act(own, method="audit.lost", count=12), act(own, method="audit.began", reason="NOT_ENDED")]
    control = report(Framework.NIST, acts)[0]
    assert gaps(control) == [GapKind.RECORDS_LOST] * 2
    assert control.gaps[0].text.startswith("12 acts")


def test_a_retention_that_is_too_short_is_named_where_it_is() -> None:
    short = Settings(retention_days=400, reads_recorded=True)
    found = {control.control.id: gaps(control) for control in report(Framework.SOC2, EVERY, short)}
    assert found == {"CC6.1": [], "CC6.2": [GapKind.RETENTION_TOO_SHORT], "CC6.3": []}
    removed = Found(rows=[(ChainRow(chain="c", base_time=NOW - 100 * DAY), 1)])
    assert GapKind.RETENTION_TOO_SHORT in gaps(report(Framework.SOC2, EVERY, found=removed)[0])


def test_reading_that_is_not_recorded_is_named() -> None:
    found = report(Framework.SOC2, EVERY, Settings(retention_days=2_555, reads_recorded=False))
    assert [gaps(control) for control in found] == [[], [], [GapKind.NOT_RECORDED]]


def test_records_that_do_not_say_who_are_named() -> None:
    whole = report(Framework.NIST, [*EVERY, act(Category.AUTHENTICATION, Ending.DENIED, principal="")])
    assert gaps(whole[1]) == []
    nobody = report(Framework.NIST, [*EVERY, act(Category.DATA_ACCESS, principal="")])
    assert gaps(nobody[0]) == []
    assert gaps(nobody[1]) == [GapKind.INCOMPLETE_RECORDS]


def test_the_controls_are_those_of_the_system_before_this_one() -> None:
    found = {
        control.id: (control.retention_days, len(control.categories))
        for controls in CONTROLS.values()
        for control in controls
    }
    assert found == {
        "CC6.1": (365, 2),
        "CC6.2": (2_555, 2),
        "CC6.3": (365, 2),
        "A.12.4.1": (2_555, 9),
        "A.9.2.6": (1_095, 2),
        "AU-2": (2_555, 9),
        "AU-3": (2_555, 9),
    }
