"""`Worker`: what people write agents with. One process, one agent, a handler for each type of task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Final, TypeVar

from agenthive.access import DEFAULT_TARGET, Access
from agenthive.credential import Credential
from agenthive.errors import HiveError
from agenthive.session import Session
from agenthive.v1 import agent_pb2
from agenthive.v1 import worker_service_pb2 as pb
from agenthive.waiting import first_of
from agenthive.worker_host import WorkerHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Unpack

    from agenthive.access import AccessOptions
    from agenthive.execution import Handler
    from agenthive.session import Timing
    from agenthive.worker_host import MessageHandler

    H = TypeVar("H", bound=Handler)
    M = TypeVar("M", bound=MessageHandler)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """An agent: registers itself, takes tasks, keeps its leases alive, survives restarts of the server.

    Register handlers with `task`, then `main()`, or `run()` inside an event loop of your own. A handler takes a
    TaskContext; what it returns is the result (anything `payload()` takes). It may be a coroutine function, which is
    cancelled when its task is, or a plain function, which runs in a thread and has to look at `task.cancelled`. An
    exception fails the attempt: TOOL with the type's name as reason, or as a TaskFailed says. Delivery is at least
    once; `run()` may be called again after it has returned.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        agent_id: str,
        role: str = "",
        capabilities: Iterable[str] = (),
        slots: int = 1,
        labels: Mapping[str, str] | None = None,
        display_name: str = "",
        namespace: str = "default",
        join_token: str = "",
        credential: str = "",
        credential_file: str | os.PathLike[str] | None = None,
        spec: agent_pb2.AgentSpec | None = None,
        stop_grace: float = 10.0,
        timing: Timing | None = None,
        **access: Unpack[AccessOptions],
    ) -> None:
        """Keep the settings; nothing is connected before `run()`.

        The agent is registered, when it does not exist yet, as `spec` with the fields given here laid over it.
        `stop_grace`: seconds held tasks may take to finish in `stop()`. A `join_token` lets it in once; what it earns
        by that is kept in `credential_file`, and without one forgotten when the process ends. A `credential` it is
        given is one it has earned before; what the file holds is newer. `access`: token, authority, certificate and
        key, see AccessOptions. Raises AccessError, a ValueError, when they make no sense or a file cannot be read.
        """
        self.agent_id = agent_id
        self.stop_grace = stop_grace
        self._access = Access(target, namespace, **access)
        self._credential = Credential(credential_file)
        self._credential.value = self._credential.value or credential
        if join_token or self._credential.value:
            self._access.require_private("a join token or credential")
        self._timing = timing
        self._handlers: dict[str, Handler] = {}
        self._message_handler: MessageHandler | None = None
        self._host: WorkerHost | None = None
        self._hello = pb.Hello(join_token=join_token, software=_software(), display_name=display_name)
        made = agent_pb2.AgentSpec()
        if spec is not None:
            made.CopyFrom(spec)
        made.MergeFrom(
            agent_pb2.AgentSpec(
                display_name=display_name, role=role, capabilities=capabilities, slots=slots, labels=labels
            )
        )
        self._hello.agents.add(agent_id=agent_id, spec=made)

    def task(self, type: str) -> Callable[[H], H]:  # noqa: A002 - the contract's word
        """Register the handler of a type of task; use it as a decorator. Raises ValueError for a second one."""

        def register(handler: H) -> H:
            if type in self._handlers:
                raise ValueError(f"there is a handler for {type!r} already")
            self._handlers[type] = handler
            return handler

        return register

    def message(self, handler: M) -> M:
        """Register the coroutine function that takes messages to the agent; without one they stay unread.

        A message is marked as read when the handler has returned. Messages about a task go to its `steering`.
        """
        self._message_handler = handler
        return handler

    async def run(self) -> None:
        """Work until the agent is stopped, or `stop()`; connects again by itself, for ever.

        Raises SessionFenced when another process has taken over as this agent, and any other HiveError that
        repeating would not cure. Cancelled, it cancels all handlers and leaves without a word.
        """
        host = WorkerHost(self._hello, self._handlers, self._message_handler, self.stop_grace)
        host.session = Session(self._access, host, credential=self._credential, timing=self._timing)
        self._host = host
        try:
            await first_of(host.session.run(), host.failure())
        finally:
            self._host = None
            await host.clear()

    async def stop(self, grace: float | None = None) -> None:
        """Take nothing new, let held tasks finish for `grace` seconds, hand back the rest, end `run()`.

        Without a `grace` it is `stop_grace`; a second call with a shorter one shortens the first. The agent itself is
        not stopped for good: another process may go on as it.
        """
        if (host := self._host) is not None:
            await host.session.drain()
            await host.drain(self.stop_grace if grace is None else grace, "the worker stops")
            await host.session.close("the worker stops")

    def main(self) -> None:
        """Run until the agent is stopped, or SIGTERM or SIGINT, which are `stop()`; a second one hands back at once.

        What ends the worker against its will, for example another process taking over as this agent, is a sentence on
        stderr and exit code 1.
        """
        try:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(self._main())
        except HiveError as error:
            sys.exit(f"{self.agent_id}: {error}")

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[None] = asyncio.Queue()
        for number in _SIGNALS:
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends it without ceremony
                loop.add_signal_handler(number, received.put_nowait, None)
        stopping = asyncio.ensure_future(self._stop_when_told(received))
        try:
            await self.run()
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            for number in _SIGNALS:
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(number)

    async def _stop_when_told(self, received: asyncio.Queue[None]) -> None:
        await received.get()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.stop())
            await received.get()
            group.create_task(self.stop(0.0))


def _software() -> str:
    try:
        return f"agenthive-python/{metadata.version('agenthive')}"
    except metadata.PackageNotFoundError:
        return "agenthive-python"
