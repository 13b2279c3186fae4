"""What code of others may put into a specification: everything a caller may, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from agenthive_server.kernel.agents import AgentSpec, RestartMode, RestartPolicy
from agenthive_server.kernel.bounds import check_fields, check_record, is_id
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.tasks import ChildrenPolicy, RetryPolicy, Strategy, TaskSpec, Timeouts


@pytest.mark.parametrize(
    "record",
    [
        TaskSpec(type="review"),
        TaskSpec(
            type="review",
            input=Payload(json='{"a": [1, "x", null]}'),
            title="ü" * 255,
            fairness_weight=2,
            required_capabilities=("a", "b"),
            agent_id="a-1",
            labels={"team": "red", "empty": ""},
            depends_on=("x", "y"),
            retry=RetryPolicy(maximum_attempts=7, non_retryable_reasons=("A",)),
            timeouts=Timeouts(progress=1),
            exclusive=True,
            strategy=Strategy.WEIGHTED,
        ),
        AgentSpec(driver="process", driver_config=b"\x00", restart=RestartPolicy(mode=RestartMode.ALWAYS)),
        Payload(data=b"\xff"),
        Payload(blob_id="sha256:00"),
        Payload(),
    ],
)
def test_what_is_right_passes(record: object) -> None:
    check_record(record, type(record))


@pytest.mark.parametrize(
    ("of", "field", "value"),
    [
        (TaskSpec, "type", ""),
        (TaskSpec, "type", 7),
        (TaskSpec, "title", "x" * 256),
        (TaskSpec, "title", "a\x00b"),
        (TaskSpec, "title", "\udc80"),
        (TaskSpec, "title", None),
        (TaskSpec, "priority", 0),
        (TaskSpec, "priority", 2.5),
        (TaskSpec, "priority", True),
        (TaskSpec, "priority", "3"),
        (TaskSpec, "fairness_weight", 0.0),
        (TaskSpec, "fairness_weight", float("nan")),
        (TaskSpec, "fairness_weight", float("inf")),
        (TaskSpec, "labels", {"a": 1}),
        (TaskSpec, "labels", {1: "a"}),
        (TaskSpec, "labels", [("a", "b")]),
        (TaskSpec, "labels", {str(n): "" for n in range(65)}),
        (TaskSpec, "required_capabilities", ["gpu"]),
        (TaskSpec, "required_capabilities", ("gpu", 1)),
        (TaskSpec, "required_capabilities", ("gpu", "")),
        (TaskSpec, "depends_on", ("not an id",)),
        (TaskSpec, "depends_on", tuple(map(str, range(257)))),
        (TaskSpec, "agent_id", "a/b"),
        (TaskSpec, "exclusive", 1),
        (TaskSpec, "children_policy", "CANCEL"),
        (TaskSpec, "children_policy", Strategy.WEIGHTED),
        (TaskSpec, "retry", RetryPolicy(maximum_attempts=0)),
        (TaskSpec, "retry", RetryPolicy(initial_interval=-1.0)),
        (TaskSpec, "timeouts", Timeouts(start_to_close="1h")),  # type: ignore[arg-type]  # that is the point
        (TaskSpec, "input", Payload(json="{")),
        (TaskSpec, "input", Payload(json="[1]")),
        (TaskSpec, "input", Payload(data=b"x", blob_id="sha256:00")),
        (TaskSpec, "input", Payload(data=bytes(4 * 1024 * 1024))),
        (TaskSpec, "input", b"bytes"),
        (TaskSpec, "colour", "red"),
        (AgentSpec, "slots", 0),
        (AgentSpec, "slots", 1_001),
        (AgentSpec, "weight", 0.0),
        (AgentSpec, "driver", ""),
        (AgentSpec, "stop_grace", -1.0),
        (AgentSpec, "driver_config", "text"),
        (AgentSpec, "restart", RestartPolicy(backoff_coefficient=0.5)),
    ],
)
def test_what_is_wrong_is_named(of: type, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^\w+: "):
        check_fields(of, {field: value})


def test_another_kind_of_record_is_refused() -> None:
    for record in (TaskSpec(type="t"), b"x", {"data": b"x"}, None):
        with pytest.raises(ValueError, match="expected Payload"):
            check_record(record, Payload)


def test_a_part_may_be_checked_by_itself() -> None:
    check_fields(TaskSpec, {"priority": 1, "strategy": None, "children_policy": ChildrenPolicy.WAIT})
    assert is_id("a.b-c_1")
    assert not is_id("")
    assert not is_id(None)
