"""Ids that were never used before."""

from __future__ import annotations

import re

from agenthive_server.kernel.clock import ManualClock
from agenthive_server.kernel.ids import Ids


def test_ids_differ_and_sort_by_the_time_they_were_made() -> None:
    clock = ManualClock()
    new_id = Ids(clock)
    made = []
    for _ in range(50):
        made.append([new_id() for _ in range(20)])
        clock.move(0.01)
    flat = [each for group in made for each in group]
    assert len(set(flat)) == len(flat)
    assert [sorted(group) for group in made] == [sorted(flat)[start : start + 20] for start in range(0, len(flat), 20)]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in flat)
