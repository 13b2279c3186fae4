"""Issues, revokes and lists tokens. The secret is returned by the call that makes it, and is in no record."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from agenthive_server.plugin.api import HookState, NotFound, Overloaded, State, Stored

from .bindings import EVERYTHING, Tell, bump, nobody
from .callers import TOKENS, Book
from .requests import Request
from .roles import Role
from .tokens import Scope, Token, TokenKind, TokenState, decode, digest_of, encode, id_of, mint, redacted

USES: Final = "use/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What token is wanted. `ttl` in seconds."""

    kind: TokenKind
    principal: str
    ttl: float
    roles: tuple[Role, ...] = ()
    namespaces: tuple[str, ...] = ()
    description: str = ""
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A token as administrators see it, with when it was last used; zero for never."""

    token: Token
    use_time: float


def new_token(key: bytes, wish: Wish, issuer: str, now: float) -> tuple[Token, str]:
    """Return a new token's record and its secret."""
    secret = mint(wish.kind)
    digest = digest_of(secret, key)
    token = Token(
        id=id_of(digest),
        kind=wish.kind,
        digest=digest.hex(),
        principal=wish.principal,
        roles=tuple(sorted(set(wish.roles))),
        namespaces=tuple(sorted(set(wish.namespaces))),
        description=wish.description,
        scope=wish.scope,
        create_time=now,
        expire_time=now + wish.ttl,
        issuer=issuer,
    )
    return token, secret


def not_found(record: str, record_id: str) -> NotFound:
    """Return the error for a record of this plugin that does not exist; it repeats no secret given for an id."""
    record_id = redacted(record_id)
    return NotFound(
        f"no {record} {record_id!r}", reason="RECORD_NOT_FOUND", metadata={"record": record, "record_id": record_id}
    )


class Issuing:
    """The acts on tokens, each one change."""

    def __init__(
        self, state: State, book: Book, key: bytes, now: Callable[[], float], *, maximum: int, tell: Tell = nobody
    ) -> None:
        self._tell = tell
        self._state = state
        self._book = book
        self._key = key
        self._now = now
        self._maximum = maximum
        self._count = 0

    async def count(self) -> int:
        """Count the tokens there are, and remember that."""
        self._count = len(await self._all())
        return self._count

    async def issue(self, wish: Wish, request: Request | None = None, issuer: str = "") -> tuple[Token, str]:
        """Make a token; returns its record and its secret, which is empty for a call that was made before.

        Raises `Overloaded` (QUOTA_EXCEEDED) when there are too many.
        """
        if self._count >= self._maximum and await self.count() >= self._maximum:
            raise Overloaded(
                f"there are {self._maximum} tokens already",
                reason="QUOTA_EXCEEDED",
                metadata={"quota": "tokens", "limit": str(self._maximum)},
            )
        now = self._now()
        token, secret = new_token(self._key, wish, issuer, now)

        def change(rows: HookState) -> tuple[Token, str]:
            earlier = request.earlier(rows) if request is not None else None
            if earlier is not None:
                return _read(rows, earlier), ""
            rows.put(TOKENS + token.id, encode(token))
            if request is not None:
                request.remember(rows, token.id, now)
            return token, secret

        made = await self._state.change(change)
        self._book.learn(made[0], now)
        self._count += 1
        return made

    async def revoke(self, token_id: str, request: Request | None = None, *, departed: bool = False) -> Shown:
        """Revoke a token; one that is revoked stays as it is. Raises `NotFound`.

        What is open with it ends on every replica, unless it is revoked because its agents have `departed`.
        """
        now = self._now()

        def change(rows: HookState) -> Token:
            token = _read(rows, token_id)
            if not token.revoke_time or (token.departed and not departed):
                token = msgspec.structs.replace(token, revoke_time=token.revoke_time or now, departed=departed)
                rows.put(TOKENS + token_id, encode(token))
                bump(rows, TOKENS + token_id)
            if request is not None and request.earlier(rows) is None:
                request.remember(rows, token_id, now)
            return token

        token = await self._state.change(change)
        self._book.learn(token, now)
        if request is not None:
            await self._tell("token_revoked", token_id)
        stored = await self._state.get(USES + token_id)
        return Shown(token, float(stored.value) if stored else 0.0)

    async def list_tokens(
        self, principal: str = "", kinds: Collection[TokenKind] = (), states: Collection[TokenState] = ()
    ) -> list[Shown]:
        """Return tokens, newest first."""
        now = self._now()
        uses = {stored.key.removeprefix(USES): float(stored.value) for stored in await self._scan(USES)}
        found = [
            Shown(token, uses.get(token.id, 0.0))
            for token in await self._all()
            if (not principal or token.principal == principal)
            and (not kinds or token.kind in kinds)
            and (not states or token.state_at(now) in states)
        ]
        return sorted(found, key=lambda shown: (shown.token.create_time, shown.token.id), reverse=True)

    async def clean(self, keep: float) -> int:
        """Forget tokens that have been over for `keep` seconds; returns how many."""
        now = self._now()
        gone = [token.id for token in await self._all() if 0 < over_since(token, now) <= now - keep]
        for start in range(0, len(gone), 400):
            part = gone[start : start + 400]
            await self._state.delete_many([*(TOKENS + name for name in part), *(USES + name for name in part)])
            for name in part:
                self._book.forget(name)
        if gone:
            await self._state.change(lambda rows: bump(rows, EVERYTHING))
        self._count = max(0, self._count - len(gone))
        return len(gone)

    async def note_uses(self, since: float) -> None:
        """Keep when tokens were last used, of those used after a time."""
        used = self._book.used(since)
        for start in range(0, len(used), 500):
            await self._state.put_many({USES + name: f"{at:.0f}".encode() for name, at in used[start : start + 500]})

    async def _all(self) -> list[Token]:
        return [token for stored in await self._scan(TOKENS) if (token := decode(stored.value)) is not None]

    async def _scan(self, prefix: str) -> Sequence[Stored]:
        found: list[Stored] = []
        after = ""
        while page := await self._state.scan(prefix, after=after):
            found += page
            after = page[-1].key
        return found


def over_since(token: Token, now: float) -> float:
    """Return when a token's end came, zero while it is accepted."""
    ends = [token.revoke_time, token.use_time, token.expire_time if token.expire_time <= now else 0.0]
    return min((end for end in ends if end), default=0.0)


def _read(rows: HookState, token_id: str) -> Token:
    raw = rows.get(TOKENS + token_id)
    token = None if raw is None else decode(raw)
    if token is None:
        raise not_found("token", token_id)
    return token
