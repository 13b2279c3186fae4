"""What plugins see of the running server, and what they may tell."""

from __future__ import annotations

from pathlib import Path

from agenthive_server.kernel.decide import Caller
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import TaskSpec
from agenthive_server.plugin.api import Severity
from agenthive_server.surroundings import MAX_ATTRIBUTES, MAX_NAME, MAX_TEXT, Surroundings
from agenthive_server.testing.harness import open_app


def surroundings(app: object) -> Surroundings:
    """Return the surroundings of the plugins of a server."""
    found: Surroundings = app.plugins._rack._server  # type: ignore[attr-defined]  # an App
    return found


async def test_counts_are_taken_anew_now_and_then_only(tmp_path: Path) -> None:
    async with open_app(server__data_dir=str(tmp_path)) as app:
        around = surroundings(app)
        assert around.vitals().open_tasks == {}
        spec = TaskSpec(type="work", required_capabilities=("none",))
        await app.kernel.tasks.delegate(Caller(namespace="default"), [NewTask(spec=spec)])
        reading = around.vitals()
        assert (reading.open_tasks, reading.queue_depth) == ({}, 1)
        around._count_again = 0.0
        assert around.vitals().open_tasks == {"QUEUED": 1}


async def test_what_a_plugin_tells_is_bounded(tmp_path: Path) -> None:
    async with open_app(server__data_dir=str(tmp_path)) as app:
        attributes = {f"{number:03d}" + "k" * 200: "v" * 2_000 for number in range(100)}
        await surroundings(app).publish("p", "k" * 500, "t" * 5_000, Severity.WARNING, "s" * 500, attributes)
        (event,) = await app.store.read_events(0, 10)
        assert event.severity is Severity.WARNING
        assert [len(event.data[name]) for name in ("kind", "subject", "text")] == [MAX_NAME, MAX_NAME, MAX_TEXT]
        assert len(event.data["attributes"]) == MAX_ATTRIBUTES
        assert max(map(len, event.data["attributes"].values())) == MAX_TEXT


async def test_a_plugin_has_a_folder_nobody_else_reads(tmp_path: Path) -> None:
    async with open_app(server__data_dir=str(tmp_path)) as app:
        folder = surroundings(app).data_dir("p")
        assert folder == tmp_path / "plugins" / "p"
        assert folder.stat().st_mode & 0o077 == 0
