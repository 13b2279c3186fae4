"""A replica keeps its chain over restarts, and knows whether it is the only one that writes it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agenthive_plugins.security.place import Place


def test_the_chain_stays_the_same_until_another_is_begun(tmp_path: Path) -> None:
    place = Place(tmp_path)
    name = place.chain()
    assert Place(tmp_path).chain() == name
    other = place.new_chain()
    assert other != name
    assert Place(tmp_path).chain() == other
    (tmp_path / "chain").write_bytes(b"\xff not a name")
    assert Place(tmp_path).chain() not in (name, other)


def test_two_at_once_know_of_each_other(tmp_path: Path) -> None:
    first, second, third = Place(tmp_path), Place(tmp_path), Place(tmp_path)
    assert first.enter()
    assert not second.enter()
    first.leave()
    assert not third.enter()
    second.leave()
    third.leave()
    assert is_free(tmp_path)


def is_free(folder: Path) -> bool:
    place = Place(folder)
    try:
        return place.enter()
    finally:
        place.leave()


async def test_one_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from agenthive_plugins.security.place import Place;"
        "p = Place(pathlib.Path(sys.argv[1])); print(p.enter(), flush=True); sys.stdin.read()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"True\n"
    assert not is_free(tmp_path)
    process.kill()
    await process.wait()
    assert is_free(tmp_path)
