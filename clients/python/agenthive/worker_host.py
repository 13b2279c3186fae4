"""The agent of a `Worker`: stops, sleeps and wakes as told, reads its messages, and passes leases on to its desk."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from agenthive.desk import Desk
from agenthive.outbox import Lease
from agenthive.v1 import agent_pb2
from agenthive.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agenthive.execution import Handler
    from agenthive.session import Session
    from agenthive.v1.agent_pb2 import AgentState
    from agenthive.v1.message_pb2 import Message

    MessageHandler = Callable[[Message], Awaitable[None]]

_NEWS_INTERVAL: Final = 1.0  # seconds between heartbeats sent early because there is news
_REMEMBERED: Final = 1024  # messages that came

log = logging.getLogger(__name__)


class WorkerHost:
    """The host of a worker's session."""

    session: Session
    """Must be set before the session runs."""

    def __init__(
        self,
        hello: pb.Hello,
        handlers: Mapping[str, Handler],
        message_handler: MessageHandler | None,
        stop_grace: float,
    ) -> None:
        """Speak for the one agent of `hello`; `stop_grace` in seconds counts where the server names no grace."""
        self._hello = hello
        self._agent_id = hello.agents[0].agent_id
        self._stop_grace = stop_grace
        self._message_handler = message_handler
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._seen: dict[str, None] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping: asyncio.Task[None] | None = None
        self._for_good = False
        self._draining = False
        self._asleep = False
        self._start_epoch = 0
        self._next_news = 0.0
        self._news_timer: asyncio.TimerHandle | None = None
        self.desk = Desk(hello.agents[0].spec.slots or 1, handlers, self._send, self._news)
        if message_handler is not None:
            self._own(asyncio.ensure_future(self._read_messages(message_handler)))

    def hello(self) -> pb.Hello:
        """Return the agent and the leases held."""
        held = [pb.HeldLease(task_id=each.task_id, lease_epoch=each.epoch) for each in self.desk.held()]
        del self._hello.leases[:]
        self._hello.leases.extend(held)
        return self._hello

    def heartbeat(self) -> pb.Heartbeat:
        """Return the leases held, each with its news."""
        if self._news_timer is not None:
            self._news_timer.cancel()
            self._news_timer = None
        self._next_news = asyncio.get_running_loop().time() + _NEWS_INTERVAL
        return pb.Heartbeat(tasks=self.desk.beats())

    async def welcome(self, welcome: pb.Welcome) -> None:
        """Stop what is not valid any more; tell a new session that the agent sleeps."""
        self.desk.keep_only({Lease(each.task_id, each.lease_epoch) for each in welcome.valid_leases})
        if self._asleep and not welcome.resumed:
            self._tell(agent_pb2.AGENT_STATE_SLEEPING)

    async def contact_lost(self, seconds: float) -> None:
        """Stop exclusive tasks."""
        self.desk.revoke_exclusive()

    async def control(self, item: pb.ControlItem) -> None:
        """Take one item; what takes time goes on in the background."""
        match item.WhichOneof("item"):
            case "assignment":
                self.desk.assigned(item.assignment)
            case "cancel":
                self.desk.canceled(item.cancel)
            case "lease_revoked":
                self.desk.revoked(item.lease_revoked)
            case "pause":
                self.desk.paused(item.pause)
            case "answer":
                self.desk.answered(item.answer)
            case "refused":
                self.desk.refused(item.refused, self.session.refused_item(item.refused))
            case _:
                self._about_agent(item)

    async def failure(self) -> None:
        """Wait for ever, or raise what went wrong in the background."""
        await self._failure

    async def drain(self, grace: float, reason: str) -> None:
        """Take nothing new, let held tasks finish for `grace` seconds, hand back the rest."""
        self._draining = True
        self._set_taking()
        await self.desk.finish(grace, reason)

    async def clear(self) -> None:
        """End everything that still runs and wait for it."""
        if self._news_timer is not None:
            self._news_timer.cancel()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.desk.clear()
        self._failure.cancel()

    # -- the agent

    def _about_agent(self, item: pb.ControlItem) -> None:
        match item.WhichOneof("item"):
            case "stop_agent" if item.stop_agent.agent_id == self._agent_id:
                self._for_good = self._for_good or not item.stop_agent.sleep
                if self._stopping is None or self._stopping.done():
                    self._stopping = asyncio.ensure_future(self._stop(item.stop_agent))
                    self._own(self._stopping)
            case "start_agent" if item.start_agent.agent_id == self._agent_id:
                self._own(asyncio.ensure_future(self._wake(item.start_agent)))
            case "messages":
                for message in item.messages.messages:
                    self._deliver(message)
            case _:
                pass  # nothing to do: a server that drains hands out nothing new by itself

    async def _stop(self, stop: pb.StopAgent) -> None:
        self._asleep = True
        self._set_taking()
        grace = stop.grace.ToNanoseconds() / 1e9 if stop.HasField("grace") else self._stop_grace
        await self.desk.finish(grace, stop.reason or "the agent stops")
        if self._for_good:
            self._tell(agent_pb2.AGENT_STATE_STOPPED, stop.reason)
            await self.session.close("the agent was stopped")
        else:
            self._tell(agent_pb2.AGENT_STATE_SLEEPING, stop.reason)

    async def _wake(self, start: pb.StartAgent) -> None:
        if self._stopping is not None:
            await asyncio.wait({self._stopping})
        if self._for_good or 0 < start.start_epoch <= self._start_epoch:
            return
        self._start_epoch = start.start_epoch
        self._asleep = False
        self._set_taking()
        self._tell(agent_pb2.AGENT_STATE_IDLE)

    def _set_taking(self) -> None:
        self.desk.taking = not (self._draining or self._asleep)

    def _tell(self, state: AgentState.ValueType, reason: str = "") -> None:
        report = pb.AgentReport(agent_id=self._agent_id, state=state, reason=reason)
        self._send(pb.WorkerItem(agent_report=report))

    # -- messages

    def _deliver(self, message: Message) -> None:
        if message.task_id:
            if context := self.desk.context_of(message.task_id):
                context.steering.put(message)
        elif message.message_id not in self._seen:
            self._seen[message.message_id] = None
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
            self._messages.put_nowait(message)

    async def _read_messages(self, handler: MessageHandler) -> None:
        while True:
            message = await self._messages.get()
            try:
                await handler(message)
            except Exception:
                log.exception("message handler failed: message=%s", message.message_id)
            else:
                read = pb.MessagesRead(agent_id=self._agent_id, message_ids=[message.message_id])
                self._send(pb.WorkerItem(messages_read=read))

    # -- inside

    def _send(self, item: pb.WorkerItem) -> None:
        self.session.send(item)

    def _news(self) -> None:
        if self._news_timer is None:
            self._news_timer = asyncio.get_running_loop().call_at(self._next_news, self.session.beat_now)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)
