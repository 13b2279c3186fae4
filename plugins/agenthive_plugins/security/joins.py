"""Who may join: the hook that stands at the opening of every session.

A worker shows a credential; the first time a join token, which it is struck off for and earns a credential by; or it
is a principal with the role of an agent, whose agents are those it was the first to bring along. All of it is read and
written in the change set of the session, so that a join token lets nobody in twice, whoever tries at the same time.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

import msgspec
from agenthive_server.plugin.api import HookState, Joining, KernelError, NotFound, PermissionDenied, Unauthenticated

from .bindings import Bindings, bump
from .callers import LONGEST, TOKENS, Caller
from .ownership import Owner, foreign, read_owner, write_owner
from .roles import Role
from .tokens import Scope, Token, TokenKind, TokenState, decode, digest_of, encode, id_of, kind_of, mint

NOTE: Final = "security"
"""Name of what the interceptor leaves for the hook among the notes of a call."""

MOST_AGENTS: Final = 256
"""Agents one credential may speak for."""


class Entry:
    """A call that wants to open a session: who calls, as far as it is known before the hello, and who joined."""

    __slots__ = ("agents", "caller", "joined", "token_id")

    def __init__(self, caller: Caller | None) -> None:
        self.caller = caller
        self.joined = ""
        self.token_id = ""
        self.agents: tuple[str, ...] = ()


class Doorkeeper:
    """Lets workers in."""

    def __init__(self, bindings: Bindings, key: bytes) -> None:
        self._bindings = bindings
        self._key = key

    def before_join(self, joining: Joining) -> None:
        """Let a worker in as who it is, or raise `Unauthenticated` or `PermissionDenied`."""
        entry = joining.notes.get(NOTE)
        agents = tuple(agent.agent_id for agent in joining.agents)
        if joining.reported:
            self._claim(joining, joining.principal, agents, may_take=self._is_agent(joining.principal, joining))
            return
        if joining.credential:
            token = self._recognised(joining, joining.credential, TokenKind.CREDENTIAL)
            _require_hosting(joining, token, agents)
        elif joining.join_token:
            token = self._admitted(joining, agents)
        else:
            self._known(joining, entry, agents)
            token = None
        if token is not None:
            joining.principal = token.principal
        if joining.session_id and joining.session_principal != joining.principal:
            # Also one from before there were principals: who opened it cannot be told any more.
            raise NotFound("no such session, or it has ended", reason="SESSION_NOT_FOUND")
        if isinstance(entry, Entry):
            entry.joined, entry.agents = joining.principal, agents
            entry.token_id = token.id if token is not None else entry.caller.token_id if entry.caller else ""

    # A join token ---------------------------------------------------------------------------------------------------

    def _admitted(self, joining: Joining, agents: Sequence[str]) -> Token:
        ticket = self._recognised(joining, joining.join_token, TokenKind.JOIN)
        scope = ticket.scope or Scope()
        _require_scope(joining, scope, agents)
        secret = mint(TokenKind.CREDENTIAL)
        digest = digest_of(secret, self._key)
        credential = Token(
            id=id_of(digest),
            kind=TokenKind.CREDENTIAL,
            digest=digest.hex(),
            principal=ticket.principal or _principal(joining.namespace, scope, agents, id_of(digest)),
            roles=(Role.AGENT,),
            namespaces=(joining.namespace,),
            scope=scope,
            agents=() if scope.runner else tuple(agents),
            create_time=joining.now,
            issuer=ticket.issuer,
            join_token_id=ticket.id,
        )
        for agent_id in agents:
            self._take_over(joining, credential, agent_id, replaces=bool(scope.agent_id))
        rows = joining.state
        rows.put(TOKENS + ticket.id, encode(msgspec.structs.replace(ticket, use_time=joining.now)))
        rows.put(TOKENS + credential.id, encode(credential))
        joining.issue(secret)
        return credential

    def _take_over(self, joining: Joining, credential: Token, agent_id: str, *, replaces: bool) -> None:
        """Make an agent the credential's. One that has an owner changes it only by a token for that very agent."""
        rows, namespace = joining.state, joining.namespace
        owner = read_owner(rows, namespace, agent_id)
        if owner is not None:
            old = _token(rows, owner.token_id) if owner.token_id else None
            holds = not owner.token_id or (old is not None and old.state_at(joining.now) is TokenState.ACTIVE)
            if holds and not replaces:
                raise foreign()
            if holds and old is not None:
                rows.put(TOKENS + old.id, encode(msgspec.structs.replace(old, revoke_time=joining.now)))
                bump(rows, TOKENS + old.id)
        if not (credential.scope and credential.scope.runner):
            write_owner(rows, namespace, agent_id, Owner(principal=credential.principal, token_id=credential.id))

    # A credential, or another proof ---------------------------------------------------------------------------------

    def _recognised(self, joining: Joining, secret: str, kind: TokenKind) -> Token:
        """Return the token a worker shows; raises `Unauthenticated` for one that is none, or is over."""
        token = None
        if len(secret) <= LONGEST and kind_of(secret) is kind:
            digest = digest_of(secret, self._key)
            token = _token(joining.state, id_of(digest))
            if token is not None and not hmac.compare_digest(bytes.fromhex(token.digest), digest):
                token = None
        if token is None or token.kind is not kind or joining.namespace not in token.namespaces:
            raise not_accepted("unknown", kind)
        state = token.state_at(joining.now)
        if state is not TokenState.ACTIVE:
            raise not_accepted(state.lower(), kind, token.id)
        return token

    def _known(self, joining: Joining, entry: object, agents: Sequence[str]) -> None:
        """Let in a principal that has proven itself otherwise and has the role of an agent."""
        caller = entry.caller if isinstance(entry, Entry) else None
        if caller is None:
            raise Unauthenticated(
                "to join takes a credential, or a join token the first time", metadata={"why": "missing"}
            )
        if caller.is_credential:
            raise PermissionDenied("a credential that lets a worker join is shown in its hello")
        if not caller.has(Role.AGENT, joining.namespace):
            raise PermissionDenied("to join takes a credential, a join token, or the role of an agent")
        self._claim(joining, caller.principal, agents, may_take=True)

    def _is_agent(self, principal: str, joining: Joining) -> bool:
        """Whether a principal has the role of an agent by a binding; what its token allows is not known here."""
        return bool(principal) and Role.AGENT in self._bindings.of(principal).roles_in(joining.namespace)

    @staticmethod
    def _claim(joining: Joining, principal: str, agents: Sequence[str], *, may_take: bool) -> None:
        """Require that agents are a principal's own; those that are nobody's become so where that is allowed."""
        for agent_id in agents:
            owner = read_owner(joining.state, joining.namespace, agent_id)
            if owner is None and may_take:
                write_owner(joining.state, joining.namespace, agent_id, Owner(principal=principal))
            elif owner is None or owner.principal != principal or not principal:
                raise foreign()


def not_accepted(why: str, kind: TokenKind, token_id: str = "") -> Unauthenticated:
    """Return the error for a token that is not accepted; `why` is for programs."""
    text = {
        "used": "this join token was used before; it lets in once",
        "expired": f"this {_NAMES[kind]} has expired",
        "revoked": f"this {_NAMES[kind]} was revoked",
    }.get(why, f"this is no {_NAMES[kind]} of this hive")
    return Unauthenticated(text, metadata={"why": why, **({"token_id": token_id} if token_id else {})})


_NAMES: Final = {
    TokenKind.BEARER: "token",
    TokenKind.JOIN: "join token",
    TokenKind.CREDENTIAL: "credential",
}


def _token(rows: HookState, token_id: str) -> Token | None:
    raw = rows.get(TOKENS + token_id)
    return None if raw is None else decode(raw)


def _principal(namespace: str, scope: Scope, agents: Sequence[str], token_id: str) -> str:
    if scope.runner:
        return f"runner:{namespace}/{token_id}"
    return f"agent:{namespace}/{agents[0]}" if len(agents) == 1 else f"worker:{namespace}/{token_id}"


def _require_scope(joining: Joining, scope: Scope, agents: Sequence[str]) -> None:
    _require_labels(joining, scope)
    if scope.runner:
        _require_runner(joining)
        return
    fits = len(agents) == 1 and agents[0] == scope.agent_id
    if scope.agent_id_prefix:
        fits = 0 < len(agents) <= MOST_AGENTS and all(name.startswith(scope.agent_id_prefix) for name in agents)
    if not fits or joining.runner is not None:
        raise _outside("this join token is for other agents")


def _require_hosting(joining: Joining, token: Token, agents: Sequence[str]) -> None:
    scope = token.scope or Scope()
    _require_labels(joining, scope)
    if scope.runner:
        _require_runner(joining)
        for agent_id in agents:
            owner = read_owner(joining.state, joining.namespace, agent_id)
            if owner is not None and owner.principal != token.principal:
                raise foreign()
    elif joining.runner is not None or not set(agents) <= set(token.agents):
        raise _outside("this credential is for other agents")


def _require_labels(joining: Joining, scope: Scope) -> None:
    if any(joining.labels.get(key) != value for key, value in scope.labels.items()):
        raise _outside("the worker does not have the labels it has to bring along")


def _require_runner(joining: Joining) -> None:
    """A runner speaks for what the server places on it, and registers nothing."""
    if joining.runner is None or any(agent.spec is not None for agent in joining.agents):
        raise _outside("this is for a runner, which registers no agents")


def _outside(text: str) -> KernelError:
    return PermissionDenied(text)
