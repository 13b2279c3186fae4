"""The interceptor in front of every call: who calls, may they, and not too often.

A call of somebody who is known waits for nothing. What is refused here is recorded here: an interceptor that refuses is
not asked again on the way out.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from agenthive_server.plugin.api import (
    Audience,
    Call,
    Clock,
    KernelError,
    Load,
    Outcome,
    PermissionDenied,
    Policy,
    Stage,
    Unauthenticated,
)

from .acts import CONNECT, DENIALS, is_recorded, kind_of_call
from .audit import Trail, trail_full
from .authentication import Authentication, Failed
from .callers import Caller
from .joins import NOTE, Entry
from .limits import RateLimits
from .ownership import Ownership
from .peers import is_local
from .roles import EVERYWHERE, NAMESPACED, Access
from .threats import Blocks
from .witness import Witness, host_of_call, is_local_admin

_SWITCHES: Final = frozenset(
    {"/agenthive.v1.PluginService/DisablePlugin", "/agenthive.v1.PluginService/ConfigurePlugin"}
)
_STREAM: Final = "/agenthive.v1.OrchestratorService/StreamEvents"


class Gate:
    """Lets in who may."""

    stage = Stage.IDENTIFY

    def __init__(
        self,
        clock: Clock,
        authentication: Authentication,
        ownership: Ownership,
        limits: RateLimits,
        blocks: Blocks,
        witness: Witness,
        trail: Trail,
        *,
        name: str = "security",
        reads: bool = False,
        durable: str = "admin",
    ) -> None:
        """`name`: the own one. `reads`: reading is recorded. `durable`: who waits for records: admin, changes, none."""
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._authentication = authentication
        self._ownership = ownership
        self._limits = limits
        self._blocks = blocks
        self._witness = witness
        self._trail = trail
        self._name = name
        self._reads = reads
        self._durable = durable
        # By method: whether it acts in one namespace, whether it is recorded, its kind.
        self._methods: dict[str, tuple[bool, bool, str]] = {}
        # Sessions being opened, by call id: recorded once the worker is in.
        self._joining: dict[str, tuple[Call, Entry, str]] = {}

    # On the way in --------------------------------------------------------------------------------------------------

    def before(self, call: Call) -> Awaitable[None] | None:
        """Find out who calls and whether they may; raises what the call is refused with."""
        if call.policy.audience is Audience.ANYONE:
            return None
        try:
            caller, secret = self._authentication.quick(call)
        except Failed as failed:
            raise self._witness.not_accepted(call, failed.error, failed.token_id, failed.principal) from None
        if secret:
            return self._slowly(call, secret)
        return self._admit(call, caller)

    async def _slowly(self, call: Call, secret: str) -> None:
        """Look at a credential that is not known yet; from an address that showed too many bad ones, at none."""
        host = host_of_call(call)
        self._check_address(call, host)
        exceeded = self._limits.login(host, call.method, self._monotonic())
        if exceeded is not None:
            raise self._witness.too_many_logins(call, exceeded)
        try:
            caller = await self._authentication.slow(secret)
        except Failed as failed:
            raise self._witness.not_accepted(call, failed.error, failed.token_id, failed.principal) from None
        waits = self._admit(call, caller)
        if waits is not None:
            await waits

    def _admit(self, call: Call, caller: Caller | None) -> Awaitable[None] | None:
        """Let in a caller that is known, or one that shows nothing yet and wants to join."""
        if self._blocks:
            self._check_blocks(call, caller)
        if call.method == CONNECT:
            self._expect(call, caller)
            return None
        if caller is None:
            error = Unauthenticated("this call takes a credential", metadata={"why": "missing"})
            raise self._witness.refusal(call, error)
        policy = call.policy
        namespaced, recorded, kind = self._methods.get(call.method) or self._look(call.method, policy)
        access = caller.access(self._scope(call, namespaced), policy.audience)
        if access is Access.NO:
            wanted = {"audience": policy.audience.value, "method": call.method}
            raise self._witness.denied(call, caller, PermissionDenied("this takes another role", metadata=wanted))
        if policy.load is not Load.FREE:
            exceeded = self._limits.call(caller.principal, call.method, kind, self._monotonic())
            if exceeded is not None:
                raise self._witness.too_often(call, caller, exceeded)
        if recorded and self._trail.full:
            raise trail_full()
        self._enter(call, caller)
        if call.method in _SWITCHES and call.request is not None and call.request.name == self._name:
            # By the time that is done nobody asks this interceptor any more.
            self._witness.begins(call, caller)
        return None if access is Access.YES else self._require_own(call, caller)

    def _look(self, method: str, policy: Policy) -> tuple[bool, bool, str]:
        namespaced = method[1:].partition("/")[0] in NAMESPACED
        found = (namespaced, is_recorded(method, policy, reads=self._reads), kind_of_call(policy))
        self._methods[method] = found
        return found

    def _enter(self, call: Call, caller: Caller) -> None:
        call.principal = caller.principal
        call.notes[NOTE] = caller
        peer, now = call.transport.peer(), self._now()
        if peer != caller.last_peer or now >= caller.seen_until:
            self._witness.seen(call, caller, peer)
        caller.use_time = now

    async def _require_own(self, call: Call, caller: Caller) -> None:
        try:
            await self._ownership.require(caller, call.namespace, call.method, call.request)
        except PermissionDenied as error:
            raise self._witness.denied(call, caller, error) from None

    @staticmethod
    def _scope(call: Call, namespaced: bool) -> str:
        """Return the namespace a role is needed in; `*` for what concerns the whole hive."""
        if call.method == _STREAM and call.request is not None and call.request.filter.all_namespaces:
            return EVERYWHERE
        return call.namespace if namespaced else EVERYWHERE

    def _expect(self, call: Call, caller: Caller | None) -> None:
        """Let a worker as far as its hello; the hook decides then."""
        if caller is not None:
            self._enter(call, caller)
        entry = Entry(caller)
        call.notes[NOTE] = entry
        self._joining[call.call_id] = (call, entry, host_of_call(call))

    # Blocks ---------------------------------------------------------------------------------------------------------

    def _check_blocks(self, call: Call, caller: Caller | None) -> None:
        """Refuse who is blocked. An administrator on this machine never is, nor a worker there that wants to join."""
        host = host_of_call(call)
        if caller is None:
            if not (call.method == CONNECT and is_local(host)):
                self._check_address(call, host)
            return
        left = self._blocks.principal(caller.principal)
        if left and not is_local_admin(host, caller):
            raise self._witness.refusal(call, _blocked(left), caller)

    def _check_address(self, call: Call, host: str) -> None:
        """Refuse what is shown by an address that is blocked. Who is known already is let in from everywhere."""
        left = self._blocks.peer(host) if self._blocks else 0.0
        if left:
            raise self._witness.refusal(call, _blocked(left))

    # On the way out -------------------------------------------------------------------------------------------------

    def after(self, call: Call, outcome: Outcome) -> Awaitable[None] | None:
        """Record how a call ended that was let in; one for administrators is answered when that is durable."""
        policy = call.policy
        if policy.audience is Audience.ANYONE:
            return None
        if call.method == CONNECT:
            self._ended_session(call, outcome)
            return None
        denied = outcome.code in DENIALS
        if not denied and not (self._methods.get(call.method) or self._look(call.method, policy))[1]:
            return None
        caller = call.notes.get(NOTE)
        act = self._witness.ended(call, outcome, caller if isinstance(caller, Caller) else None)
        if not denied and self._is_durable(policy):
            return self._trail.note_durably(act)
        self._trail.note(act)
        return None

    def _is_durable(self, policy: Policy) -> bool:
        if self._durable == "none" or policy.load is not Load.UNARY:
            return False
        return policy.audience is Audience.ADMIN or (self._durable == "changes" and not policy.idempotent)

    # Sessions -------------------------------------------------------------------------------------------------------

    def record_joins(self) -> None:
        """Record the sessions that were opened since the last time."""
        for call_id, (call, entry, host) in list(self._joining.items()):
            # The session is committed when its call has its principal.
            if entry.joined and call.principal == entry.joined:
                del self._joining[call_id]
                self._witness.joined(call, entry, host)

    def _ended_session(self, call: Call, outcome: Outcome) -> None:
        """Note the end of a session's stream: a refusal is recorded, and so is a join that was not yet."""
        waiting = self._joining.pop(call.call_id, None)
        if waiting is None:
            return
        _, entry, host = waiting
        error = outcome.error
        if outcome.code in DENIALS and isinstance(error, KernelError):
            self._witness.not_joined(call, entry, host, error)
        elif entry.joined and call.principal == entry.joined:
            self._witness.joined(call, entry, host)


def _blocked(left: float) -> PermissionDenied:
    text = "refused for a while, because of what was seen before"
    return PermissionDenied(text, metadata={"why": "blocked"}, retry_after=left)
