"""Services of plugins: what is checked when one is opened, and the walls around their methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from agenthive_server.kernel.errors import KernelError, NotImplementedHere

from .calls import Call
from .cell import Act, Cell
from .driving import driven, mark_each, steps_of
from .registration import Plugin, Registration, Service


def plugin_off(name: str, what: str) -> NotImplementedHere:
    """Return the error for a call of a plugin that is not on."""
    return NotImplementedHere(
        f"{what} belongs to the plugin {name}, which is not switched on; enable it",
        reason="PLUGIN_DISABLED",
        metadata={"plugin": name},
    )


def check_services(registration: Registration[Any], plugin: Plugin) -> str:
    """Return what is wrong with the services an open plugin brings, or nothing."""
    brought = {service.descriptor.full_name for service in plugin.services}
    if brought != set(registration.services):
        return f"it brings the services {sorted(brought)} and is registered with {sorted(registration.services)}"
    for service in plugin.services:
        name = service.descriptor.full_name
        lacking = [m.name for m in service.descriptor.methods if f"/{name}/{m.name}" not in registration.policies]
        if lacking:
            return f"its service {name} has no policy for {', '.join(lacking)}: such an RPC cannot be called"
    return ""


class GuardedMethods:
    """The methods of a service behind their walls, as attributes under their names."""

    def __init__(self, service: Service, cell: Cell) -> None:
        act = cell.act("SERVICE", service.descriptor.full_name)
        for method in service.descriptor.methods:
            run = next((getattr(part, method.name) for part in service.methods if hasattr(part, method.name)), None)
            if run is not None:
                setattr(self, method.name, _guarded(method, run, act))


def _guarded(method: MethodDescriptor, run: Callable[..., Any], act: Act) -> Callable[..., Any]:
    if method.server_streaming and not method.client_streaming:
        return _stream(run, act)
    return _answer(run, act)


def _answer(run: Callable[..., Any], act: Act) -> Callable[..., Any]:
    async def guarded(request: Any, call: Call) -> Any:
        with _Turn(act, call):
            return await driven(steps_of(run(request, call)), act.cell.running, act)

    return guarded


def _stream(run: Callable[..., Any], act: Act) -> Callable[..., Any]:
    async def guarded(request: Any, call: Call) -> AsyncIterator[Any]:
        with _Turn(act, call):
            async for item in mark_each(run(request, call), act.cell.running, act):
                yield item

    return guarded


class _Turn:
    """One call of a method: counted, and ended with a reason when its plugin is switched off meanwhile."""

    __slots__ = ("_act", "_began", "_call", "_task")

    def __init__(self, act: Act, call: Call) -> None:
        self._act = act
        self._call = call
        self._began = perf_counter()
        self._task = asyncio.current_task()

    def __enter__(self) -> None:
        cell = self._act.cell
        if not cell.live:
            raise plugin_off(cell.name, self._act.name)
        self._act.calls += 1
        if self._call.policy.brief:
            cell.served += 1
        if self._task is not None:
            cell.calls.add(self._task)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        act, cell = self._act, self._act.cell
        if self._call.policy.brief:
            cell.served -= 1
        if self._task is not None:
            cell.calls.discard(self._task)
        act.seconds += perf_counter() - self._began
        if isinstance(error, asyncio.CancelledError):
            if cell.ending and self._task is not None and self._task.cancelling():
                self._task.uncancel()
                raise plugin_off(cell.name, act.name) from None
        elif isinstance(error, Exception) and not isinstance(error, KernelError):
            # Its caller is told INTERNAL. Nobody else is harmed: it is counted, and not held against the plugin.
            act.failures += 1
