"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "golden" in item.fixturenames:
            item.add_marker("golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name in `golden/` beside the test; `make golden` rewrites it."""

    def compare(name: str, actual: str) -> None:
        file = request.path.parent / "golden" / name
        if request.config.getoption("--rewrite-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(actual, encoding="utf-8")
        assert file.exists(), f"{file} is missing; run `make golden` and review what it writes"
        assert actual == file.read_text(encoding="utf-8"), "if this is wanted: `make golden`, and review the diff"

    return compare


@pytest.fixture
def soak_seed() -> int:
    """The seed of the first round of a crash or simulation test; `make soak SEED=7` sets it."""
    return int(os.environ.get("AGENTHIVE_SOAK_SEED", "1"))  # noqa: TID251 - `make soak` speaks to the tests this way


@pytest.fixture
def soak_rounds() -> int | None:
    """The rounds `make soak ROUNDS=1000` asks for; None in an ordinary run, where the test takes as few as it needs."""
    rounds = os.environ.get("AGENTHIVE_SOAK_ROUNDS")  # noqa: TID251 - `make soak` speaks to the tests this way
    return int(rounds) if rounds else None
