"""What replicas tell of themselves comes over, stays small, and is understood by other versions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from agenthive_server.kernel.health import ComponentReport, Status
from agenthive_server.kernel.members import LARGEST, Member, MemberState, heard, tell

BUSY = Member(
    id="r-1",
    state=MemberState.DRAINING,
    address="there:50051",
    version="1.2",
    start_time=1_700_000_000.125,
    status=Status.DEGRADED,
    troubles=(ComponentReport("tls", Status.DEGRADED, "ends soon", 1_700_000_001.5, None),),
    sessions=1,
    agents=2,
    held_tasks=3,
    streams=4,
    calls_per_second=5.5,
    loop_lag=0.006,
    cpu_cores=0.7,
    memory_bytes=8_000_000_000,
    group=9,
    sequence=10,
    lag_groups=11,
    lag_events=12,
    expelled=(("r-2", 1_700_000_002.0),),
    told_time=1_700_000_003.0,
)


def test_all_that_is_told_is_heard() -> None:
    assert heard("r-1", tell(BUSY), 1_700_000_003.0) == BUSY


@pytest.mark.parametrize("reason", ["x" * 10_000, "\N{ROCKET}" * 10_000, "\x00" * 10_000])
def test_it_stays_small_and_keeps_the_worst(reason: str) -> None:
    troubles = tuple(ComponentReport(f"runner/{n}", Status.DOWN, reason, 1.0, None) for n in range(1_000))
    expelled = tuple((f"{reason}{n}", 1.0) for n in range(100))
    text = tell(replace(BUSY, troubles=troubles, expelled=expelled, address=reason, version=reason))
    assert len(text.encode()) <= LARGEST
    told = heard("r-1", text, 1.0)
    assert told.sessions == 1
    assert told.address == reason[: len(told.address)]
    if reason.isascii() and reason.isprintable():
        assert told.troubles[0].name == "runner/0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "no json",
        '{"state": 9, "sessions": "many", "troubles": 3, "expelled": [1, ["a"]], "later": {}}',
        '{"state": [], "sessions": 1e400, "held_tasks": NaN, "memory_bytes": 1' + "0" * 400 + ', "address": 7}',
        '{"troubles": [["store"], [1, 2, 3, 4]], "status": null}',
    ],
)
def test_what_another_version_says_is_understood_as_far_as_it_goes(text: str) -> None:
    told = heard("r-1", text, 5.0)
    assert (told.id, told.told_time, told.state) == ("r-1", 5.0, MemberState.UNKNOWN)
    assert (told.sessions, told.held_tasks, told.memory_bytes, told.address) == (0, 0, 0, "")


def test_a_status_of_a_newer_version_is_not_taken_to_be_fine() -> None:
    told = heard("r-1", json.dumps({**json.loads(tell(BUSY)), "status": 7, "new": [1]}), 1.0)
    assert (told.status, told.sessions, told.troubles) == (Status.DEGRADED, 1, BUSY.troubles)
