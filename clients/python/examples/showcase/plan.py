"""What is to be done: real tasks over this repository, with priorities and dependencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agenthive.tasks import task_spec
from agenthive.v1.orchestrator_service_pb2 import NewTask

REPOSITORY = Path(__file__).resolve().parents[4]
TESTS = ("tests/clients/python/test_payload.py", "tests/server/test_settings.py", "tests/server/runner/test_lines.py")
MOVED = "count-gently"
CANCELED = "analyze-very-gently"
REPORT = "report"

AREAS = {
    "server": ("server/agenthive_server/*",),
    "clients": ("clients/python/agenthive", "clients/python/examples", "plugins/agenthive_plugins"),
    "tests": ("tests/server/*", "tests/clients/*", "tests/e2e", "tests/protos"),
}
"""Folders by area; a summary is made of each area, and the report of the summaries."""

UNTOLD = {"agenthive_server", "agenthive_plugins", "python"}
"""Parts of a path that tell a reader nothing."""


@dataclass(frozen=True)
class Folder:
    """A folder to be counted, analysed and checked."""

    path: str
    area: str

    @property
    def name(self) -> str:
        """Its path, short enough for a table and a task id."""
        return ".".join(part for part in self.path.split("/") if part not in UNTOLD)


@dataclass
class Plan:
    """The tasks, and what they are about."""

    folders: list[Folder]
    tests: list[str]
    tasks: dict[str, NewTask] = field(default_factory=dict)

    def add(
        self,
        task_id: str,
        type: str,  # noqa: A002 - the contract's word
        given: dict[str, object],
        *,
        needs: str,
        title: str,
        priority: int,
        after: Iterable[str] = (),
    ) -> str:
        """Add a task that needs a capability and runs after others; returns its id."""
        spec = task_spec(
            type, given, title=title, priority=priority, required_capabilities=[needs], depends_on=list(after)
        )
        self.tasks[task_id] = NewTask(task_id=task_id, spec=spec)
        return task_id

    @property
    def dependencies(self) -> int:
        """How many times one task waits for another."""
        return sum(len(task.spec.depends_on) for task in self.tasks.values())


def find_folders(quick: bool) -> Iterator[Folder]:
    """Yield the folders with Python code; `quick`: two of each area."""
    for area, patterns in AREAS.items():
        found = [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern)) if any(path.rglob("*.py"))]
        for path in found[: 2 if quick else None]:
            yield Folder(str(path.relative_to(REPOSITORY)), area)


def make_plan(quick: bool) -> Plan:
    """Return all tasks: for each folder, a summary for each area, a report, one to be moved, one to be canceled."""
    tests = [file for file in TESTS if (REPOSITORY / file).exists()]
    plan = Plan(list(find_folders(quick)), tests[: 1 if quick else None])
    parts: dict[str, list[str]] = {folder.area: [] for folder in plan.folders}
    for folder in plan.folders:
        parts[folder.area] += add_folder(plan, folder)
    for file in plan.tests:
        name = Path(file).stem.removeprefix("test_")
        parts["tests"].append(
            plan.add(f"test-{name}", "test", {"file": file}, needs="test", title=f"Run {file}", priority=2)
        )
    summaries = [
        plan.add(
            f"sum-{area}", "summary", {"tasks": ids}, needs="summary", title=f"Sum up {area}", priority=1, after=ids
        )
        for area, ids in parts.items()
    ]
    given: dict[str, object] = {"tasks": summaries}
    plan.add(REPORT, "summary", given, needs="summary", title="Sum it all up", priority=1, after=summaries)
    add_slow(plan, quick)
    return plan


def add_folder(plan: Plan, folder: Folder) -> list[str]:
    """Add the tasks of one folder; returns their ids."""
    given: dict[str, object] = {"folder": folder.path}
    name = folder.name
    return [
        plan.add(f"count-{name}", "count", given, needs="count", title=f"Count the lines of {name}", priority=3),
        plan.add(f"lint-{name}", "lint", given, needs="lint", title=f"Check {name}", priority=4),
        plan.add(f"rank-{name}", "complexity", given, needs="complexity", title=f"Analyse {name}", priority=3),
    ]


def add_slow(plan: Plan, quick: bool) -> None:
    """Add one task that is in the middle long enough to lose its agent there, and one that is far too long."""
    # Progress comes about once a second: a few times over, so that there is a middle on a busy machine, too.
    slow: dict[str, object] = {"folder": "server/agenthive_server/kernel", "rest": 0.1 if quick else 0.25}
    plan.add(MOVED, "count", slow, needs="count", title="Count, easy on the disk", priority=1)
    endless: dict[str, object] = {"folder": "server", "rest": 2.0}
    plan.add(CANCELED, "complexity", endless, needs="complexity", title="Analyse, very easy on the disk", priority=5)
