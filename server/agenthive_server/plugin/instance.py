"""One plugin that is open: entered and left in a task of its own, its acts behind their walls."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from google.protobuf.descriptor import ServiceDescriptor

from agenthive_server.kernel.assign import Scorer
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError, Refused
from agenthive_server.kernel.events import EventType, Severity
from agenthive_server.kernel.health import Reading, Status
from agenthive_server.kernel.ports import NewId
from agenthive_server.kernel.replicas import Role

from . import tasks
from .bell import Bell
from .buckets import Buckets
from .caller import Deal, Tell
from .calls import Call, Stage
from .cell import OPEN, Cell
from .context import PluginContext, State, VitalsReading
from .driving import driven
from .isolation import Hooked, guard_handler, guard_score
from .metrics import PluginMetrics
from .outside import outside
from .patience import FAILURES
from .ports import Verbs
from .registration import Hooks, Plugin, Registration
from .seat import Seat
from .services import GuardedMethods, check_services
from .walls import Guarded

HOOKS: Final = ("before_spawn", "before_delegate", "before_complete", "before_join")
POLL: Final = 0.005
"""Seconds between two looks whether the calls in flight have left."""

_log = logging.getLogger(__name__)


class Server(Protocol):
    """What the host gives every plugin of the server."""

    clock: Clock
    new_id: NewId

    def verbs(self, name: str) -> Verbs:
        """Return the verbs of a plugin."""

    def state(self, name: str) -> State:
        """Return the state of a plugin."""

    def buckets(self, name: str) -> Buckets:
        """Return the token buckets of a plugin."""

    def vitals(self) -> VitalsReading:
        """Return how the system is."""

    def data_dir(self, name: str) -> Path:
        """Return the folder of a plugin, which is there then."""

    def bell(self, kinds: Collection[EventType]) -> Bell:
        """Return a bell that rings when this server hears of an event of these types."""

    def open_calls(self) -> Collection[Call]:
        """Return the calls that are being served, but for brief ones."""

    def role(self, name: str) -> Role:
        """Return the role in which what runs of a plugin on one replica at a time runs."""

    async def publish(
        self, name: str, kind: str, text: str, severity: Severity, subject: str, attributes: Mapping[str, str]
    ) -> None:
        """Write an event PLUGIN_REPORTED."""


class Instance:
    """An open plugin, with its acts as the server uses them. `open` once, `close` once."""

    def __init__(
        self, registration: Registration[Any], config: Any, cell: Cell, metrics: PluginMetrics, server: Server
    ) -> None:
        self.name = registration.name
        self.registration = registration
        self.config = config
        self.cell = cell
        self._metrics = metrics
        self.reading = Reading()
        self.plugin = Plugin()
        self.interceptors: tuple[Guarded, ...] = ()
        self.hooks: dict[str, Hooked[Any]] = {}
        self.score: Scorer | None = None
        self.handlers: dict[EventType, Deal] = {}
        self.gap: Tell | None = None
        self.methods: tuple[tuple[ServiceDescriptor, GuardedMethods], ...] = ()
        self._server = server
        self.closed = False
        # Once it has been started.
        self.seat: Seat | None = None
        self._life: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._loops: list[asyncio.Task[Any]] = []
        cell.roots = _roots(registration)

    # Opening and closing --------------------------------------------------------------------------------------------

    async def open(self, seconds: float) -> None:
        """Start the plugin. Raises `Refused` (PLUGIN_CANNOT_OPEN) with a sentence that says why it cannot be."""
        opened: asyncio.Future[Plugin] = asyncio.get_running_loop().create_future()
        opening = self.cell.act(OPEN, "open")
        context = self._context()
        self._life = asyncio.create_task(
            driven(self._live(context, opened), self.cell.running, opening), name=f"{self.name}/open"
        )
        try:
            waited: set[asyncio.Future[Any]] = {self._life, opened}
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                self._life.cancel("the plugin does not open")
                raise self._cannot(f"it did not open within {seconds:g} seconds")
            self.plugin = opened.result()
            self._take_acts()
        except BaseException as error:
            await self.close(0.0)
            if isinstance(error, FAILURES) and not isinstance(error, KernelError):
                _log.warning("plugin %s cannot be opened", self.name, exc_info=error)
                raise self._cannot(f"{type(error).__name__}: {error}") from None
            raise

    async def _live(self, context: PluginContext[Any], opened: asyncio.Future[Plugin]) -> None:
        try:
            async with self.registration.open(context) as plugin:
                opened.set_result(plugin)
                await self._leave.wait()
        except asyncio.CancelledError:
            opened.cancel()
            raise
        except FAILURES as error:
            if not opened.done():
                opened.set_exception(error)
            elif self._leave.is_set():
                _log.exception("plugin %s failed on its way out", self.name)
            else:
                self.cell.tell("open", f"ended by itself: {type(error).__name__}", off=True)
                # A CLOSED one stays in its place, and refuses.
                self.cell.end()

    def start(self) -> Seat:
        """Start its loops; returns what its handlers may run under as well."""
        clock = self._server.clock
        self.seat = seat = Seat(self._server.role(self.name), clock)
        if self.plugin.takes_over is not None:
            seat.prepare(self.cell.act("TASK", "takes over"), self.plugin.takes_over)
        for background in self.plugin.tasks:
            act = self.cell.act("TASK", background.name)
            self._loops.append(tasks.start_loop(background, act, clock, None if background.everywhere else seat))
        return seat

    def stop_loops(self) -> None:
        """Let its loops end; another instance takes their place."""
        for loop in self._loops:
            loop.cancel("the plugin is switched off")

    async def close(self, grace: float, end: float = 5.0) -> None:
        """Stop the plugin: calls in flight finish within `grace` seconds, then all it has is ended, and it is left.

        What does not end within `end` seconds is left behind, and logged.
        """
        self.closed = True
        self.stop_loops()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        while self.cell.in_flight > 0 and self.cell.live and loop.time() < until:  # noqa: ASYNC110 - see `Cell.in_flight`
            await asyncio.sleep(POLL)
        self.cell.end()
        if self.cell.tasks or self.cell.calls:
            await tasks.cancel_all(self.cell, end)
        life = self._life
        if life is None:
            return
        self._leave.set()
        done, _ = await asyncio.wait({life}, timeout=end)
        if not done:
            life.cancel("the plugin does not stop")
            await asyncio.wait({life}, timeout=end)
        await tasks.cancel_all(self.cell, end)

    # Its acts -------------------------------------------------------------------------------------------------------

    def _take_acts(self) -> None:
        """Put the acts behind walls. Raises `Refused` for what cannot be."""
        if not isinstance(self.plugin, Plugin):
            raise self._cannot("what it yields is no Plugin")
        wrong = check_services(self.registration, self.plugin)
        if wrong:
            raise self._cannot(wrong)
        cell = self.cell
        self.interceptors = tuple(
            Guarded(each, cell.act("INTERCEPTOR", type(each).__name__, Stage(each.stage).name))
            for each in self.plugin.interceptors
        )
        self._take_hooks(self.plugin.hooks)
        self.handlers = {
            kind: guard_handler(handler, cell.act("HANDLER", EventType(kind).name))
            for kind, handler in self.plugin.handlers.items()
        }
        if self.plugin.gap is not None:
            self.gap = guard_handler(self.plugin.gap, cell.act("HANDLER", "gap"))
        self.methods = tuple((service.descriptor, GuardedMethods(service, cell)) for service in self.plugin.services)

    def _take_hooks(self, hooks: Hooks) -> None:
        amends = self.registration.hooks_amend
        for name in HOOKS:
            hook = getattr(hooks, name)
            if hook is not None:
                if inspect.iscoroutinefunction(hook):
                    raise self._cannot(f"{name} is async: a hook is a plain function")
                allowed = frozenset(amends.get(name, ()))
                self.hooks[name] = Hooked(hook, self.cell.act("HOOK", name), allowed)
        if hooks.score_agents is not None:
            self.score = guard_score(hooks.score_agents, self.cell.act("HOOK", "score_agents"))

    def _cannot(self, why: str) -> Refused:
        return Refused(
            f"plugin {self.name} cannot be opened: {why}", reason="PLUGIN_CANNOT_OPEN", metadata={"plugin": self.name}
        )

    # What it is given -----------------------------------------------------------------------------------------------

    def _context(self) -> PluginContext[Any]:
        server, running = self._server, self.cell.running
        return PluginContext(
            name=self.name,
            config=self.config,
            state=outside(server.state(self.name), running),
            verbs=outside(server.verbs(self.name), running),
            clock=server.clock,
            log=logging.getLogger(f"plugin.{self.name}"),
            new_id=server.new_id,
            metrics=self._metrics,
            data_dir=server.data_dir(self.name),
            surroundings=outside(self, running),
            buckets=server.buckets(self.name),
        )

    def report(self, status: Status, text: str) -> None:
        """Take a reading of its health, as it says itself."""
        self.reading = Reading(status, text[:500])

    def vitals(self) -> VitalsReading:
        """Return how the system is."""
        return self._server.vitals()

    def bell(self, kinds: Collection[EventType]) -> Bell:
        """Return a bell that rings when this server hears of an event of these types."""
        return self._server.bell(kinds)

    def open_calls(self) -> Collection[Call]:
        """Return the calls that are being served, but for brief ones."""
        return self._server.open_calls()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something in the background."""
        tasks.spawn(self.cell.background(), work, name)

    async def publish(
        self, kind: str, text: str, severity: Severity, subject: str, attributes: Mapping[str, str]
    ) -> None:
        """Write an event."""
        await self._server.publish(self.name, kind, text, severity, subject, attributes)


def _roots(registration: Registration[Any]) -> tuple[str, ...]:
    """Return the folder of a plugin's package, or the file of its only module."""
    opening = inspect.unwrap(registration.open)
    module = sys.modules.get(getattr(opening, "__module__", ""))
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return (getattr(getattr(opening, "__code__", None), "co_filename", "?"),)
    in_package = "." in module.__name__ or hasattr(module, "__path__")
    return (str(Path(file).parent) + "/",) if in_package else (file,)
