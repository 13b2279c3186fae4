"""The demo as `make demo` runs it, with the fewest tasks its claims need: it checks itself, leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 240

pytestmark = pytest.mark.timeout(2 * PATIENCE)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A demo that makes its folder in `tmp_path`; told to stop if the test has not seen it end."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-u", "clients/python/examples/demo.py", "--quick"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.terminate()


def remaining(folder: Path) -> list[str]:
    """Return what there still is of a demo: its folders, and processes that know them."""
    mark = str(folder / "agenthive-demo").encode()
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                processes.append(process.name)
        except OSError:
            continue
    return [*map(str, folder.glob("agenthive-demo*")), *processes]


def test_the_demo_holds_its_claims(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    output, errors = demo.communicate(timeout=PATIENCE)
    assert (demo.returncode, errors) == (0, ""), output
    killed = re.search(r"» kill -9 \d+: (\S+) dies in the middle of count-gently", output)
    moved = re.search(r"count-gently succeeded by (\S+) \(attempt 2\)", output)
    assert killed
    assert moved
    assert moved[1] != killed[1]
    assert re.search(r"^Tests: (\d+) of \1 passed", output, re.MULTILINE)
    assert "analyze-very-gently canceled: it takes too long" in output
    assert re.search(r"^Events: \d+, without a hole", output, re.MULTILINE)
    assert re.search(r"^» all as it should be after .*; nothing is left running$", output, re.MULTILINE)
    assert remaining(tmp_path) == []


def test_interrupted_in_the_middle_the_demo_stops_all_it_started(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if "delegated" in line:
            break
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=PATIENCE)
    assert (demo.returncode, errors) == (130, "demo: stopped, and everything it had started\n")
    assert remaining(tmp_path) == []
