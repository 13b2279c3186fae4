"""A process that is killed while it commits loses nothing it has acknowledged and leaves nothing half done."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.records import CursorRecord, Kind
from agenthive_server.storage.sqlite import SqliteStore

# Commits groups of one to five change sets with two tasks and two events each; a cursor counts the groups. Says the
# number of a group when it is acknowledged.
_VICTIM = """
import asyncio, os, random, sys
from pathlib import Path
from agenthive_server.kernel.changes import COMMITTED
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.kernel.records import CursorRecord, Kind
from agenthive_server.storage.sqlite import SqliteStore
from agenthive_server.testing.store_model import changing, task

async def main(path, chance):
    store = SqliteStore(path, clock=SystemClock())
    await store.open()
    (counter,) = await store.get(Kind.CURSOR, [("n", "groups")])
    done = counter.revision if counter else 0
    while True:
        done += 1
        size = chance.randint(1, 5)
        group = [
            changing(task(f"{done}-{size}-{n}-0"), task(f"{done}-{size}-{n}-1", title="x" * 4_000), events=2)
            for n in range(size)
        ]
        group.append(changing(CursorRecord(namespace="n", id="groups", revision=done, sequence=done)))
        assert set(await store.commit(group)) == {COMMITTED}
        os.write(1, f"{done}\\n".encode())

asyncio.run(main(Path(sys.argv[1]), random.Random(int(sys.argv[2]))))
"""


def kill_while_committing(path: Path, seed: int, groups: int) -> int:
    """Return the number of the last group that was acknowledged."""
    victim = subprocess.Popen([sys.executable, "-c", _VICTIM, str(path), str(seed)], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    with victim:
        acknowledged = [int(victim.stdout.readline()) for _ in range(groups)]
        victim.kill()
        acknowledged += [int(line) for line in victim.stdout if line.endswith(b"\n")]
    return acknowledged[-1]


async def check_what_is_left(path: Path, acknowledged: int) -> None:
    store = SqliteStore(path, clock=SystemClock())
    await store.open()
    (counter,) = await store.get(Kind.CURSOR, [("n", "groups")])
    assert isinstance(counter, CursorRecord)
    assert counter.sequence >= acknowledged
    members: Counter[int] = Counter()
    sizes: dict[int, int] = {}
    for record in await store.scan(Kind.TASK):
        number, size, _, _ = map(int, record.id.split("-"))
        members[number] += 1
        sizes[number] = size
    assert sorted(members) == list(range(1, counter.sequence + 1))
    assert all(members[number] == 2 * size for number, size in sizes.items())
    bounds = await store.bounds()
    events = await store.read_events(0, 1_000_000)
    assert bounds.head == members.total() == len(events)
    assert [event.sequence for event in events] == list(range(1, bounds.head + 1))
    await store.close()


@pytest.mark.crash
def test_every_acknowledged_group_survives_a_kill(tmp_path: Path, soak_seed: int, soak_rounds: int | None) -> None:
    path = tmp_path / "hive.db"
    for seed in range(soak_seed, soak_seed + (soak_rounds or 10)):
        acknowledged = kill_while_committing(path, seed, random.Random(seed).randint(1, 60))
        asyncio.run(check_what_is_left(path, acknowledged))
