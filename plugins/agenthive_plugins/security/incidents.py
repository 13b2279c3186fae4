"""Threats that were found: answered by a block at once, kept in the state, told as events and in the trail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Final, Protocol

import msgspec
from agenthive_server.plugin.api import Clock, HookState, Severity, State

from .audit import Trail
from .bindings import THREATS as CHANGED
from .bindings import bump
from .issuing import not_found
from .records import Act, Category, Ending
from .requests import Request
from .threats import EVIDENCE, Blocks, Detector, Finding, Signal, ThreatKind, ThreatSeverity

THREATS: Final = "threat/"
LATEST: Final = "threat-latest/"
MOST: Final = 10_000
"""Threats that are kept."""

_WAITING: Final = 1_000


class Threat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A threat; seconds since 1970, zero for not set."""

    id: str
    kind: ThreatKind
    severity: ThreatSeverity
    principal: str = ""
    peer: str = ""
    token_id: str = ""
    create_time: float = 0.0
    update_time: float = 0.0
    signals: int = 0
    evidence: tuple[str, ...] = ()
    block_expire_time: float = 0.0
    resolve_time: float = 0.0
    resolve_principal: str = ""
    comment: str = ""


_decoder: Final = msgspec.json.Decoder(Threat)


class Publish(Protocol):
    """Writes an event of the plugin."""

    def __call__(
        self, kind: str, text: str, *, severity: Severity, subject: str, attributes: dict[str, str]
    ) -> Awaitable[None]:
        """Write it; durable when it returns."""


class Incidents:
    """Notices signals while calls are served, and keeps what they come to beside them."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        new_id: Callable[[], str],
        detector: Detector,
        blocks: Blocks,
        trail: Trail,
        publish: Publish,
        *,
        counted: Callable[[ThreatKind], None] = lambda _: None,
    ) -> None:
        self.blocks = blocks
        self._state = state
        self._clock = clock
        self._new_id = new_id
        self._detector = detector
        self._trail = trail
        self._publish = publish
        self._counted = counted
        self._found: asyncio.Queue[Finding] = asyncio.Queue(_WAITING)

    def notice(self, signal: Signal, *, spare: bool = False) -> None:
        """Take a signal in; what it comes to blocks at once, unless whoever is behind it is to be spared."""
        finding = self._detector.notice(signal, self._clock.monotonic())
        if finding is None:
            return
        if spare:
            finding = replace(finding, block=0.0)
        if finding.block:
            self.blocks.add(finding.principal, finding.peer, self._clock.now() + finding.block)
        self._counted(finding.kind)
        if not self._found.full():
            self._found.put_nowait(finding)

    async def load(self) -> None:
        """Block who is blocked by what is stored, wherever that was found, and nobody whose threat is resolved."""
        now, threats = self._clock.now(), await self.list_threats()
        for threat in threats:
            if threat.resolve_time:
                self.blocks.lift(threat.principal, threat.peer)
        for threat in threats:
            if not threat.resolve_time and threat.block_expire_time > now:
                self.blocks.add(threat.principal, threat.peer, threat.block_expire_time)

    async def run(self) -> None:
        """Keep what is found, until cancelled."""
        while True:
            finding = await self._found.get()
            await self.keep(finding)

    async def keep(self, finding: Finding) -> Threat:
        """Write a finding down, tell of it, and return the threat it is part of."""
        now, new_id, key = self._clock.now(), self._new_id(), _key(finding)

        def change(rows: HookState) -> Threat:
            name = rows.get(key)
            raw = rows.get(THREATS + name.decode()) if name is not None else None
            known = _read(raw) if raw is not None else None
            threat = _threat(None if known is None or known.resolve_time else known, finding, new_id, now)
            rows.put(key, threat.id.encode())
            rows.put(THREATS + threat.id, msgspec.json.encode(threat))
            bump(rows, CHANGED)
            return threat

        # Another replica may find the same at the same moment.
        threat = await self._state.change(change)
        whom = threat.principal or threat.peer
        answer = f"refused for {finding.block:.0f} s" if finding.block else "nobody is refused for it"
        text = f"{threat.kind} by {whom}: {finding.count} signals; {answer}"
        self._trail.note(self._act("threat.detected", threat, text))
        await self._publish(
            "threat_detected",
            text,
            severity=Severity.ERROR if threat.severity >= ThreatSeverity.HIGH else Severity.WARNING,
            subject=whom,
            attributes={"threat_id": threat.id, "kind": threat.kind, "severity": threat.severity.name},
        )
        return threat

    async def list_threats(
        self, *, open_: bool | None = None, least: ThreatSeverity = ThreatSeverity.LOW
    ) -> list[Threat]:
        """Return threats newest first: open ones, resolved ones, or both."""
        found: list[Threat] = []
        after = ""
        while page := await self._state.scan(THREATS, after=after):
            found += [threat for stored in page if (threat := _read(stored.value)) is not None]
            after = page[-1].key
        wanted = [t for t in found if t.severity >= least and open_ in (None, not t.resolve_time)]
        return sorted(wanted, key=lambda threat: (threat.create_time, threat.id), reverse=True)

    async def resolve(self, threat_id: str, comment: str, request: Request) -> Threat:
        """Close a threat and lift its block; one that is closed stays as it is. Raises `NotFound`."""
        now = self._clock.now()

        def change(rows: HookState) -> tuple[Threat, bool]:
            raw = rows.get(THREATS + threat_id)
            threat = None if raw is None else _read(raw)
            if threat is None:
                raise not_found("threat", threat_id)
            repeated = request.earlier(rows) is not None
            if threat.resolve_time or repeated:
                return threat, False
            threat = msgspec.structs.replace(
                threat, resolve_time=now, resolve_principal=request.principal, comment=comment, block_expire_time=0.0
            )
            rows.put(THREATS + threat_id, msgspec.json.encode(threat))
            bump(rows, CHANGED)
            request.remember(rows, threat_id, now)
            return threat, True

        threat, changed = await self._state.change(change)
        if changed:
            self.blocks.lift(threat.principal, threat.peer)
            self._detector.forget(threat.kind, threat.principal, threat.peer, threat.token_id)
        return threat

    async def clean(self, keep: float) -> int:
        """Forget threats resolved more than `keep` seconds ago, and the oldest of too many; returns how many."""
        old, threats = self._clock.now() - keep, await self.list_threats()
        gone = [t for n, t in enumerate(threats) if n >= MOST or 0 < t.resolve_time < old]
        kept = {_key(t) for n, t in enumerate(threats) if not (n >= MOST or 0 < t.resolve_time < old)}
        for start in range(0, len(gone), 400):
            part = gone[start : start + 400]
            latest = {_key(t) for t in part} - kept
            await self._state.delete_many([*(THREATS + t.id for t in part), *latest])
        return len(gone)

    def _act(self, method: str, threat: Threat, text: str) -> Act:
        return Act(
            time=self._trail.now(),
            category=Category.SECURITY_INCIDENT,
            outcome=Ending.OK,
            principal=threat.principal,
            token_id=threat.token_id,
            peer=threat.peer,
            method=method,
            resources=(("threat_id", threat.id),),
            text=text,
        )


def _read(raw: bytes) -> Threat | None:
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _key(of: Threat | Finding) -> str:
    """Return the key under which the last threat of a kind by somebody is found."""
    whom = f"{of.kind}\x1f{of.principal}\x1f{of.peer}"
    return LATEST + blake2b(whom.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _threat(known: Threat | None, finding: Finding, new_id: str, now: float) -> Threat:
    until = now + finding.block if finding.block else 0.0
    if known is None:
        return Threat(
            id=new_id,
            kind=finding.kind,
            severity=finding.severity,
            principal=finding.principal,
            peer=finding.peer,
            token_id=finding.token_id,
            create_time=now,
            update_time=now,
            signals=finding.count,
            evidence=finding.evidence,
            block_expire_time=until,
        )
    evidence = tuple(dict.fromkeys((*known.evidence, *finding.evidence)))[:EVIDENCE]
    return msgspec.structs.replace(
        known,
        update_time=now,
        signals=known.signals + finding.count,
        evidence=evidence,
        block_expire_time=max(until, known.block_expire_time),
    )
