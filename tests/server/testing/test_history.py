"""The judge of histories is no rubber stamp: what cannot have happened is found."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive.v1 import event_pb2 as pb
from agenthive.v1 import task_pb2
from agenthive_server.testing.history import HistoryBroken, difference, fold


def task(sequence: int, **fact: object) -> pb.Event:
    return pb.Event(sequence=sequence, namespace="default", task_id="t", **fact)  # type: ignore[arg-type]  # one fact


Fact = dict[str, Any]

DELEGATED: Fact = {"task_delegated": pb.TaskDelegated(state=task_pb2.TASK_STATE_QUEUED)}
ASSIGNED: Fact = {"task_assigned": pb.TaskAssigned(attempt=1, lease_epoch=1)}
STARTED: Fact = {"task_started": pb.TaskStarted(attempt=1, lease_epoch=1)}
SUCCEEDED: Fact = {"task_succeeded": pb.TaskSucceeded(attempt=1)}
REQUEUED: Fact = {"task_requeued": pb.TaskRequeued(attempt=1, reason="LEASE_LOST")}
STORY = [DELEGATED, ASSIGNED, STARTED, SUCCEEDED]


def told(*facts: Fact) -> list[pb.Event]:
    return [task(number, **fact) for number, fact in enumerate(facts, 1)]


def test_a_story_ends_in_its_state() -> None:
    assert fold(told(*STORY)).tasks["default", "t"].state == "SUCCEEDED"
    second = pb.TaskAssigned(attempt=2, lease_epoch=2)
    assert fold(told(*STORY[:3], REQUEUED, {"task_assigned": second})).tasks["default", "t"].attempt == 2


@pytest.mark.parametrize(
    "facts",
    [
        [*STORY, SUCCEEDED],
        [*STORY, ASSIGNED],
        [ASSIGNED],
        [DELEGATED, DELEGATED],
        [DELEGATED, STARTED],
        [DELEGATED, SUCCEEDED],
        [DELEGATED, ASSIGNED, ASSIGNED],
        [DELEGATED, ASSIGNED, REQUEUED, ASSIGNED],
        [DELEGATED, ASSIGNED, {"task_started": pb.TaskStarted(attempt=1, lease_epoch=2)}],
        [DELEGATED, REQUEUED],
        [DELEGATED, {"task_retried": pb.TaskRetried(previous_state=task_pb2.TASK_STATE_FAILED)}],
    ],
)
def test_what_cannot_have_happened_is_found(facts: list[Fact]) -> None:
    with pytest.raises(HistoryBroken):
        fold(told(*facts))


def test_a_hole_and_a_repeat_are_found() -> None:
    log = told(*STORY)
    for wrong in ([log[0], *log[2:]], [*log, log[-1]], [log[1], log[0]]):
        with pytest.raises(HistoryBroken):
            fold(wrong)
        assert difference(wrong, log)
    assert not difference(log, log)


def test_the_epoch_of_a_session_only_grows() -> None:
    def session(sequence: int, **fact: object) -> pb.Event:
        return pb.Event(sequence=sequence, session_id="s", **fact)  # type: ignore[arg-type]  # one fact

    opened = session(1, session_opened=pb.SessionOpened())
    resumed = session(2, session_resumed=pb.SessionResumed(session_epoch=2))
    assert fold([opened, resumed]).sessions["", "s"] == 2
    for wrong in (
        [opened, session(2, session_resumed=pb.SessionResumed(session_epoch=1))],
        [opened, session(2, session_ended=pb.SessionEnded()), session(3, session_suspect=pb.SessionSuspect())],
    ):
        with pytest.raises(HistoryBroken):
            fold(wrong)
