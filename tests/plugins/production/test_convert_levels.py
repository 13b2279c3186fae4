"""Service level targets come back as they were written; reports say all there is."""

from __future__ import annotations

from agenthive.v1 import production_service_pb2 as pb
from agenthive_plugins.production.convert_levels import fill_report, fill_target, target_from
from agenthive_plugins.production.levels import SlaHistory, SlaReport
from agenthive_plugins.production.series import SeriesSet
from agenthive_plugins.production.sla import BadInterval, Indicator, SlaTarget, stand
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_700_002_800.0

targets = st.builds(
    SlaTarget,
    id=st.from_regex(r"\A[A-Za-z0-9._-]{1,20}\Z"),
    indicator=st.sampled_from(Indicator),
    target_value=st.floats(0.001, 100.0),
    description=st.text("abc", max_size=20),
    percentile=st.floats(50.0, 99.9),
    window=st.integers(60, 40 * 86_400).map(float),
    breach_threshold_percent=st.floats(0.1, 100.0),
)


@given(targets)
@settings(max_examples=100, deadline=None)
def test_a_target_comes_back_as_it_was(target: SlaTarget) -> None:
    message = pb.SlaTarget()
    fill_target(message, target, None)
    assert target_from(pb.SlaTarget.FromString(message.SerializeToString())) == target


def test_a_report() -> None:
    series = SeriesSet(START)
    series.count("tasks_succeeded", START, 90)
    series.count("tasks_failed", START, 30)
    target = SlaTarget(id="t", indicator=Indicator.TASK_COMPLETION, target_value=95.0)
    report = SlaReport(
        stand(series, target, START + 60),
        SlaHistory(breaches=3, last_breach=START),
        (BadInterval(START, START + 60, 30, 120),),
        (("TOOL", 30),),
    )
    message = pb.SlaReport()
    fill_report(message, report)
    assert (message.met, message.current_value, message.good, message.total) == (False, 75, 90, 120)
    assert (round(message.budget, 6), round(message.budget_left, 6)) == (6.0, -4.0)
    assert (message.target.breach_count, message.bad_intervals[0].bad, message.culprits[0].name) == (3, 30, "TOOL")
    assert [burn.limit for burn in message.burn_rates] == [14.4, 6.0, 1.0]
    # A quarter failed, a twentieth is allowed: five times too fast, above the limit of three days alone.
    assert [burn.burning for burn in message.burn_rates] == [False, False, True]


def test_indicators_are_those_of_the_contract() -> None:
    named = {name.removeprefix("SLA_INDICATOR_"): number for name, number in pb.SlaIndicator.items() if number}
    assert {member.name: member.value for member in Indicator} == named
