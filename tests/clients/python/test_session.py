"""A session is kept over streams, servers and repeats."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import grpc
import pytest
from agenthive.access import Access
from agenthive.errors import PermissionDenied, ProtocolViolation, SessionFenced, Unauthenticated, Unavailable
from agenthive.service_config import CHANNEL_OPTIONS
from agenthive.session import Session, Timing
from agenthive.v1 import worker_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.clients.python.conftest import Server, Stream, WorkerHive


class Recorder:
    """A host that writes down what it is told."""

    def __init__(self) -> None:
        self.leases: list[tuple[str, int]] = []
        self.welcomes: asyncio.Queue[pb.Welcome] = asyncio.Queue()
        self.items: asyncio.Queue[pb.ControlItem] = asyncio.Queue()
        self.lost: asyncio.Queue[float] = asyncio.Queue()

    def hello(self) -> pb.Hello:
        leases = [pb.HeldLease(task_id=task_id, lease_epoch=epoch) for task_id, epoch in self.leases]
        return pb.Hello(agents=[pb.HostedAgent(agent_id="a-1")], leases=leases)

    def heartbeat(self) -> pb.Heartbeat:
        return pb.Heartbeat(tasks=[pb.TaskBeat(task_id=task_id, lease_epoch=epoch) for task_id, epoch in self.leases])

    async def welcome(self, welcome: pb.Welcome) -> None:
        self.welcomes.put_nowait(welcome)

    async def control(self, item: pb.ControlItem) -> None:
        self.items.put_nowait(item)

    async def contact_lost(self, seconds: float) -> None:
        self.lost.put_nowait(seconds)


@asynccontextmanager
async def running(session: Session) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(session.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def accept(task_id: str, epoch: int = 1) -> pb.WorkerItem:
    return pb.WorkerItem(accept=pb.TaskAccept(task_id=task_id, lease_epoch=epoch))


def read(message_id: str) -> pb.WorkerItem:
    return pb.WorkerItem(messages_read=pb.MessagesRead(agent_id="a-1", message_ids=[message_id]))


def result(task_id: str, epoch: int = 1) -> pb.WorkerItem:
    return pb.WorkerItem(result=pb.TaskResult(task_id=task_id, lease_epoch=epoch, canceled="x"))


@pytest.fixture
def host() -> Recorder:
    return Recorder()


@pytest.fixture
def session(server: Server, hive: WorkerHive, host: Recorder, quick: Timing) -> Session:
    return Session(Access(server.target, "n", token="t"), host, timing=quick)


async def test_the_hello_comes_first_and_frames_are_numbered_from_one(session: Session, hive: WorkerHive) -> None:
    session.send(read("m-1"))
    async with running(session):
        stream = await hive.stream()
        assert [each.agent_id for each in stream.hello.agents] == ["a-1"]
        assert stream.metadata["agenthive-namespace"] == "n"
        assert stream.metadata["authorization"] == "Bearer t"
        assert stream.frames.empty()  # nothing before the Welcome
        stream.welcome()
        first = await stream.frame()
        session.send(accept("t-2"))
        second = await stream.frame()
    assert [first.frame_number, second.frame_number] == [1, 2]
    assert first.items[0] == read("m-1")
    assert second.acknowledged_frame == 1  # the Welcome's frame


async def test_items_that_wait_share_a_frame(session: Session, hive: WorkerHive) -> None:
    for number in range(1500):
        session.send(read(f"m-{number}"))
    async with running(session):
        stream = await hive.stream()
        stream.welcome()
        frames = [await stream.frame(), await stream.frame()]
    assert [len(frame.items) for frame in frames] == [1024, 476]


async def test_what_was_not_acknowledged_is_sent_again_with_the_same_numbers(
    session: Session, server: Server, hive: WorkerHive, host: Recorder
) -> None:
    async with running(session):
        stream = await hive.stream()
        stream.welcome("s-7")
        await host.welcomes.get()
        for name in ("t-1", "t-2", "t-3"):
            session.send(accept(name))
            await stream.frame()
        stream.send(acknowledged=1)
        stream.send(pb.ControlItem(cancel=pb.TaskCancel(task_id="t-1")))
        await host.items.get()
        await server.kill()
        session.send(accept("t-4"))
        await server.start()
        again = await hive.stream()
        assert again.hello.session_id == "s-7"
        assert again.hello.acknowledged_frame == 3
        again.welcome("s-7", resumed=True, acknowledged=2, number=4)
        frames = [await again.frame(), await again.frame()]
        assert [frame.frame_number for frame in frames] == [3, 4]
        assert [frame.items[0].accept.task_id for frame in frames] == ["t-3", "t-4"]
        assert frames[0].acknowledged_frame == 4


async def test_a_new_session_carries_over_only_what_is_about_valid_leases(
    session: Session, hive: WorkerHive, host: Recorder
) -> None:
    host.leases = [("held", 2)]
    async with running(session):
        stream = await hive.stream()
        stream.welcome("s-1")
        await host.welcomes.get()
        session.send(result("done", 3))
        session.send(result("gone", 4))
        session.send(read("m"))
        await stream.frame()
        stream.abort(grpc.StatusCode.UNAVAILABLE, "DRAINING")
        second = await hive.stream()
        # Results that are on their way are still held, for the server.
        assert {(each.task_id, each.lease_epoch) for each in second.hello.leases} == {
            ("held", 2),
            ("done", 3),
            ("gone", 4),
        }
        second.abort(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
        third = await hive.stream()
        assert third.hello.session_id == ""
        assert third.hello.acknowledged_frame == 0
        third.welcome("s-2", valid=(("done", 3),))
        frame = await third.frame()
        assert frame.frame_number == 1
        assert [each.WhichOneof("item") for each in frame.items] == ["result", "messages_read"]
        assert frame.items[0].result.task_id == "done"
    assert session.session_id == "s-2"


BREAKS: tuple[Callable[[Stream], None], ...] = (
    lambda stream: stream.abort(grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    lambda stream: stream.send(pb.ControlItem(reconnect=pb.Reconnect())),
    lambda stream: stream.end(),
)


@pytest.mark.parametrize("seed", range(1, 6))
async def test_every_item_arrives_once_and_in_order_however_often_the_stream_breaks(
    session: Session, hive: WorkerHive, seed: int
) -> None:
    random = Random(seed)
    sent = [read(f"m-{number}") for number in range(200)]
    dealt_with: list[pb.WorkerItem] = []
    last = 0

    async def send() -> None:
        for item in sent:
            session.send(item)
            if random.random() < 0.5:
                await asyncio.sleep(0)

    async with running(session):
        sending = asyncio.ensure_future(send())
        while len(dealt_with) < len(sent):
            stream = await hive.stream()
            stream.welcome("s-1", resumed=bool(stream.hello.session_id), acknowledged=last)
            for _ in range(random.randint(1, 4)):
                if len(dealt_with) == len(sent):
                    break
                frame = await stream.frame()
                assert frame.frame_number <= last + 1
                if frame.frame_number == last + 1:
                    dealt_with += frame.items
                    last = frame.frame_number
                if random.random() < 0.5:
                    stream.send(acknowledged=last)
            random.choice(BREAKS)(stream)
        await sending
    assert dealt_with == sent


async def test_a_reconnect_goes_on_with_the_session_and_asks_the_host_nothing(
    session: Session, hive: WorkerHive, host: Recorder
) -> None:
    async with running(session):
        stream = await hive.stream()
        stream.welcome("s-1")
        stream.send(pb.ControlItem(reconnect=pb.Reconnect()))
        again = await hive.stream()
        assert again.hello.session_id == "s-1"
        again.welcome("s-1", resumed=True)
        await host.welcomes.get()
        await host.welcomes.get()
        assert host.items.empty()
        assert session.connected
        assert session.lost_for == 0.0


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_FENCED", SessionFenced),
        (grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL_VIOLATION", ProtocolViolation),
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", PermissionDenied),
    ],
)
async def test_what_repeating_would_not_cure_ends_the_session(
    session: Session, hive: WorkerHive, code: grpc.StatusCode, reason: str, error: type[Exception]
) -> None:
    async with running(session) as run:
        stream = await hive.stream()
        stream.welcome()
        stream.abort(code, reason)
        with pytest.raises(error):
            await run


async def test_heartbeats_come_by_the_interval_and_early_when_asked(
    session: Session, hive: WorkerHive, host: Recorder
) -> None:
    host.leases = [("t-1", 5)]
    async with running(session):
        stream = await hive.stream()
        stream.welcome(heartbeat_interval=0.01)
        beat = await stream.item("heartbeat")
        assert beat.heartbeat.tasks[0].lease_epoch == 5
        await stream.item("heartbeat")


async def test_beat_now_does_not_wait_for_the_interval(session: Session, hive: WorkerHive) -> None:
    async with running(session):
        stream = await hive.stream()
        stream.welcome(heartbeat_interval=3600)
        session.beat_now()
        await stream.item("heartbeat")


async def test_a_silent_server_is_left(session: Session, hive: WorkerHive) -> None:
    async with running(session):
        stream = await hive.stream()
        stream.welcome("s-1", heartbeat_interval=0.01)
        again = await hive.stream()
        assert again.hello.session_id == "s-1"
        await stream.over.wait()


async def test_contact_lost_is_told_once_for_each_loss(
    server: Server, hive: WorkerHive, host: Recorder, quick: Timing
) -> None:
    session = Session(server.target, host, timing=replace(quick, reconnect_grace=0.075))
    async with running(session):
        stream = await hive.stream()
        stream.welcome()
        await host.welcomes.get()
        assert (
            await host.lost.get() >= 0.05
        )  # well before the grace is over; silence counts, although the stream stands
        stream.send(pb.ControlItem(drain=pb.ServerDrain()))
        await host.items.get()
        await server.kill()
        assert await host.lost.get() >= 0.05
        assert session.lost_for >= 0.05
        assert not session.connected
    assert host.lost.empty()


async def test_flushed_waits_for_the_acknowledgement(session: Session, hive: WorkerHive, host: Recorder) -> None:
    async with running(session):
        stream = await hive.stream()
        stream.welcome()
        await host.welcomes.get()
        session.send(accept("t-1"))
        flushed = asyncio.ensure_future(session.flushed())
        frame = await stream.frame()
        assert not flushed.done()
        stream.send(acknowledged=frame.frame_number)
        await flushed


async def test_flushed_fails_when_the_session_ends_first(session: Session, hive: WorkerHive, host: Recorder) -> None:
    async with running(session) as run:
        stream = await hive.stream()
        stream.welcome()
        await host.welcomes.get()
        session.send(accept("t-1"))
        await stream.frame()
        flushed = asyncio.ensure_future(session.flushed())
        stream.abort(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_FENCED")
        with pytest.raises(SessionFenced):
            await run
        with pytest.raises(Unavailable):
            await flushed


async def test_drain_ends_with_the_goodbye_of_the_server(session: Session, hive: WorkerHive) -> None:
    async with running(session) as run:
        stream = await hive.stream()
        stream.welcome()
        await session.drain()
        await stream.item("drain")
        stream.send(pb.ControlItem(goodbye=pb.Goodbye()))
        await run


async def test_a_new_session_is_told_to_drain_again(session: Session, hive: WorkerHive) -> None:
    async with running(session):
        stream = await hive.stream()
        stream.welcome()
        await session.drain()
        await stream.item("drain")
        stream.end()
        second = await hive.stream()
        second.abort(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
        third = await hive.stream()
        third.welcome("s-2")
        await third.item("drain")


async def test_close_says_goodbye_and_waits_for_the_acknowledgement(
    session: Session, hive: WorkerHive, host: Recorder
) -> None:
    async with running(session) as run:
        stream = await hive.stream()
        stream.welcome()
        await host.welcomes.get()
        session.send(result("t-1"))
        closing = asyncio.ensure_future(session.close("done"))
        goodbye = await stream.item("goodbye", acknowledge=False)
        assert goodbye.goodbye.reason == "done"
        assert not closing.done()
        stream.send(acknowledged=stream.received[-1].frame_number)
        await closing
        await run


async def test_close_without_a_server_is_bounded(
    session: Session, server: Server, hive: WorkerHive, quick: Timing
) -> None:
    quick.close_timeout = 0.01
    async with running(session) as run:
        (await hive.stream()).welcome()
        await server.kill()
        await session.close()
        await run


async def test_close_before_any_contact_ends_at_once(session: Session, server: Server) -> None:
    await server.kill()
    async with running(session) as run:
        await session.close()
        await run


async def test_a_refused_item_can_be_looked_up(server: Server, hive: WorkerHive, quick: Timing) -> None:
    found: asyncio.Queue[pb.WorkerItem | None] = asyncio.Queue()

    class Asking(Recorder):
        async def control(self, item: pb.ControlItem) -> None:
            found.put_nowait(asking.refused_item(item.refused))

    host = Asking()
    asking = Session(server.target, host, timing=quick)
    async with running(asking):
        stream = await hive.stream()
        stream.welcome()
        await host.welcomes.get()
        asking.send(accept("t-1"))
        asking.send(accept("t-2"))
        frame = await stream.frame()
        refused = pb.ItemRefused(frame_number=frame.frame_number, item_index=1)
        stream.send(pb.ControlItem(refused=refused), acknowledged=frame.frame_number)
        assert await found.get() == accept("t-2")


async def test_what_the_host_raises_ends_the_session(server: Server, hive: WorkerHive, quick: Timing) -> None:
    class Broken(Recorder):
        async def control(self, item: pb.ControlItem) -> None:
            raise LookupError("host")

    session = Session(server.target, Broken(), timing=quick)
    async with running(session) as run:
        stream = await hive.stream()
        stream.welcome()
        stream.send(pb.ControlItem(drain=pb.ServerDrain()))
        with pytest.raises(LookupError):
            await run


async def test_what_is_earned_by_joining_is_shown_instead_of_the_join_token_until_it_is_refused(
    server: Server, hive: WorkerHive, host: Recorder, quick: Timing
) -> None:
    hello = pb.Hello(join_token="once")
    host.hello = lambda: hello  # type: ignore[method-assign]  # this host joins by a token
    async with running(Session(server.target, host, timing=quick)):
        first = await hive.stream()
        assert (first.hello.join_token, first.hello.credential) == ("once", "")
        first.send(pb.ControlItem(welcome=pb.Welcome(session_id="s-1", credential="earned")))
        await host.welcomes.get()
        first.end()
        second = await hive.stream()
        assert (second.hello.join_token, second.hello.credential) == ("", "earned")
        second.abort(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        third = await hive.stream()
        assert (third.hello.join_token, third.hello.credential) == ("once", "")


async def test_a_refused_credential_without_a_join_token_ends_it(session: Session, hive: WorkerHive) -> None:
    session._credential.earn("revoked")
    running_session = asyncio.ensure_future(session.run())
    stream = await hive.stream()
    assert stream.hello.credential == "revoked"
    stream.abort(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    with pytest.raises(Unauthenticated):
        await running_session


class Impatient(Access):
    """A way to nowhere that rings when it was tried three times."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.tries = 0
        self.tried = asyncio.Event()

    def open_channel(self, options: Sequence[tuple[str, str | int]] = CHANNEL_OPTIONS) -> grpc.aio.Channel:
        self.tries += 1
        if self.tries == 3:
            self.tried.set()
        return super().open_channel(options)


async def test_why_there_is_no_connection_is_told_once(
    host: Recorder, quick: Timing, caplog: pytest.LogCaptureFixture
) -> None:
    access = Impatient()
    with caplog.at_level(logging.WARNING):
        async with running(Session(access, host, timing=quick)):
            await access.tried.wait()
    told = "no session with 127.0.0.1:1: Connection refused; trying again"
    assert [each.message for each in caplog.records] == [told]
