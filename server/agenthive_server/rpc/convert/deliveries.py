"""What the server says on a session, as messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agenthive.v1 import error_pb2
from agenthive.v1 import worker_service_pb2 as pb

from agenthive_server.kernel import session_items as items
from agenthive_server.kernel.errors import KernelError
from agenthive_server.rpc import validate
from agenthive_server.rpc.status import CODES, cut

from . import agents, tasks
from .messages import fill_message
from .values import fill_payload, set_span

CANCEL_GRACE: Final = 10.0
"""Seconds a cancelled attempt has to end by itself."""


def fill_welcome(message: pb.Welcome, welcome: items.Welcome, acknowledged: int) -> None:
    """Write the answer to a hello."""
    message.session_id = welcome.session_id
    message.session_epoch = welcome.epoch
    message.resumed = welcome.resumed
    for lease in welcome.valid_leases:
        message.valid_leases.add(task_id=lease.task_id, lease_epoch=lease.epoch)
    set_span(message.heartbeat_interval, welcome.heartbeat_interval)
    set_span(message.reconnect_grace, welcome.reconnect_grace)
    set_span(message.accept_timeout, welcome.accept_timeout)
    message.credential = welcome.credential
    message.acknowledged_frame = acknowledged


def fill_refused(message: pb.ItemRefused, frame: int, refusal: items.Refusal) -> None:
    """Write that an item was not applied."""
    message.frame_number = frame
    message.item_index = refusal.index
    reason = refusal.reason if refusal.reason in CODES else "INTERNAL"
    message.reason = error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    message.message = cut(refusal.message)
    message.task_id = refusal.task_id[:128]


def refusal_of(error: KernelError, index: int, task_id: str) -> items.Refusal:
    """Return the refusal of an item that does not even parse."""
    text = f"{error.field}: {error.message}" if error.field else error.message
    return items.Refusal(index, error.reason, text, task_id if validate.is_id(task_id) else "")


def fill_assignment(item: pb.ControlItem, said: items.Assign, now: float) -> None:
    """Write a lease; `now` tells how much time of the attempt is left."""
    message, task = item.assignment, said.task
    lease = task.lease
    message.task_id = task.id
    message.namespace = task.namespace
    if lease is not None:
        message.agent_id = lease.agent_id
        message.lease_epoch = lease.epoch
    message.attempt = task.attempt
    tasks.fill_spec(message.spec, task.spec)
    if said.checkpoint:
        message.checkpoint = said.checkpoint
    left = task.spec.timeouts.start_to_close
    if lease is not None and lease.close_deadline:
        left = max(0.0, lease.close_deadline - now)
    set_span(message.start_to_close_timeout, left)
    for answer in task.answers:
        fill_payload(message.answers.add(), answer)
    if said.repeated:
        message.repeated = True


def _cancel(item: pb.ControlItem, said: items.Cancel) -> None:
    message = item.cancel
    message.task_id, message.lease_epoch, message.reason = said.task_id, said.epoch, said.reason
    set_span(message.grace, CANCEL_GRACE)


def _revoke(item: pb.ControlItem, said: items.Revoke) -> None:
    message = item.lease_revoked
    message.task_id, message.lease_epoch, message.reason = said.task_id, said.epoch, said.reason


def _pause(item: pb.ControlItem, said: items.Pause) -> None:
    message = item.pause
    message.task_id, message.lease_epoch, message.resume = said.task_id, said.epoch, said.resume


def _answer(item: pb.ControlItem, said: items.Answer) -> None:
    item.answer.task_id, item.answer.lease_epoch = said.task_id, said.epoch
    fill_payload(item.answer.answer, said.answer)


def _start(item: pb.ControlItem, said: items.Start) -> None:
    message, agent = item.start_agent, said.agent
    message.agent_id, message.namespace = agent.id, agent.namespace
    agents.fill_spec(message.spec, agent.spec)
    message.start_epoch = agent.start_epoch
    message.wake = said.wake


def _stop(item: pb.ControlItem, said: items.Stop) -> None:
    message = item.stop_agent
    message.agent_id, message.sleep, message.reason = said.agent_id, said.sleep, said.reason
    set_span(message.grace, said.grace)


def _mail(item: pb.ControlItem, said: items.Mail) -> None:
    item.messages.agent_id = said.agent_id
    for record in said.messages:
        fill_message(item.messages.messages.add(), record)


def _reconnect(item: pb.ControlItem, said: items.Reconnect) -> None:
    set_span(item.reconnect.delay, said.delay)


def _drained(item: pb.ControlItem, said: items.Drained) -> None:
    item.drain.reason = said.reason


def _bye(item: pb.ControlItem, said: items.Bye) -> None:
    item.goodbye.reason = said.reason


_FILL: Final[dict[type, Callable[[pb.ControlItem, Any], None]]] = {
    items.Cancel: _cancel,
    items.Revoke: _revoke,
    items.Pause: _pause,
    items.Answer: _answer,
    items.Start: _start,
    items.Stop: _stop,
    items.Mail: _mail,
    items.Reconnect: _reconnect,
    items.Drained: _drained,
    items.Bye: _bye,
}


def fill_delivery(item: pb.ControlItem, said: items.Delivery, now: float) -> None:
    """Write one thing the server says."""
    if isinstance(said, items.Assign):
        fill_assignment(item, said, now)
    else:
        _FILL[type(said)](item, said)
