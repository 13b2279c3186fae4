"""Which plugins are installed, in which order they act, and which of them cannot be on together."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from agenthive_server.kernel.errors import Refused
from agenthive_server.kernel.proposals import AMENDABLE

from .registration import Registration

GROUP: Final = "agenthive.plugins"

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Broken:
    """A plugin that is installed and cannot be used; `why` is a sentence for the operator."""

    name: str
    why: str


class Registry:
    """The registrations in the order in which they act, and what is wrong with the others."""

    def __init__(self, registrations: Iterable[Registration[Any]], broken: Iterable[Broken] = ()) -> None:
        """Check and order them. What is wrong with one keeps that one out, with all that require it."""
        self._broken: dict[str, str] = {each.name: each.why for each in broken}
        known: dict[str, Registration[Any]] = {}
        for registration in registrations:
            self._take(registration, known)
        self._drop_clashing_services(known)
        self._drop_unsatisfied(known)
        self._order = self._sorted(known)
        self._before = _ancestors(self._order)

    def __iter__(self) -> Iterator[Registration[Any]]:
        """Iterate over the registrations, in the order in which they act."""
        return iter(self._order)

    def find(self, name: str) -> Registration[Any] | None:
        """Return a registration that can be used, or None."""
        return next((each for each in self._order if each.name == name), None)

    @property
    def broken(self) -> Mapping[str, str]:
        """What is wrong, by name, with those that cannot be used."""
        return self._broken

    def position(self, name: str) -> int:
        """Return where in the order a plugin acts."""
        return next(at for at, each in enumerate(self._order) if each.name == name)

    def missing(self, name: str) -> Refused:
        """Return the error for a plugin that is not there, or of no use."""
        why = self.broken.get(name, "it is not installed")
        return Refused(f"plugin {name} cannot be used: {why}", reason="PLUGIN_CANNOT_OPEN", metadata={"plugin": name})

    def check_on(self, name: str, others: Collection[str]) -> None:
        """Raise `Refused` (PLUGIN_CONFLICT) when a plugin cannot be on together with others that are."""
        registration = self._order[self.position(name)]
        missing = [each for each in registration.requires if each not in others]
        if missing:
            raise conflict(name, f"plugin {name} requires {', '.join(missing)}; enable {missing[0]} first")
        for other in self._order:
            if other.name in others and other.name != name:
                self._check_pair(registration, other)

    def check_off(self, name: str, others: Collection[str]) -> None:
        """Raise `Refused` (PLUGIN_CONFLICT) when a plugin that is on requires this one."""
        for other in self._order:
            if other.name in others and name in other.requires:
                raise conflict(name, f"plugin {other.name} requires {name}; disable {other.name} first")

    def dependents(self, name: str) -> list[str]:
        """Return the plugins that require this one, directly or not, last first."""
        found = {name}
        for each in self._order:
            if found & set(each.requires):
                found.add(each.name)
        return [each.name for each in reversed(self._order) if each.name in found and each.name != name]

    def _check_pair(self, one: Registration[Any], other: Registration[Any]) -> None:
        if one.name in self._before[other.name] or other.name in self._before[one.name]:
            return
        for hook, fields in one.hooks_amend.items():
            both = sorted(fields & other.hooks_amend.get(hook, frozenset()))
            if both:
                raise conflict(
                    one.name,
                    f"plugins {one.name} and {other.name} both amend {both[0]} in {hook}, and neither is said to act"
                    f" first: one of them has to name the other in `after`",
                )

    def _take(self, registration: object, known: dict[str, Registration[Any]]) -> None:
        if not isinstance(registration, Registration):
            self._broken[str(registration)[:64]] = "its entry point is no Registration"
            return
        name = registration.name
        if name in known:
            del known[name]
            self._broken[name] = "two plugins are installed under this name"
        elif name not in self._broken:
            why = _wrong(registration)
            if why:
                self._broken[name] = why
            else:
                known[name] = registration

    def _drop_clashing_services(self, known: dict[str, Registration[Any]]) -> None:
        owners: dict[str, list[str]] = {}
        for registration in known.values():
            for service in registration.services:
                owners.setdefault(service, []).append(registration.name)
        for service, names in owners.items():
            for name in names if len(names) > 1 else ():
                known.pop(name, None)
                self._broken[name] = f"{' and '.join(names)} both bring the service {service}"

    def _drop_unsatisfied(self, known: dict[str, Registration[Any]]) -> None:
        """Drop those that require what is not there, until all that is left is whole."""
        while True:
            lame = [(each.name, other) for each in known.values() for other in each.requires if other not in known]
            if not lame:
                return
            for name, other in lame:
                why = "cannot be used" if other in self._broken else "is not installed"
                self._broken.setdefault(name, f"it requires {other}, which {why}")
                known.pop(name, None)

    def _sorted(self, known: dict[str, Registration[Any]]) -> tuple[Registration[Any], ...]:
        while True:
            graph = {name: sorted({*known[name].requires, *known[name].after} & known.keys()) for name in sorted(known)}
            try:
                order = _by_name(graph)
            except CycleError as error:
                circle: Sequence[str] = error.args[1]
                for name in set(circle):
                    self._broken[name] = f"plugins wait for each other in a circle: {' → '.join(circle)}"
                    known.pop(name)
                self._drop_unsatisfied(known)
                continue
            return tuple(known[name] for name in order)


def _by_name(graph: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names sorted so that each follows what it names, and by name where that leaves a choice."""
    sorter: TopologicalSorter[str] = TopologicalSorter(graph)
    sorter.prepare()
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted({*ready, *sorter.get_ready()})
        name = ready.pop(0)
        order.append(name)
        sorter.done(name)
    return order


def _ancestors(order: Sequence[Registration[Any]]) -> dict[str, frozenset[str]]:
    """Return for each plugin all that are said to act before it, directly or not."""
    found: dict[str, frozenset[str]] = {}
    for each in order:
        direct = [name for name in (*each.requires, *each.after) if name in found]
        found[each.name] = frozenset(direct).union(*(found[name] for name in direct))
    return found


def _wrong(registration: Registration[Any]) -> str:
    """Return what is wrong with a registration by itself, or nothing."""
    if not _NAME.fullmatch(registration.name):
        return "its name is not made of lower case letters, digits and `-`, at most 63"
    for hook, fields in registration.hooks_amend.items():
        if hook not in AMENDABLE:
            return f"it amends fields in {hook}, which is no hook that amends"
        unknown = sorted(frozenset(fields) - AMENDABLE[hook])
        if unknown:
            return f"it amends {', '.join(unknown)} in {hook}, which cannot be amended there"
    for path in registration.policies:
        if path[1:].partition("/")[0] not in registration.services:
            return f"it has a policy for {path}, which is of no service it brings"
    return ""


def conflict(name: str, text: str) -> Refused:
    """Return the error for a switch that the other plugins do not allow."""
    return Refused(text, reason="PLUGIN_CONFLICT", metadata={"plugin": name})


def discover(found: Iterable[EntryPoint] | None = None) -> Registry:
    """Return the registry of what is installed: the entry points of `agenthive.plugins`.

    One that cannot be loaded is broken, and nothing else is harmed by it.
    """
    registrations: list[Registration[Any]] = []
    broken: list[Broken] = []
    seen: set[tuple[str, str]] = set()
    for entry in sorted(entry_points(group=GROUP) if found is None else found, key=lambda entry: entry.name):
        if (entry.name, entry.value) in seen:
            continue  # the same distribution, found by two paths
        seen.add((entry.name, entry.value))
        try:
            registration = entry.load()
        except Exception as error:  # noqa: BLE001 - whatever an import raises; the others are still of use
            _log.exception("plugin %s cannot be loaded", entry.name)
            broken.append(Broken(entry.name, f"{entry.value} cannot be loaded: {type(error).__name__}: {error}"))
            continue
        if not isinstance(registration, Registration):
            broken.append(Broken(entry.name, f"{entry.value} is no Registration"))
        elif registration.name != entry.name:
            why = f"its entry point is called {entry.name}, and it calls itself {registration.name}"
            broken.append(Broken(entry.name, why))
        else:
            registrations.append(registration)
    return Registry(registrations, broken)
