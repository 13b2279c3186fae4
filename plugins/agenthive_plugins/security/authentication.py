"""Who calls: by an opaque token, a JSON Web Token, or a client certificate. What is known already takes no waiting."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

from agenthive_server.plugin.api import Call, Clock, Conflict, State, Unauthenticated

from . import certificates, jwt
from .bindings import Bindings
from .callers import Book, Caller
from .jwks import KeySource
from .roles import NOTHING, Grants, Role, grants
from .tokens import TokenState

JTIS: Final = "jti/"
CACHED: Final = 10_000
"""JSON Web Tokens and certificates that are remembered as checked."""

_BEARER: Final = "bearer "


class Failed(Exception):
    """A credential that was not accepted. `token_id` is known when it is one of ours that is over."""

    def __init__(self, error: Unauthenticated, token_id: str = "", principal: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.token_id = token_id
        self.principal = principal


class Authentication:
    """Finds out who calls."""

    def __init__(
        self,
        book: Book,
        bindings: Bindings,
        state: State,
        clock: Clock,
        *,
        names: Sequence[str] = certificates.NAMES,
        wanted: jwt.Expectations | None = None,
        keys: KeySource | None = None,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        self._book = book
        self._bindings = bindings
        self._state = state
        self._clock = clock
        self._names = names
        self._wanted = wanted
        self._keys = keys
        self._roles = roles or {}
        # Callers by JWT (as its hash) and by principal of a certificate.
        self._jwts: OrderedDict[bytes, Caller] = OrderedDict()
        self._certified: OrderedDict[str, Caller] = OrderedDict()

    def forget_jwts(self) -> None:
        """Check every JWT anew: the keys of the issuer are others."""
        self._jwts.clear()

    def quick(self, call: Call) -> tuple[Caller | None, str]:
        """Return who calls, if that is known without waiting, else the text of a credential that takes a look.

        Neither: the call shows no credential. Raises `Failed` for what cannot be one, or is over.
        """
        header = call.header("authorization")
        if header is None:
            return self._certificate(call), ""
        if not isinstance(header, str) or header[:7].lower() != _BEARER:
            raise Failed(jwt.refused("malformed", "expected `authorization: Bearer TOKEN`"))
        secret = header[7:]
        caller = self._book.find(secret)
        if caller is not None:
            return self._valid(caller), ""
        if self._wanted is not None and not self._wanted.single_use and self._jwts:
            caller = self._jwts.get(_hash(secret))
            if caller is not None:
                return self._valid(caller), ""
        return None, secret

    async def slow(self, secret: str) -> Caller:
        """Return whose credential it is; raises `Failed`."""
        now = self._clock.now()
        if jwt.looks_like_jwt(secret):
            return await self._jwt(secret, now)
        caller = await self._book.look_up(secret, now)
        if caller is None:
            raise Failed(jwt.refused("unknown", "this is no token of this hive"))
        return self._valid(caller)

    def _valid(self, caller: Caller) -> Caller:
        """Return a caller whose credential still counts; raises `Failed`."""
        if caller.state is TokenState.ACTIVE and self._clock.now() < caller.expire_time:
            return caller
        if caller.state is TokenState.REVOKED:
            raise Failed(revoked(caller.token_id), caller.token_id, caller.principal)
        shown = {"token_id": caller.token_id} if caller.token_id else {}
        error = Unauthenticated("this token has expired", metadata={"why": "expired", **shown})
        raise Failed(error, caller.token_id, caller.principal)

    def _certificate(self, call: Call) -> Caller | None:
        context = call.transport.auth_context()
        principal = certificates.principal_of(context, self._names) if context else ""
        if not principal:
            return None
        caller = self._certified.get(principal)
        if caller is None:
            caller = self._certified[principal] = Caller(self._bindings, principal)
            if len(self._certified) > CACHED:
                self._certified.popitem(last=False)
        return caller

    async def _jwt(self, secret: str, now: float) -> Caller:
        if self._wanted is None or self._keys is None:
            raise Failed(jwt.refused("no_issuer", "this hive trusts no issuer of JSON Web Tokens"))
        try:
            claims = jwt.verify(secret, self._keys.keys, self._wanted, now)
        except Unauthenticated as error:
            if error.metadata.get("why") == "unknown_key":
                self._keys.want()
            raise Failed(error) from None
        principal = jwt.PREFIX + claims.subject
        if self._wanted.single_use:
            await self._use_once(claims, principal)
        roles = [self._roles[name] for name in claims.roles if name in self._roles]
        own: Grants = grants(roles) if roles else NOTHING
        caller = Caller(self._bindings, principal, own, expire_time=claims.expire_time)
        if not self._wanted.single_use:
            self._jwts[_hash(secret)] = caller
            if len(self._jwts) > CACHED:
                self._jwts.popitem(last=False)
        return caller

    async def _use_once(self, claims: jwt.Claims, principal: str) -> None:
        """Strike a token off; raises `Failed` for one that was struck off before."""
        key = JTIS + blake2b(claims.jti.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        try:
            await self._state.put(key, f"{claims.expire_time:.0f}".encode(), revision=0)
        except Conflict:
            error = jwt.refused("replayed", "this token was used before; it counts once")
            raise Failed(error, principal=principal) from None


def revoked(token_id: str) -> Unauthenticated:
    """Return the error for a token that was revoked."""
    return Unauthenticated("this token was revoked", metadata={"why": "revoked", "token_id": token_id})


def _hash(secret: str) -> bytes:
    return blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=20).digest()
