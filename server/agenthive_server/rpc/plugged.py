"""Where plugins are plugged in at the edge: their interceptors into the chain, their services among the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from agenthive_server.kernel.hooks import Hooks
from agenthive_server.kernel.proposals import HookSet
from agenthive_server.plugin.calls import Interceptor
from agenthive_server.plugin.instance import Instance
from agenthive_server.plugin.isolation import Hooked, guard_hooks
from agenthive_server.plugin.services import GuardedMethods

from .adapter import Adapter
from .chain import Entry, Switch, build_chain
from .health import Board


class Edge:
    """Lets exactly those plugins act that it is given: one assignment each for the chain, the hooks, every service."""

    def __init__(
        self, adapter: Adapter, switch: Switch, board: Board, hooks: Hooks, built_in: Iterable[Interceptor]
    ) -> None:
        self._adapter = adapter
        self._switch = switch
        self._board = board
        self._hooks = hooks
        self._built_in = tuple(built_in)
        # The methods that answer for each service of a plugin.
        self._served: dict[str, GuardedMethods] = {}

    def announce(self, owners: Mapping[str, str]) -> None:
        """Know the services of plugins that are off, by service and plugin, to say which one to enable."""
        self._adapter.owners = dict(owners)
        for service in owners:
            self._board.switch(service, on=False)

    def plug(self, instances: Sequence[Instance]) -> None:
        """Let these act from now on, in this order. Calls in flight finish on the chain they started with."""
        entries = [Entry(each, instance.name) for instance in instances for each in instance.interceptors]
        self._switch.current = build_chain(self._built_in, entries)
        self._hooks.swap(_hook_set(instances))
        wanted = {
            descriptor.full_name: (descriptor, methods, instance)
            for instance in instances
            for descriptor, methods in instance.methods
        }
        for service in self._served.keys() - wanted.keys():
            self._withdraw(service)
        for service, (descriptor, methods, instance) in wanted.items():
            if self._served.get(service) is not methods:
                self._serve(descriptor, methods, instance)

    def _serve(self, descriptor: ServiceDescriptor, methods: GuardedMethods, instance: Instance) -> None:
        self._adapter.add(descriptor, (methods,), instance.registration.policies)
        self._served[descriptor.full_name] = methods
        self._board.switch(descriptor.full_name, on=True)

    def _withdraw(self, service: str) -> None:
        del self._served[service]
        self._board.switch(service, on=False)
        self._adapter.remove(service)


def _hook_set(instances: Sequence[Instance]) -> HookSet:
    found: dict[str, list[Hooked[Any]]] = {}
    for instance in instances:
        for name, hook in instance.hooks.items():
            found.setdefault(name, []).append(hook)
    scores = tuple(instance.score for instance in instances if instance.score is not None)
    return HookSet(score_agents=scores, **{name: (guard_hooks(hooks),) for name, hooks in found.items()})
