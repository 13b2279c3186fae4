"""Uptime: what counts as up, as down, and not at all."""

from __future__ import annotations

import msgspec
import pytest
from agenthive_plugins.production.series import SeriesSet
from agenthive_plugins.production.uptime import LastLook, Uptime, unpack_look, usable
from agenthive_server.plugin.api import ComponentReport, Status

START = 1_700_000_000.0


class Story:
    def __init__(self) -> None:
        self.series = SeriesSet(START)
        self.uptime = Uptime(self.series, every=10.0)

    def seconds(self) -> tuple[float, float]:
        now = START + 10_000
        up, down = (
            self.series.window(name, START - 100_000, now, now).total for name in ("up_seconds", "down_seconds")
        )
        return up, down


def test_looks_in_time_are_up_time() -> None:
    story = Story()
    story.uptime.begin(None, "me", START)
    for n in range(1, 7):
        story.uptime.look(START + 10 * n, up=True)
    assert story.seconds() == (60.0, 0.0)


def test_where_another_server_was_there_meanwhile_nothing_was_down() -> None:
    story = Story()
    story.uptime.begin(LastLook(time=START, process="other"), "me", START + 60, START - 500)
    assert story.seconds() == (60.0, 0.0)


def test_what_was_down_is_until_the_first_server_was_there_again() -> None:
    story = Story()
    story.uptime.begin(LastLook(time=START, process="other"), "me", START + 60, START + 40)
    assert story.seconds() == (20.0, 40.0)


def test_a_store_that_is_away_is_down_time() -> None:
    story = Story()
    story.uptime.begin(None, "me", START)
    story.uptime.look(START + 10, up=False)
    story.uptime.look(START + 20, up=True)
    assert story.seconds() == (10.0, 10.0)


def test_a_process_that_got_round_to_nothing_was_down() -> None:
    story = Story()
    story.uptime.begin(None, "me", START)
    story.uptime.look(START + 100, up=True)
    assert story.seconds() == (0.0, 100.0)


def test_the_time_between_two_processes_is_down_time() -> None:
    story = Story()
    story.uptime.begin(LastLook(time=START - 500, process="another"), "me", START)
    assert story.seconds() == (0.0, 500.0)


def test_a_process_that_cannot_be_told_is_another_one() -> None:
    story = Story()
    story.uptime.begin(LastLook(time=START - 500), "", START)
    assert story.seconds() == (0.0, 500.0)


@pytest.mark.parametrize(
    "last",
    [
        LastLook(time=START - 500, process="another", switched_off=True),  # The plugin was off: nobody knows.
        LastLook(time=START - 500, process="me"),  # The same process: only the plugin was away.
        LastLook(time=START + 500, process="another"),  # The clock went back.
        None,
    ],
)
def test_what_nobody_knows_does_not_count(last: LastLook | None) -> None:
    story = Story()
    story.uptime.begin(last, "me", START)
    assert story.seconds() == (0.0, 0.0)


def test_a_clock_that_goes_back_counts_nothing_twice() -> None:
    story = Story()
    story.uptime.begin(None, "me", START)
    story.uptime.look(START - 50, up=True)
    story.uptime.look(START - 40, up=True)
    assert story.seconds() == (10.0, 0.0)


def test_the_store_decides() -> None:
    def component(name: str, status: Status) -> ComponentReport:
        return ComponentReport(name, status, "", START, None)

    assert usable(())
    assert usable((component("store", Status.DEGRADED), component("runner/x", Status.DOWN)))
    assert not usable((component("store", Status.DOWN),))


def test_a_look_that_cannot_be_read_is_none() -> None:
    look = LastLook(time=START)
    assert unpack_look(msgspec.json.encode(look)) == look
    assert unpack_look(b"nonsense") is None
    assert unpack_look(None) is None
