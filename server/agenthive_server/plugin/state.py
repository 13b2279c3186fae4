"""A plugin's own state: the kernel's verbs on state, bound to one plugin's name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from agenthive_server.kernel.proposals import HookState
from agenthive_server.kernel.records import StateRecord
from agenthive_server.kernel.state import StateRows, StateVerbs

from .context import Stored

T = TypeVar("T")


class PluginState:
    """What `State` promises, for the plugin called `plugin`."""

    __slots__ = ("_plugin", "_verbs")

    def __init__(self, verbs: StateVerbs, plugin: str) -> None:
        self._verbs = verbs
        self._plugin = plugin

    async def get(self, key: str) -> Stored | None:
        """Return a value, None where there is none."""
        found = await self._verbs.get(self._plugin, key)
        return None if found is None else _stored(found)

    async def put(self, key: str, value: bytes, *, revision: int | None = None) -> int:
        """Set a value; returns its new revision."""
        return await self._verbs.put(self._plugin, key, value, revision=revision)

    async def delete(self, key: str, *, revision: int | None = None) -> bool:
        """Remove a value; returns whether there was one."""
        return await self._verbs.delete(self._plugin, key, revision=revision)

    async def scan(self, prefix: str = "", *, after: str = "", limit: int = 1_000) -> list[Stored]:
        """Return values in the order of their keys."""
        return [_stored(found) for found in await self._verbs.scan(self._plugin, prefix, after=after, limit=limit)]

    async def put_many(self, values: Mapping[str, bytes], *, new: bool = False) -> None:
        """Set values, all or none."""
        await self._verbs.put_many(self._plugin, values, new=new)

    async def delete_many(self, keys: Collection[str]) -> int:
        """Remove values; returns how many were there."""
        return await self._verbs.delete_many(self._plugin, keys)

    async def change(self, change: Callable[[HookState], T]) -> T:
        """Read and write several values as one change."""

        def run(rows: StateRows) -> T:
            state = HookState(rows, self._plugin)
            answer = change(state)
            state.settle()
            return answer

        return await self._verbs.change(run)


def _stored(found: StateRecord) -> Stored:
    return Stored(found.id, found.value, found.revision)
