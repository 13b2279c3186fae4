"""Whose credential it is: opaque tokens by a look-up in memory, and what each caller may do where.

A token that is not in memory is looked up in the state once: another instance of the plugin, or a worker that joined,
may have made it a moment ago.
"""

from __future__ import annotations

import hmac
from typing import Final

from agenthive_server.plugin.api import Audience, State

from .bindings import Bindings
from .roles import NOTHING, Access, Grants, Role, access, grants
from .tokens import Token, TokenKind, TokenState, decode, digest_of, id_of, kind_of

TOKENS: Final = "token/"
LONGEST: Final = 128
"""Characters of an opaque token at most; what is longer is none."""


class Caller:
    """Somebody who has proven who he is. `token_id` is empty for certificates and JWTs."""

    __slots__ = (
        "_access",
        "_bindings",
        "_own",
        "_version",
        "agents",
        "digest",
        "expire_time",
        "grants",
        "hosts",
        "last_peer",
        "namespace",
        "principal",
        "revoked",
        "seen_until",
        "state",
        "token_id",
        "use_time",
    )

    def __init__(
        self,
        bindings: Bindings,
        principal: str,
        own: Grants = NOTHING,
        *,
        token_id: str = "",
        digest: bytes = b"",
        expire_time: float = 0.0,
        state: TokenState = TokenState.ACTIVE,
        agents: frozenset[str] = frozenset(),
        namespace: str = "",
    ) -> None:
        self.principal = principal
        self.token_id = token_id
        self.digest = digest
        self.expire_time = expire_time or float("inf")
        self.state = state
        # Whether what is open with it is to end.
        self.revoked = False
        # Of a credential: the agents it speaks for, in this namespace only.
        self.agents = agents
        self.namespace = namespace
        self.last_peer = ""
        # When a use from the same address is worth a record again, by address; and of the last address.
        self.hosts: dict[str, float] = {}
        self.seen_until = 0.0
        self.use_time = 0.0
        self._bindings = bindings
        self._own = own
        self._version = -1
        self.grants = own
        self._access: dict[tuple[str, Audience], Access] = {}

    @property
    def is_credential(self) -> bool:
        """Whether it is a worker that has joined, and its credential."""
        return bool(self.namespace)

    def access(self, scope: str, audience: Audience) -> Access:
        """Return what this caller may do of the RPCs of an audience, in a namespace or (`*`) with the whole hive."""
        if self._version != self._bindings.version:
            self.grants = self._own.joined(self._bindings.of(self.principal))
            self._version = self._bindings.version
            self._access = {}
        key = (scope, audience)
        found = self._access.get(key)
        if found is None:
            if len(self._access) > 1_000:
                self._access.clear()
            found = self._access[key] = access(self.grants.roles_in(scope), audience)
        return found

    def has(self, role: Role, scope: str) -> bool:
        """Whether a role was given in a namespace."""
        self.access(scope, Audience.ANYONE)
        return role in self.grants.roles_in(scope)


def caller_of(token: Token, bindings: Bindings, now: float) -> Caller:
    """Return the caller a token stands for."""
    caller = Caller(
        bindings,
        token.principal,
        grants(token.roles, token.namespaces),
        token_id=token.id,
        digest=bytes.fromhex(token.digest),
        expire_time=token.expire_time,
        state=token.state_at(now),
        agents=frozenset(token.agents),
        namespace=token.namespaces[0] if token.kind is TokenKind.CREDENTIAL and token.namespaces else "",
    )
    caller.revoked = bool(token.revoke_time) and not token.departed
    return caller


class Book:
    """The opaque tokens callers may present, by id: bearer tokens and credentials, also those that are over."""

    def __init__(self, state: State, bindings: Bindings, key: bytes) -> None:
        self._state = state
        self._bindings = bindings
        self._key = key
        self._callers: dict[str, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, secret: str) -> Caller | None:
        """Return whose token it is if that is known here; a few microseconds, whatever is presented."""
        if len(secret) > LONGEST:
            return None
        digest = digest_of(secret, self._key)
        caller = self._callers.get(id_of(digest))
        # The rest of the hash, without telling by the time it takes how much of it is right.
        return caller if caller is not None and hmac.compare_digest(caller.digest, digest) else None

    async def look_up(self, secret: str, now: float) -> Caller | None:
        """Return whose token it is by asking the state; nothing is asked for what cannot be a token."""
        if len(secret) > LONGEST or kind_of(secret) in (None, TokenKind.JOIN):
            return None
        digest = digest_of(secret, self._key)
        stored = await self._state.get(TOKENS + id_of(digest))
        if stored is None:
            return None
        token = decode(stored.value)
        if token is None or not hmac.compare_digest(bytes.fromhex(token.digest), digest):
            return None
        return self.learn(token, now)

    def learn(self, token: Token, now: float) -> Caller | None:
        """Know a token as it is now; join tokens are no callers."""
        if token.kind is TokenKind.JOIN:
            return None
        caller, known = caller_of(token, self._bindings, now), self._callers.get(token.id)
        if known is not None:
            caller.hosts, caller.last_peer = known.hosts, known.last_peer
            caller.seen_until, caller.use_time = known.seen_until, known.use_time
        self._callers[token.id] = caller
        return caller

    def revoked(self, token_id: str) -> bool:
        """Whether what is open with a token is to end."""
        caller = self._callers.get(token_id)
        return caller is not None and caller.revoked

    async def refresh(self, key: str, now: float) -> None:
        """Know the token of a key as it is stored, if that is of interest: others are looked up when they are shown."""
        stored = await self._state.get(key)
        token = decode(stored.value) if stored is not None else None
        if token is not None:
            self.learn(token, now)
        else:
            self.forget(key.removeprefix(TOKENS))

    def forget(self, token_id: str) -> None:
        """Know a token no longer."""
        self._callers.pop(token_id, None)

    async def load(self, now: float) -> None:
        """Read all tokens. What was known and is gone is forgotten."""
        there: set[str] = set()
        after = ""
        while page := await self._state.scan(TOKENS, after=after):
            for stored in page:
                token = decode(stored.value)
                if token is not None:
                    self.learn(token, now)
                    there.add(token.id)
            after = page[-1].key
        for token_id in self._callers.keys() - there:
            del self._callers[token_id]

    def used(self, since: float) -> list[tuple[str, float]]:
        """Return tokens that were used after a time, with when."""
        return [(name, caller.use_time) for name, caller in self._callers.items() if caller.use_time > since]
