"""What plugins keep in the store: values by key, changed by compare-and-set like everything else.

A value is no longer than the code that reads it back wants to wait; big and many things go into several keys, which
`scan` finds in order. Nothing of it stays in memory after its commit: what is read is what is committed. A change of it
is told by no event, so nobody keeps a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeVar, cast

from .decide import Decisions, View
from .errors import revision_mismatch
from .ports import Query, Store
from .records import LAST_CODE_POINT, Kind, Ref, StateRecord

T = TypeVar("T")

MAX_KEY: Final = 255
"""Characters of a key."""

MAX_VALUE: Final = 256 * 1024
"""Bytes of a value."""

MAX_AT_ONCE: Final = 1_000
"""Values written or removed in one change set."""

MAX_BYTES_AT_ONCE: Final = 8 * 1024 * 1024
"""Bytes of values written in one change set."""

HOST: Final = "_host"
"""Whose state the plugin host's own is: no plugin can be called so."""


def check_key(key: str) -> None:
    """Raise `ValueError` unless a text may be a key: 1 to 255 characters that can be stored and sorted."""
    if not 0 < len(key) <= MAX_KEY:
        raise ValueError(f"a key has 1 to {MAX_KEY} characters")
    if "\x00" in key or LAST_CODE_POINT in key or any("\ud800" <= character <= "\udfff" for character in key):
        raise ValueError("a key holds what is no character")


def check_value(value: bytes) -> None:
    """Raise `ValueError` for a value that is too long."""
    if len(value) > MAX_VALUE:
        raise ValueError(f"a value has at most {MAX_VALUE} bytes")


class StateRows:
    """The state of all plugins within one decision: what is written here is in the decision's change set."""

    __slots__ = ("_view",)

    def __init__(self, view: View) -> None:
        self._view = view

    def read(self, plugin: str, key: str) -> bytes | None:
        """Return a value, None where there is none; raises `NotLoaded` when it has to be read first."""
        found = _find(self._view, plugin, key)
        return None if found is None else found.value

    def write(self, plugin: str, key: str, value: bytes | None) -> None:
        """Set a value, or remove it (None). What was not read before is taken to be new, until a commit says no."""
        changes, ref = self._view.changes, _ref(plugin, key)
        if value is not None:
            gone = changes.deletes.pop(ref, None)
            _put(self._view, plugin, key, value, gone or self._view.guess(ref))
        elif ref not in changes.deletes:
            changes.puts.pop(ref, None)
            found = _find(self._view, plugin, key)
            if found is not None:
                self._view.delete(found)


class StateVerbs:
    """The verbs on the state of plugins. Changing ones answer when what they changed is durable.

    Raises `ValueError` for keys and values that are too long, `StoreUnavailable`, and `Conflict` where a revision is
    given that is not the present one.
    """

    def __init__(self, decisions: Decisions, store: Store) -> None:
        self._decisions = decisions
        self._store = store

    async def get(self, plugin: str, key: str) -> StateRecord | None:
        """Return a value with its revision, None where there is none."""
        check_key(key)
        return cast("StateRecord | None", (await self._store.get(Kind.STATE, [(plugin, key)]))[0])

    async def scan(self, plugin: str, prefix: str = "", *, after: str = "", limit: int = 1_000) -> list[StateRecord]:
        """Return values in the order of their keys: those that begin with `prefix` and come after `after`."""
        query = Query(namespace=plugin, prefix=prefix, after=("", after) if after else None, limit=max(0, limit))
        return cast("list[StateRecord]", await self._store.query(Kind.STATE, query))

    async def put(self, plugin: str, key: str, value: bytes, *, revision: int | None = None) -> int:
        """Set a value, with `revision` only if that is the present one (0: none there); returns the new revision."""
        check_key(key)
        check_value(value)

        def decide(view: View) -> int:
            return _put(view, plugin, key, value, _expected(view, plugin, key, revision)).revision

        return await self._decisions.run(decide)

    async def delete(self, plugin: str, key: str, *, revision: int | None = None) -> bool:
        """Remove a value, with `revision` only if that is the present one; returns whether there was one."""
        check_key(key)

        def decide(view: View) -> bool:
            found = _find(view, plugin, key)
            if revision is not None and revision != (found.revision if found else 0):
                raise revision_mismatch(revision, found.revision if found else 0)
            if found is not None:
                view.delete(found)
            return found is not None

        return await self._decisions.run(decide)

    async def put_many(self, plugin: str, values: Mapping[str, bytes], *, new: bool = False) -> None:
        """Set values, all or none. With `new` none may be there yet, which spares looking; else `Conflict`."""
        _check_many(values)
        for value in values.values():
            check_value(value)
        if sum(map(len, values.values())) > MAX_BYTES_AT_ONCE:
            raise ValueError(f"at most {MAX_BYTES_AT_ONCE} bytes of values go in one change")

        def decide(view: View) -> None:
            if not new:
                view.need(_ref(plugin, key) for key in values)
            for key, value in values.items():
                _put(view, plugin, key, value, _expected(view, plugin, key, 0 if new else None))

        await self._decisions.run(decide)

    async def delete_many(self, plugin: str, keys: Collection[str]) -> int:
        """Remove values, all in one change; returns how many were there."""
        _check_many(keys)

        def decide(view: View) -> int:
            view.need(_ref(plugin, key) for key in keys)
            there = [found for key in dict.fromkeys(keys) if (found := _find(view, plugin, key)) is not None]
            for found in there:
                view.delete(found)
            return len(there)

        return await self._decisions.run(decide)

    async def change(self, change: Callable[[StateRows], T]) -> T:
        """Read and write several values as one change; `change` runs again after a conflict, and does nothing else."""
        return await self._decisions.run(lambda view: change(StateRows(view)))


def _ref(plugin: str, key: str) -> Ref:
    return (Kind.STATE, (plugin, key))


def _find(view: View, plugin: str, key: str) -> StateRecord | None:
    return cast("StateRecord | None", view.find(_ref(plugin, key)))


def _put(view: View, plugin: str, key: str, value: bytes, old: object) -> StateRecord:
    revision = old.revision if isinstance(old, StateRecord) else 0
    return view.put(StateRecord(namespace=plugin, id=key, revision=revision, value=value))


def _expected(view: View, plugin: str, key: str, revision: int | None) -> StateRecord | None:
    """Return what a change of a value builds on. With a revision it is not looked up: the commit finds out."""
    if revision is None:
        return _find(view, plugin, key)
    ref = _ref(plugin, key)
    found = view.guess(ref)
    if found is None and ref in view.guesses:
        return StateRecord(namespace=plugin, id=key, revision=revision, value=b"") if revision else None
    present = found.revision if found is not None else 0
    if present != revision:
        raise revision_mismatch(revision, present)
    return cast("StateRecord | None", found)


def _check_many(keys: Collection[str]) -> None:
    if len(keys) > MAX_AT_ONCE:
        raise ValueError(f"at most {MAX_AT_ONCE} values go in one change")
    for key in keys:
        check_key(key)
