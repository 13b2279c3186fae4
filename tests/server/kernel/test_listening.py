"""How often pulses are looked at. What follows from them is in `test_reaper.py` and `test_sessions.py`."""

from __future__ import annotations

import itertools

import pytest
from agenthive_server.kernel.listening import EVERY, LATEST, SHARE
from agenthive_server.testing.hive import open_hive


@pytest.mark.parametrize(("took", "apart"), [(0.0, EVERY), (0.1, SHARE * 0.1), (1.0, LATEST)])
async def test_a_look_that_takes_long_is_made_seldom(
    monkeypatch: pytest.MonkeyPatch, took: float, apart: float
) -> None:
    async with open_hive() as hive:
        listening = hive.kernel.reaper._listening
        looks: list[float] = []

        async def look() -> None:
            looks.append(hive.clock.monotonic())
            hive.clock.move(took)

        monkeypatch.setattr(listening, "_silent_leases", look)
        for _ in range(100):
            await listening.look(0.0, led=True)
            hive.clock.move(0.25)
        gaps = {round(after - before, 6) for before, after in itertools.pairwise(looks)}
        assert max(gaps) <= apart + 0.25 + took
        assert min(gaps) >= apart
