"""What the server says on a session; the rest of it is told in test_worker.py."""

from __future__ import annotations

import pytest
from agenthive.v1 import error_pb2
from agenthive.v1 import worker_service_pb2 as pb
from agenthive_server.kernel import session_items as items
from agenthive_server.kernel.agents import Agent, AgentSpec
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.kernel.messages import Message
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.tasks import Lease, Task, TaskSpec, TaskState
from agenthive_server.rpc.convert.deliveries import fill_delivery, fill_refused, refusal_of

LEASE = Lease(agent_id="a", session_id="s", epoch=3, assign_time=90.0, start_time=95.0, close_deadline=160.0)
TASK = Task(namespace="n", id="t", spec=TaskSpec(type="w"), state=TaskState.RUNNING, lease=LEASE, attempt=2)
MAIL = Message(namespace="n", id="m", payload=Payload(data=b"x"), create_time=1.0, expire_time=2.0)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (items.Assign(TASK), "assignment"),
        (items.Cancel("t", 1, ""), "cancel"),
        (items.Revoke("t", 1, ""), "lease_revoked"),
        (items.Pause("t", 1, True), "pause"),
        (items.Answer("t", 1, Payload()), "answer"),
        (items.Start(Agent(namespace="n", id="a", spec=AgentSpec(), start_epoch=4), wake=True), "start_agent"),
        (items.Stop("a", 0.0, False, ""), "stop_agent"),
        (items.Mail("a", [MAIL]), "messages"),
        (items.Reconnect(0.0), "reconnect"),
        (items.Drained(""), "drain"),
        (items.Bye(""), "goodbye"),
    ],
)
def test_everything_can_be_said_even_when_it_is_empty(said: items.Delivery, kind: str) -> None:
    item = pb.ControlItem()
    fill_delivery(item, said, 100.0)
    assert pb.ControlItem.FromString(item.SerializeToString()).WhichOneof("item") == kind


def test_an_assignment_says_how_much_time_is_left() -> None:
    item = pb.ControlItem()
    fill_delivery(item, items.Assign(TASK, checkpoint=b"c", repeated=True), 100.0)
    told = item.assignment
    assert (told.agent_id, told.lease_epoch, told.attempt, told.checkpoint, told.repeated) == ("a", 3, 2, b"c", True)
    assert told.start_to_close_timeout.seconds == 60
    fill_delivery(item, items.Assign(TASK), 1_000.0)
    assert item.assignment.start_to_close_timeout.seconds == 0


def test_a_refusal_has_a_reason_of_the_catalogue() -> None:
    message = pb.ItemRefused()
    fill_refused(message, 4, refusal_of(BadRequest("too long", field="accept.task_id"), 2, "a b"))
    assert (message.frame_number, message.item_index, message.task_id) == (4, 2, "")
    assert (message.reason, message.message) == (error_pb2.ERROR_REASON_INVALID_FIELD, "accept.task_id: too long")
    fill_refused(message, 4, items.Refusal(0, "SURPRISE", "?"))
    assert message.reason == error_pb2.ERROR_REASON_INTERNAL
