"""The composition root: the one module that knows every other, builds them, and stops them in order."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agenthive_server import fleet
from agenthive_server.company import Company
from agenthive_server.events.kept_output import HeldOutput, KeptOutput
from agenthive_server.events.log import EventLog
from agenthive_server.events.notifier import LocalNotifier
from agenthive_server.events.output import OutputHub
from agenthive_server.events.subscriptions import Subscriptions
from agenthive_server.front import Front
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import KernelError
from agenthive_server.kernel.events import Event
from agenthive_server.kernel.followups import FOLLOWED
from agenthive_server.kernel.ids import Ids
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.ports import StoreUnusable
from agenthive_server.kernel.turnover import Turnover
from agenthive_server.lifecycle import (
    Loops,
    Signals,
    StartError,
    allow_connections,
    keep_collections_short,
    tell_manager,
)
from agenthive_server.local_runner import build_runner
from agenthive_server.machine import process_metrics
from agenthive_server.plugged import build_host
from agenthive_server.plugin.dispatch import Dispatcher
from agenthive_server.plugin.host import PluginHost
from agenthive_server.plugin.registry import Registry, discover
from agenthive_server.plugin.verbs import PluginVerbs
from agenthive_server.recovery import Recovery
from agenthive_server.replica import Replica
from agenthive_server.rpc.adapter import Adapter
from agenthive_server.rpc.agents import AgentMethods
from agenthive_server.rpc.blobs import BlobMethods
from agenthive_server.rpc.builtin import BuiltIn
from agenthive_server.rpc.chain import Switch
from agenthive_server.rpc.convert.events import event_bytes
from agenthive_server.rpc.disk import DiskGuard
from agenthive_server.rpc.health import Board, ReportMethods
from agenthive_server.rpc.messaging import MessagingMethods
from agenthive_server.rpc.orchestrator import Services, add_services
from agenthive_server.rpc.plugged import Edge
from agenthive_server.rpc.plugins import PluginMethods
from agenthive_server.rpc.server import CannotListen, Server, drain
from agenthive_server.rpc.stream import StreamMethods
from agenthive_server.rpc.tasks import TaskMethods
from agenthive_server.rpc.tls import ServerTls
from agenthive_server.rpc.worker import WorkerMethods
from agenthive_server.runner.local import LocalRunner
from agenthive_server.settings import Settings, SettingsError, data_dir, notify_address
from agenthive_server.storage.committer import Committer
from agenthive_server.stores import Shared, build_archive, build_clock, build_sharing, open_store
from agenthive_server.surroundings import Surroundings
from agenthive_server.telemetry import Metrics
from agenthive_server.vitals import Vitals, server_version

if TYPE_CHECKING:
    from agenthive_server.sharing import Sharing
    from agenthive_server.web import Web


class App:
    """A whole server in this process: `open`, then `close`. `port` is where it listens."""

    def __init__(
        self,
        settings: Settings,
        *,
        config_path: Path | None = None,
        clock: Clock | None = None,
        registry: Registry | None = None,
    ) -> None:
        """`registry`: the plugins there are; None looks for what is installed. Raises `StartError`."""
        self.settings = settings
        self.clock = clock or build_clock(settings)
        self.new_id = Ids(self.clock)
        self.port = 0
        self._config_dir = (config_path.parent if config_path else Path()).resolve()
        server = settings.server
        self.store = open_store(settings, self.clock)
        self.archive = build_archive(settings, self.store, self.clock, server_version())
        self.log = EventLog(self.store, event_bytes)
        self.notifier = LocalNotifier(self.clock)
        # The kernel's own reader has a notifier of its own: the other one paces itself by the number of subscribers.
        self.kernel_notifier = LocalNotifier(self.clock)
        self.output, self.sharing = self._build_output()
        self.subscriptions = Subscriptions(self.log, self.notifier, self.clock, output=self.output)
        self.committer = Committer(self.store, settled=self._settled, failed=self._failed, clock=self.clock)
        self.shared = self.store if isinstance(self.store, Shared) else None
        self.kernel = self._build_kernel()
        self.loops = Loops(self.clock)
        self.built_in = BuiltIn(
            clock=self.clock, new_id=self.new_id, unary=server.maximum_calls, streams=server.maximum_streams
        )
        self.disk = DiskGuard(lambda: self.store.free_bytes, server.minimum_free_disk_bytes)
        self.board = Board()
        self.vitals = Vitals(
            clock=self.clock,
            store=self.store,
            committer=self.committer,
            kernel=self.kernel,
            subscriptions=self.subscriptions,
            output=self.output,
            disk=self.disk,
            board=self.board,
            loops=self.loops,
        )
        self.front = Front(settings, self.clock)
        self.company, self.replica = self._replica()
        self.switch = Switch()
        self.adapter = Adapter(self.switch, message_limit=server.message_limit_bytes)
        self.handler_notifier = LocalNotifier(self.clock)
        self.handlers = Dispatcher(
            self.log,
            self.handler_notifier,
            self.kernel.decisions,
            self.clock,
            random.SystemRandom().random,
        )
        self.kernel.reaper.release = self.handlers.release
        self.edge = Edge(
            self.adapter, self.switch, self.board, self.kernel.hooks, (*self.built_in.interceptors, self.disk)
        )
        self.plugins = self._plugin_host(discover() if registry is None else registry)
        self.vitals.add(self.plugins.overview.probe)
        self.metrics = self._build_metrics()
        if self.archive is not None:
            self.vitals.add(self.archive.probe)
        self.web: Web | None = None
        self.runner: LocalRunner | None = None
        self._server: Server | None = None
        self._committing: asyncio.Task[None] | None = None

    def _build_output(self) -> tuple[OutputHub, Sharing | None]:
        retention = self.settings.limits.retention_output_seconds
        output = OutputHub(self.clock, sequence=lambda: self.log.head, retention=retention)
        return output, build_sharing(self.settings, self.clock, output, self.new_id())

    def _build_kernel(self) -> Kernel:
        kernel = Kernel(
            self.store,
            self.committer.submit,
            self.log,
            self.kernel_notifier,
            clock=self.clock,
            new_id=self.new_id,
            chance=random.SystemRandom().random,
            limits=self.settings.limits.to_limits(),
            outputs=KeptOutput(self.output, self.store, self.clock),
            replicas=self.shared.tenure if self.shared else None,
            feed=self.shared,
        )
        kernel.observers += [self.log.append, self._ring]
        return kernel

    def _build_metrics(self) -> Metrics:
        metrics = Metrics(self.vitals.metrics, self.built_in.metrics, self.plugins.overview.metrics, process_metrics)
        for part in (self.company, self.archive):
            if part is not None:
                metrics.add(part.metrics)
        return metrics

    def _plugin_host(self, registry: Registry) -> PluginHost:
        minimum = self.settings.server.minimum_free_disk_bytes
        recovery = Recovery(self.store, self.clock, software=server_version(), minimum_free=minimum)
        surroundings = Surroundings(
            clock=self.clock,
            new_id=self.new_id,
            kernel=self.kernel,
            vitals=self.vitals,
            committer=self.committer,
            built_in=self.built_in,
            folder=data_dir(self.settings),
            verbs=lambda name: PluginVerbs(self.kernel, name, recovery),
            open_calls=lambda: self.adapter.open,
            buckets=self.sharing.buckets if self.sharing is not None else None,
        )
        try:
            return build_host(
                self.settings.plugins, registry, self.kernel, surroundings, self.edge, self.handlers, self.front.exposed
            )
        except SettingsError as error:
            raise StartError(str(error)) from None

    @property
    def tls(self) -> ServerTls | None:
        """The certificates it shows; None without TLS."""
        return self.front.tls

    # What follows a commit: bound late, because the kernel is built with the committer
    # ---------------------------------

    def _settled(self, group: object) -> None:
        if self.replica is not None:
            self.replica.settled(group)  # type: ignore[arg-type]  # the committer's own type
        self.kernel.settled(group)  # type: ignore[arg-type]  # the committer's own type

    def _ring(self, events: Sequence[Event]) -> None:
        self.notifier.ring(events[-1].sequence)
        self.handler_notifier.ring(events[-1].sequence)
        if any(event.type in FOLLOWED for event in events):
            self.kernel_notifier.ring(events[-1].sequence)

    def _replica(self) -> tuple[Company | None, Replica | None]:
        """Return what this server knows of others that commit to its store as well, and does because of them."""
        if self.shared is None:
            return None, None
        company = Company(
            self.shared.tenure,
            self.kernel,
            self.vitals,
            self.board,
            self.built_in,
            self.clock,
            lambda: self.front.shown(self.port) if self.port else "",
        )
        replica = Replica(
            self.shared,
            self.kernel,
            self.log,
            self.committer,
            self.subscriptions,
            self.clock,
            company.tell,
            self.sharing,
            self.vitals.present,
        )
        self.vitals.add(replica.probe)
        return company, replica

    def _failed(self, group: object, error: KernelError) -> None:
        self.kernel.failed(group, error)  # type: ignore[arg-type]  # the committer's own type

    # Start ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store, fill the memory, listen. Raises `StartError`; what was opened is closed again then."""
        self.front.load()
        if self.tls is not None:
            self.vitals.add(self.tls.probe)
        self.front.require_tls()
        try:
            await self.store.open()
        except StoreUnusable as error:
            raise StartError(str(error)) from None
        if self.archive is not None:
            await self.archive.open()
        try:
            self._server = self._listen()
            await self.log.open()
            await self.kernel.open()
        except (KernelError, CannotListen) as error:
            if self.archive is not None:
                await self.archive.close()
            await self.store.close()
            raise StartError(str(error)) from None
        self._committing = asyncio.create_task(self.committer.run())
        self.loops.start(
            {
                **self.kernel.loops(),
                "turnover": self.turnover.run,
                "notifier": self.notifier.run,
                "kernel_notifier": self.kernel_notifier.run,
                "output_notifier": self.output.notifier.run,
                "event_loop": self.vitals.lag.run,
                "vitals": self.vitals.run,
                "plugins": self.plugins.run,
                "plugin_handlers": self.handlers.run,
                "handler_notifier": self.handler_notifier.run,
                **({"tls": self.tls.run} if self.tls else {}),
                **({"archive": self.archive.run} if self.archive else {}),
                **(self.replica.loops() if self.replica else {}),
            }
        )
        try:
            self.web = await open_web(self.settings, self.board, self.metrics)
            await self.plugins.open()
            self.front.require_protected(authenticated=self.plugins.protected)
        except (KernelError, StartError) as error:
            await self._shut()
            raise StartError(str(error)) from None
        await fleet.muster(self.kernel.agents, self.settings.agents, self._config_dir)
        await self._server.start()
        self.port = self._server.ports[0]
        self.board.serve(serving=True)
        # The first report is what "since" is counted from.
        self.vitals.report()

    def _listen(self) -> Server:
        self.edge.plug(())
        add_services(self.adapter, self._services(), self.board)
        self.edge.announce(self.plugins.overview.services())
        return self.front.listen(self.adapter)

    def _services(self) -> Services:
        kernel, server = self.kernel, self.settings.server
        chance, age = random.SystemRandom().random, server.maximum_connection_age_seconds
        self.turnover = Turnover(kernel.contacts, self.clock, chance, age)
        self.messaging = MessagingMethods(kernel.messages, longest=self.turnover.longest)
        self.worker = WorkerMethods(kernel.sessions, HeldOutput(kernel.memory, self.output), self.clock)
        self.metrics.add(self.worker.metrics)
        if self.tls is not None:
            self.metrics.add(self.tls.metrics)
        return Services(
            agents=AgentMethods(kernel.agents),
            tasks=TaskMethods(kernel.tasks, kernel.queries),
            stream=StreamMethods(self.subscriptions, self.vitals.snapshot, longest=self.turnover.longest),
            report=ReportMethods(self.vitals.report, (self.company or self.vitals).facts, (self.metrics.samples,)),
            worker=self.worker,
            messaging=self.messaging,
            blobs=BlobMethods(self.store, self.clock, most_bytes=server.maximum_blob_bytes),
            plugins=PluginMethods(self.plugins),
        )

    def start_runner(self) -> None:
        """Start the local runner, which connects to this server."""
        self.runner = build_runner(self.settings, self.port, self.tls, self.plugins.join_token)
        self._running_runner = asyncio.create_task(self.runner.run())

    # Stop -----------------------------------------------------------------------------------------------------------

    async def close(self, hurry: asyncio.Event | None = None) -> None:
        """Stop in the order that loses nothing; `hurry` skips the waiting."""
        hurry = hurry or asyncio.Event()
        if self.runner is not None:
            await _until(self.runner.stop(), hurry)
            self._running_runner.cancel()
        if self.replica is not None:
            self.board.drain()
            await _until(self.plugins.hand_over(), hurry)
        await self.kernel.replicas.retire()
        if self._server is not None:
            await drain(
                self._server,
                self.board,
                self.clock,
                delay=self.settings.server.drain_delay_seconds,
                grace=self.settings.server.drain_grace_seconds,
                end_streams=(
                    self.messaging.drain,
                    self.kernel.drain,
                    self.subscriptions.drain,
                    self.kernel.sessions.send_away,
                    self.board.close,
                ),
                give_up=self.store.give_up,
                hurry=hurry,
            )
        await self._shut()

    async def _shut(self) -> None:
        """Close what is open, when nobody is served any more."""
        self.store.give_up()
        await self.plugins.close()
        if self.web is not None:
            await self.web.close()
        await self.loops.stop()
        await self.committer.stop()
        if self._committing is not None:
            await self._committing
        if self.archive is not None:
            await self.archive.close()
        await self.store.close()


async def open_web(settings: Settings, board: Board, metrics: Metrics) -> Web | None:
    """Open the endpoint for probes and scrapers where the settings ask for one; raises `StartError`."""
    address = settings.server.web
    if address == "off":
        return None
    from agenthive_server.web import CannotServe, Web, require_private

    try:
        host, port = require_private(address, insecure=settings.server.insecure)
        web = Web(board, metrics.samples)
        await web.open(host, port)
    except CannotServe as error:
        raise StartError(str(error)) from None
    return web


async def serve(settings: Settings, config_path: Path | None = None) -> int:
    """Be a server until SIGTERM or SIGINT; returns the exit code. Raises `StartError`."""
    signals = Signals()
    signals.install()
    allow_connections()
    app = App(settings, config_path=config_path)
    await app.open()
    keep_collections_short(app.clock)
    host, _, _ = settings.server.listen.rpartition(":")
    web = f" web={settings.server.web.rpartition(':')[0]}:{app.web.port}" if app.web else ""
    sys.stdout.write(f"SERVING {host}:{app.port} data={data_dir(settings)} version={server_version()}{web}\n")
    sys.stdout.flush()
    manager = notify_address()
    tell_manager(manager, "READY=1")
    if settings.server.runner:
        app.start_runner()
    await signals.stop.wait()
    tell_manager(manager, "STOPPING=1")
    await app.close(signals.hurry)
    return 0


async def _until(work: object, hurry: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(work), asyncio.create_task(hurry.wait())]  # type: ignore[call-overload]  # awaitable
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
