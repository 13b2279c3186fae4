"""Baselines: they follow what is usual, and not what is not."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from agenthive_plugins.production.baseline import WARM, Baseline, Profile

START = 1_699_999_200.0


def fed(values: list[float], floor: float = 0.1) -> Baseline:
    baseline = Baseline()
    for minute, value in enumerate(values):
        baseline.learn(START + 60 * minute, value, floor)
    return baseline


def test_level_and_scatter_of_noise() -> None:
    rng = random.Random(1)
    baseline = fed([rng.gauss(50, 5) for _ in range(3_000)])
    assert baseline.level == pytest.approx(50, abs=1.5)
    assert baseline.scale == pytest.approx(5, rel=0.2)


def test_a_tenth_of_wild_values_moves_little() -> None:
    rng = random.Random(2)
    values = [rng.gauss(50, 5) if rng.random() > 0.1 else 1_000.0 for _ in range(3_000)]
    baseline = fed(values)
    assert baseline.level == pytest.approx(50, abs=3)
    assert baseline.scale < 10


def test_nothing_is_said_before_enough_was_seen() -> None:
    assert not fed([1.0] * (WARM - 1)).warm
    assert fed([1.0] * WARM).warm


def test_the_profile_knows_the_hours_of_the_day_after_three_days() -> None:
    profile = Profile()
    for minute in range(3 * 1_440 + 61):
        profile.learn(START + 60 * minute, 10 * math.sin(2 * math.pi * minute / 1_440))
    assert profile.ready
    for minute in (360, 1_080):
        offset = profile.at(START + 60 * (3 * 1_440 + minute))
        assert offset == pytest.approx(10 * math.sin(2 * math.pi * minute / 1_440), abs=1.5)


def test_what_happened_on_one_day_only_is_not_expected_on_the_next() -> None:
    profile = Profile()
    for minute in range(3 * 1_440 + 61):
        profile.learn(START + 60 * minute, 50.0 if 600 <= minute < 720 else 0.0)
    offset = profile.at(START + 60 * (3 * 1_440 + 660))
    assert offset == pytest.approx(0.0, abs=5.0)


def test_it_survives_being_stored() -> None:
    rng = random.Random(4)
    baseline = fed([rng.gauss(50, 5) for _ in range(4_000)])
    again = msgspec.json.decode(msgspec.json.encode(baseline), type=Baseline)
    assert again == baseline
    assert len(msgspec.json.encode(baseline)) < 10_000
