"""A group is one statement with as many arguments, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from agenthive_server.kernel.changes import ChangeSet
from agenthive_server.kernel.records import Kind
from agenthive_server.storage.fold import Fold
from agenthive_server.storage.postgres import bulk
from agenthive_server.testing.store_model import changing, sample, task


def built(
    *group: ChangeSet, fence: tuple[tuple[Kind, tuple[str, str]], int] | None = None, channel: str = "c"
) -> bulk.Bulk:
    fold = Fold()
    for changes in group:
        assert not fold.add(changes)
    return bulk.build(fold, group, fence=fence, channel=channel, now=None)


def _columns(made: bulk.Bulk) -> list[Sequence[object]]:
    """Return the columns it sends, those first that travel as JSON."""
    sent = made.arguments[4 if made.written else 0 :]
    told = [column for text in sent if isinstance(text, str) for column in msgspec.json.decode(text)]
    return [*told, *(column for column in sent if not isinstance(column, str))]


def test_groups_of_one_make_have_one_text() -> None:
    small = built(changing(task("a"), events=1))
    large = built(*(changing(task(f"t{number}"), events=2) for number in range(300)))
    assert small.text == large.text
    assert len(small.arguments) == len(large.arguments)
    assert {len(column) for column in _columns(large)} == {300}
    assert large.arguments[2] == 600


def test_a_row_changed_more_than_once_is_written_once() -> None:
    made = built(changing(task("a")), changing(task("a", revision=2)), changing(task("a", revision=3)))
    assert made.text.count("INSERT INTO task") == 1
    assert "UPDATE task" not in made.text
    assert [3] in _columns(made)
    # Its key is sent once, to be compared and to be written.
    assert _columns(made).count(["a"]) == 1


def test_a_row_removed_and_made_anew_is_replaced() -> None:
    made = built(changing(deletes=(task("a"),)), changing(task("a", type="new")))
    assert "task_replace" in made.text
    assert "DELETE" not in made.text
    assert "INSERT INTO task" not in made.text


def test_checks_alone_write_nothing() -> None:
    made = built(ChangeSet(checks={task("a").ref: 3}), fence=((Kind.ROLE, ("", "server")), 7))
    assert not made.written
    assert made.text.startswith("SELECT 'role'")
    assert _columns(made) == [[""], ["server"], [7], ["default"], ["a"], [3]]
    assert len(made.arguments) == made.text.count("ROWS FROM") == 2
    assert not built(ChangeSet()).written


def test_nobody_is_notified_of_what_has_no_events_or_no_channel() -> None:
    assert "pg_notify" in built(changing(task("a"), events=1)).text
    assert "pg_notify" not in built(changing(task("a"))).text
    assert "pg_notify" not in built(changing(task("a"), events=1), channel="").text


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_can_be_written(kind: Kind) -> None:
    first, second = sample(kind, ("n", "a"), 1, 1), sample(kind, ("n", "b"), 5, 2)
    made = built(changing(first, second), changing(deletes=(sample(kind, ("n", "c"), 2, 3),)))
    deeds = [deed for deed in ("insert", "update", "delete") if f"{kind.value}_{deed} AS" in made.text]
    assert deeds == ["insert", "update", "delete"]


def test_what_was_stale_is_read_with_what_is_there() -> None:
    found = bulk.read([("task", "default", "a", 3, None, None), ("agent", "n", "b", 0, None, None)])
    assert found == {(Kind.TASK, ("default", "a")): 3, (Kind.AGENT, ("n", "b")): 0}
    assert bulk.read([]) == {}
    written = bulk.read([("", "log", "77", 5, 9, 1.5)])
    assert written == bulk.Written(log_id="log", head=5, group_count=9, time=1.5, transaction="77")
