"""A URL of a database is told from others, and never shows its password."""

from __future__ import annotations

import pytest
from agenthive_server.storage.address import is_postgres, masked, named_schema, shown


@pytest.mark.parametrize(
    ("url", "yes"),
    [("postgresql://h/d", True), ("postgres:///d", True), ("sqlite:///x", False), ("memory:", False), ("", False)],
)
def test_it_is_known_by_its_scheme(url: str, yes: bool) -> None:
    assert is_postgres(url) is yes


@pytest.mark.parametrize(
    ("url", "people", "settings"),
    [
        ("postgresql://h:5/d", "postgresql://h:5/d", "postgresql://h:5/d"),
        ("postgresql://u@h/d", "postgresql://h/d", "postgresql://u@h/d"),
        ("postgresql://u:geheim@h/d?sslmode=require", "postgresql://h/d", "postgresql://u:***@h/d?sslmode=require"),
        ("postgresql://u:ge/h@eim@h/d", "postgresql://h/d", "postgresql://u:***@h/d"),
        (
            "postgresql:///d?host=/run&password=geheim&user=u",
            "postgresql:///d",
            "postgresql:///d?host=/run&password=***&user=u",
        ),
        ("postgresql://h/d?sslpassword=geheim", "postgresql://h/d", "postgresql://h/d?sslpassword=***"),
        ("redis://:geheim@h:6379/0", "redis://h:6379/0", "redis://:***@h:6379/0"),
        (
            "rediss://u:geheim@h/0?password=geheim&ssl_password=geheim",
            "rediss://h/0",
            "rediss://u:***@h/0?password=***&ssl_password=***",
        ),
    ],
)
def test_its_password_is_not_shown(url: str, people: str, settings: str) -> None:
    assert shown(url) == people
    assert masked(url) == settings


def test_it_may_name_a_schema() -> None:
    assert named_schema("postgresql://h/d") == ""
    assert named_schema("postgresql://h/d?sslmode=require&search_path=hive") == "hive"
    assert named_schema("postgresql://h/d?search_path=%22My hive%22,public") == "My hive"
