"""What must be true at the end, asked from the server and not from what was seen; and the tables of the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from agenthive.payload import value
from agenthive.v1 import task_pb2
from agenthive.v1.task_pb2 import Task
from rich.box import SIMPLE_HEAD
from rich.table import Table

from showcase.plan import CANCELED, MOVED, REPORT, Plan
from showcase.story import Story

Results = Mapping[str, Any]


def results_of(tasks: Mapping[str, Task]) -> Results:
    """Return the decoded results of the tasks that succeeded."""
    succeeded = task_pb2.TASK_STATE_SUCCEEDED
    return {task_id: value(task.result) for task_id, task in tasks.items() if task.state == succeeded}


def broken_claims(story: Story, tasks: Mapping[str, Task], results: Results, minimum: int) -> list[str]:
    """Return a sentence for each claim that does not hold."""
    claims = {
        f"at least {minimum} tasks were delegated": len(tasks) >= minimum,
        "every task but the canceled one succeeded": results.keys() == tasks.keys() - {CANCELED},
        "at least four process agents did tasks": len(_workers(tasks) - {"summarist-1"}) >= 4,
        "every task began after all it depends on had ended": all(_in_order(tasks)),
        "the task of the killed agent moved to another one and succeeded in its second attempt": _moved(story, tasks),
        "the canceled task is CANCELED": tasks[CANCELED].state == task_pb2.TASK_STATE_CANCELED,
        "the report adds up to what the single tasks found": _adds_up(story.plan, results),
        "nothing was lost on the way to the report": not results.get(REPORT, {}).get("missing", ["everything"]),
        "what the events told is what the server says": _seen_right(story, tasks),
    }
    return [f"not true: {claim}" for claim, holds in claims.items() if not holds]


def _workers(tasks: Mapping[str, Task]) -> set[str]:
    return {task.attempts[-1].agent_id for task in tasks.values() if task.attempts}


def _in_order(tasks: Mapping[str, Task]) -> Iterator[bool]:
    for task in tasks.values():
        for before in task.spec.depends_on:
            ended, began = tasks[before].end_time, task.attempts[0].assign_time if task.attempts else None
            yield began is not None and ended.ToNanoseconds() <= began.ToNanoseconds()


def _moved(story: Story, tasks: Mapping[str, Task]) -> bool:
    if len(tasks[MOVED].attempts) != 2:
        return False
    first, second = tasks[MOVED].attempts
    lost = first.error.error_class == task_pb2.TASK_ERROR_CLASS_INFRA and not first.counted
    return lost and first.agent_id == story.killed_agent and second.agent_id != first.agent_id and second.number == 2


def _adds_up(plan: Plan, results: Results) -> bool:
    report = results.get(REPORT, {})
    ids = [f"count-{folder.name}" for folder in plan.folders]
    return bool(sum(results.get(each, {}).get("code", 0) for each in ids) == report.get("code", -1))


def _seen_right(story: Story, tasks: Mapping[str, Task]) -> bool:
    return all(
        task_pb2.TaskState.Name(task.state) == f"TASK_STATE_{story.picture.tasks[task_id].state}"
        and (task.state != task_pb2.TASK_STATE_SUCCEEDED or task.attempt == story.picture.tasks[task_id].attempt)
        for task_id, task in tasks.items()
    )


def folder_table(plan: Plan, results: Results) -> Table:
    """Return what was found, folder by folder."""
    table = Table(title="What they found", title_justify="left", box=SIMPLE_HEAD)
    for column in ("folder", "files", "lines", "functions", "lint"):
        table.add_column(column, justify="left" if column == "folder" else "right", no_wrap=True)
    table.add_column("most complex", overflow="ellipsis", no_wrap=True)
    for folder in plan.folders:
        counts, ranks = results.get(f"count-{folder.name}", {}), results.get(f"rank-{folder.name}", {})
        lines = sum(counts.get(kind, 0) for kind in ("code", "comment", "blank"))
        lint = results.get(f"lint-{folder.name}", {}).get("findings", "?")
        found = (counts.get("files", "?"), lines, ranks.get("functions", "?"), lint)
        table.add_row(folder.name, *map(str, found), _worst(ranks))
    return table


def _worst(ranks: Mapping[str, Any]) -> str:
    worst = ranks.get("worst") or [{"complexity": "", "function": ""}]
    return f"{worst[0]['complexity']:>3} {worst[0]['function'][:32]}"


def sentences(story: Story, tasks: Mapping[str, Task], results: Results) -> Iterator[str]:
    """Yield what is to be said besides the table."""
    report = results.get(REPORT, {})
    yield f"Tests: {report.get('passed', 0)} of {report.get('tests', 0)} passed, in {len(story.plan.tests)} files."
    yield (
        f"Report: {report.get('files')} files, {report.get('code')} lines of code, {report.get('functions')} functions,"
        f" {report.get('findings')} findings; made of {len(tasks)} tasks."
    )
    done = Counter(task.attempts[-1].agent_id for task_id, task in tasks.items() if task_id in results)
    yield "Done by: " + ", ".join(f"{agent} {number}" for agent, number in sorted(done.items())) + "."
    last, killed = tasks[MOVED].attempts[-1], f"{story.killed_agent} (killed, pid {story.killed_pid})"
    yield f"Moved: {MOVED}, from {killed} to {last.agent_id}, attempt {last.number}."
    yield f"Canceled: {CANCELED} ({tasks[CANCELED].state_reason})."
    yield f"Events: {story.picture.events}, without a hole."
