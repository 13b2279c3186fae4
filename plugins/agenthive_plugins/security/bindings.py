"""Role bindings: which principal has which roles in which namespace, kept in the state and known in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from urllib.parse import quote

import msgspec
from agenthive_server.plugin.api import HookState, State

from .requests import Request
from .roles import NOTHING, Grants, Role, grants

PREFIX: Final = "binding/"
GENERATION: Final = "meta/generation"
LATEST: Final = 32
"""Changes that are named in it, the last ones."""

BINDINGS: Final = "bindings"
THREATS: Final = "threats"
EVERYTHING: Final = "*"
"""What a change is named by besides the key of a token."""


Tell = Callable[[str, str], Awaitable[None]]
"""Tells every replica at once, by an event, of what it would else see within a second: what happened, and to whom."""


async def nobody(kind: str, subject: str) -> None:
    """Tell nobody."""


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """Roles of a principal in a namespace, or (`*`) in every one; seconds since 1970."""

    principal: str
    namespace: str
    roles: tuple[Role, ...]
    update_time: float


_decoder: Final = msgspec.json.Decoder(Binding)


def _read(raw: bytes) -> Binding | None:
    """Return a binding from how it is stored; None for one that is damaged, which gives nobody anything."""
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def key_of(principal: str, namespace: str) -> str:
    """Return the key of a binding: by principal, then namespace, whatever characters are in them."""
    return f"{PREFIX}{quote(principal, safe='')[:190]}/{namespace}"


def generation(raw: bytes | None) -> tuple[int, list[str]]:
    """Return how many changes there were of what every replica has in memory, and the last of them, newest first."""
    if raw is None:
        return 0, []
    found = msgspec.json.decode(raw)
    return (found, []) if isinstance(found, int) else (found[0], found[1])


def bump(rows: HookState, what: str) -> None:
    """Say that something changed that every replica has in memory: the key of a token, or one of the names above."""
    number, latest = generation(rows.get(GENERATION))
    rows.put(GENERATION, msgspec.json.encode((number + 1, [what, *latest][:LATEST])))


class Bindings:
    """What is bound. `version` grows whenever it changes, here or elsewhere."""

    def __init__(self, state: State, tell: Tell = nobody) -> None:
        self.version = 0
        self._state = state
        self._tell = tell
        self._by_principal: dict[str, Grants] = {}

    def of(self, principal: str) -> Grants:
        """Return what a principal is granted."""
        return self._by_principal.get(principal, NOTHING)

    async def load(self) -> None:
        """Read all bindings."""
        found: dict[str, Grants] = {}
        for binding in await self.list_bindings():
            given = grants(binding.roles, [binding.namespace])
            found[binding.principal] = found.get(binding.principal, NOTHING).joined(given)
        self._by_principal = found
        self.version += 1

    async def list_bindings(self) -> list[Binding]:
        """Return all bindings by principal and namespace."""
        found: list[Binding] = []
        after = ""
        while page := await self._state.scan(PREFIX, after=after):
            found += [binding for stored in page if (binding := _read(stored.value)) is not None]
            after = page[-1].key
        return sorted(found, key=lambda binding: (binding.principal, binding.namespace))

    async def set(self, request: Request, principal: str, namespace: str, roles: Sequence[Role], now: float) -> Binding:
        """Set the roles of a principal in a namespace."""
        binding = Binding(principal=principal, namespace=namespace, roles=tuple(sorted(set(roles))), update_time=now)
        key = key_of(principal, namespace)

        def change(rows: HookState) -> Binding:
            if request.earlier(rows) is not None:
                raw = rows.get(key)
                return (_read(raw) if raw is not None else None) or binding
            rows.put(key, msgspec.json.encode(binding))
            bump(rows, BINDINGS)
            request.remember(rows, key, now)
            return binding

        made = await self._state.change(change)
        await self.load()
        await self._tell("roles_changed", principal)
        return made

    async def delete(self, request: Request, principal: str, namespace: str, now: float) -> None:
        """Take the roles of a principal in a namespace."""
        key = key_of(principal, namespace)

        def change(rows: HookState) -> None:
            if request.earlier(rows) is None:
                rows.delete(key)
                bump(rows, BINDINGS)
                request.remember(rows, key, now)

        await self._state.change(change)
        await self.load()
        await self._tell("roles_changed", principal)
