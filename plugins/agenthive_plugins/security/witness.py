"""Sees how calls end: writes it into the trail, and hands what is suspicious to whoever looks for threats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agenthive_server.plugin.api import Call, Clock, KernelError, Outcome, Overloaded, PermissionDenied, Unauthenticated

from .acts import DENIALS, MADE, act_of, category_of, category_of_refusal, resources_of, shown
from .audit import Trail
from .callers import Caller
from .incidents import Incidents
from .joins import Entry
from .limits import Exceeded, RateLimits
from .peers import host_of, is_local
from .records import MOST_RESOURCES, Act, Category, Ending
from .roles import EVERYWHERE, Role
from .threats import Signal, ThreatKind

SEEN_SECONDS: Final = 3_600.0
"""After so long the use of a credential from the same address is worth a record again."""

HOSTS: Final = 256
"""Addresses remembered for each credential."""

_ONCE: Final = frozenset({"used", "replayed"})


def host_of_call(call: Call) -> str:
    """Return the address a call comes from, without its port."""
    return host_of(call.transport.peer())


def is_local_admin(host: str, caller: Caller) -> bool:
    """Whether somebody is an administrator on this machine, who is never shut out."""
    return is_local(host) and caller.has(Role.ADMIN, EVERYWHERE)


class Witness:
    """Records, counts and signals; it decides nothing."""

    def __init__(
        self,
        clock: Clock,
        limits: RateLimits,
        incidents: Incidents,
        trail: Trail,
        *,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._incidents = incidents
        self._trail = trail
        self._refused = refused

    # What was refused: each returns the error to raise ---------------------------------------------------------------

    def not_accepted(self, call: Call, error: Unauthenticated, token_id: str, principal: str) -> KernelError:
        """A credential was shown that does not count."""
        self.failed_login(host_of_call(call), call.method, error.metadata.get("why", ""), token_id or principal)
        return self.refusal(call, error, token_id=token_id, principal=principal)

    def failed_login(self, host: str, method: str, why: str, whose: str) -> None:
        """Count a credential that does not count; one that was good once tells more than a guess."""
        self._limits.failed_login(host, method, self._clock.monotonic())
        self._incidents.notice(Signal(kind=ThreatKind.FAILED_LOGINS, peer=host, detail=why))
        if why in _ONCE:
            self._incidents.notice(Signal(kind=ThreatKind.REPLAY, peer=host, detail=whose))
        elif why == "revoked":
            self._incidents.notice(Signal(kind=ThreatKind.REVOKED_TOKEN, peer=host, detail=whose))

    def too_many_logins(self, call: Call, exceeded: Exceeded) -> KernelError:
        """An address goes on showing credentials that do not count."""
        host = host_of_call(call)
        self._incidents.notice(Signal(kind=ThreatKind.FAILED_LOGINS, peer=host, detail="rate"))
        return self.refusal(call, _exceeded("too many credentials from this address did not count", host, exceeded))

    def too_often(self, call: Call, caller: Caller, exceeded: Exceeded) -> KernelError:
        """A caller is beyond its rate."""
        host, who = host_of_call(call), caller.principal
        signal = Signal(kind=ThreatKind.EXCESSIVE_RATE, principal=who, detail=call.method)
        self._incidents.notice(signal, spare=is_local_admin(host, caller))
        return self.refusal(call, _exceeded(f"{who} calls more often than it may", who, exceeded), caller)

    def denied(self, call: Call, caller: Caller, error: PermissionDenied) -> KernelError:
        """A caller tried what it may not do."""
        signal = Signal(
            kind=ThreatKind.PRIVILEGE_PROBING, principal=caller.principal, token_id=caller.token_id, detail=call.method
        )
        self._incidents.notice(signal, spare=is_local_admin(host_of_call(call), caller))
        return self.refusal(call, error, caller)

    def refusal(
        self, call: Call, error: KernelError, caller: Caller | None = None, *, token_id: str = "", principal: str = ""
    ) -> KernelError:
        """Record a refusal, and return its error."""
        code = _code(error)
        why = error.metadata.get("why") or error.reason
        self._refused(why)
        act = act_of(
            call,
            self._trail.now(),
            category=category_of_refusal(code),
            outcome=Ending.DENIED,
            peer=host_of_call(call),
            code=code,
            reason=why,
            principal=caller.principal if caller is not None else principal,
            token_id=caller.token_id if caller is not None else token_id,
        )
        self._trail.note_refusal(act)
        return error

    # What was let in ------------------------------------------------------------------------------------------------

    def seen(self, call: Call, caller: Caller, peer: str) -> None:
        """Note where a credential is used from; record it when that is new, or was long ago."""
        now, host = self._clock.now(), host_of(peer)
        caller.last_peer, caller.seen_until = peer, now + SEEN_SECONDS
        since = caller.hosts.get(host)
        if since is not None and now - since < SEEN_SECONDS:
            caller.seen_until = since + SEEN_SECONDS
            return
        if len(caller.hosts) >= HOSTS:
            caller.hosts.clear()
        caller.hosts[host] = now
        act = Act(
            time=self._trail.now(),
            category=Category.AUTHENTICATION,
            outcome=Ending.OK,
            principal=caller.principal,
            token_id=caller.token_id,
            method="authenticated",
            peer=host,
            call_id=call.call_id,
        )
        self._trail.note(act)
        if caller.token_id:
            who, token_id = caller.principal, caller.token_id
            signal = Signal(kind=ThreatKind.SHARED_TOKEN, principal=who, token_id=token_id, detail=host)
            self._incidents.notice(signal, spare=is_local_admin(host, caller))

    def begins(self, call: Call, caller: Caller) -> None:
        """A call is let in that switches this plugin itself; how it ends may not be seen."""
        act = act_of(
            call,
            self._trail.now(),
            category=category_of(call.method, call.policy, call.request),
            outcome=Ending.OK,
            peer=host_of_call(call),
            code="",
            token_id=caller.token_id,
            text="allowed; recorded before it was done, because it switches what records",
        )
        self._trail.note(act)

    def ended(self, call: Call, outcome: Outcome, caller: Caller | None) -> Act:
        """Return how a call that was let in ended, as it is to be recorded."""
        denied = outcome.code in DENIALS
        made: tuple[tuple[str, str], ...] = call.notes.get(MADE, ())
        return act_of(
            call,
            self._trail.now(),
            category=category_of_refusal(outcome.code)
            if denied
            else category_of(call.method, call.policy, call.request),
            outcome=Ending.DENIED if denied else Ending.OK if outcome.code == "OK" else Ending.FAILED,
            peer=host_of_call(call),
            code=outcome.code,
            reason="" if outcome.code == "OK" else outcome.reason,
            token_id=caller.token_id if caller is not None else "",
            resources=(*made, *resources_of(call.request))[:MOST_RESOURCES],
        )

    def joined(self, call: Call, entry: Entry, host: str) -> None:
        """A worker has opened a session."""
        act = act_of(
            call,
            self._trail.now(),
            category=Category.AUTHENTICATION,
            outcome=Ending.OK,
            peer=host,
            code="OK",
            principal=entry.joined,
            token_id=entry.token_id,
            resources=tuple(("agent_id", shown(agent_id)) for agent_id in entry.agents[:8]),
            text="a session was opened",
        )
        self._trail.note(act)

    def not_joined(self, call: Call, entry: Entry, host: str, error: KernelError) -> None:
        """A worker was refused at its hello."""
        why, token_id = error.metadata.get("why", ""), error.metadata.get("token_id", "")
        if isinstance(error, PermissionDenied) and entry.caller is not None:
            self.denied(call, entry.caller, error)
            return
        if isinstance(error, Unauthenticated) and why != "missing":
            self.failed_login(host, call.method, why, token_id)
        self.refusal(call, error, entry.caller, token_id=token_id)


def _exceeded(text: str, subject: str, exceeded: Exceeded) -> Overloaded:
    return Overloaded(
        text,
        reason="QUOTA_EXCEEDED",
        metadata={"quota": exceeded.quota, "subject": subject},
        retry_after=exceeded.retry_after,
    )


def _code(error: KernelError) -> str:
    if isinstance(error, Unauthenticated):
        return "UNAUTHENTICATED"
    return "PERMISSION_DENIED" if isinstance(error, PermissionDenied) else "RESOURCE_EXHAUSTED"
