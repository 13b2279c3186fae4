"""The replicas of a database as one of them sees it: what it tells the others of itself, and what it knows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from agenthive_server import telemetry
from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.health import Reading, Status
from agenthive_server.kernel.kernel import Kernel
from agenthive_server.kernel.members import Member, MemberState, heard, tell
from agenthive_server.kernel.replicas import Roll, Told
from agenthive_server.machine import cpu_seconds, memory_bytes
from agenthive_server.plugin.api import Load
from agenthive_server.rpc.builtin import BuiltIn
from agenthive_server.rpc.health import Board, Facts
from agenthive_server.stores import Tenure
from agenthive_server.telemetry import Sample
from agenthive_server.vitals import REPLICAS, Vitals

OVERDUE: Final = 2.5
"""Seconds after which a replica that tells once a second is AWAY for the others."""

REMEMBERED: Final = 60.0
"""Seconds for which health tells that a replica was expelled."""

SPAN: Final = 0.9
"""Seconds over which calls and CPU time are counted, at least."""


class Pace:
    """What a server did each second, of late."""

    def __init__(self, clock: Clock, calls: Callable[[], int], seconds: Callable[[], float] = cpu_seconds) -> None:
        self._clock = clock
        self._calls = calls
        self._seconds = seconds
        self._before = (clock.monotonic(), calls(), seconds())
        self.calls = 0.0
        self.cores = 0.0

    def measure(self) -> None:
        """Work it out anew, unless that was done a moment ago."""
        at, calls, seconds = self._clock.monotonic(), self._calls(), self._seconds()
        span = at - self._before[0]
        if span >= SPAN:
            self.calls = (calls - self._before[1]) / span
            self.cores = (seconds - self._before[2]) / span
            self._before = (at, calls, seconds)


class Company:
    """Tells and knows. Answers from memory; what others told is about a second old, see `told_time`."""

    def __init__(
        self,
        tenure: Tenure,
        kernel: Kernel,
        vitals: Vitals,
        board: Board,
        built_in: BuiltIn,
        clock: Clock,
        address: Callable[[], str],
    ) -> None:
        """`address` is where others find this server, empty while it does not listen."""
        self._tenure = tenure
        assert kernel.following is not None
        self._following = kernel.following
        self._contacts = kernel.contacts
        self._vitals = vitals
        self._board = board
        self._limit = built_in.limit
        self._clock = clock
        self._address = address
        self._pace = Pace(clock, lambda: sum(built_in.access.calls().values()))
        self._heard: dict[str, tuple[Told, Member]] = {}
        # When each replica was found to be gone, by whomever.
        self._expelled: dict[str, float] = {}
        vitals.add(self.probe)

    # This one -------------------------------------------------------------------------------------------------------

    def tell(self) -> str:
        """Return what this server tells the others, as JSON; asked once a second."""
        self._hear()
        return tell(self._own(self._tenure.roll()))

    def _own(self, roll: Roll) -> Member:
        facts = self._vitals.facts(alone=True)
        following, me = self._following, self._tenure.me
        self._pace.measure()
        group, sequence = self._known()
        member = Member(
            id=me,
            state=self._state(),
            version=facts.version,
            start_time=facts.start_time,
            sessions=len(self._contacts),
            agents=facts.agents_in_contact,
            held_tasks=facts.held_tasks,
            streams=self._limit.in_flight(Load.STREAM),
            calls_per_second=self._pace.calls,
            loop_lag=self._vitals.lag.lag,
            cpu_cores=self._pace.cores,
            memory_bytes=_memory(),
            group=following.group,
            sequence=following.head,
            lag_groups=group - following.group,
            lag_events=sequence - following.head,
            expelled=tuple(self._tenure.expelled),
            roles=_roles(roll, me),
            told_time=self._clock.now(),
        )
        if member.state is MemberState.STARTING:
            return member
        report = self._vitals.report(alone=True)
        troubles = [each for each in report.components if each.status > Status.OK]
        troubles.sort(key=lambda each: -each.status)
        return replace(member, address=self._address(), status=report.status, troubles=tuple(troubles))

    def _state(self) -> MemberState:
        if self._tenure.lost:
            return MemberState.AWAY
        if self._board.draining or self._tenure.retired:
            return MemberState.DRAINING
        return MemberState.SERVING if self._address() else MemberState.STARTING

    def _known(self) -> tuple[int, int]:
        """Return the last group and event that are known to be committed; others may know of more than this one."""
        group, sequence = self._following.known
        others = [member for _, member in self._heard.values()]
        return max([group, *(m.group for m in others)]), max([sequence, *(m.sequence for m in others)])

    # All ------------------------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """Return all replicas, this one included, by address."""
        roll = self._hear()
        others = [self._seen(replica, roll) for replica in roll.told if replica != self._tenure.me]
        return sorted([self._own(roll), *others], key=lambda member: (member.address, member.id))

    def _seen(self, replica: str, roll: Roll) -> Member:
        _, member = self._heard[replica]
        if roll.time - member.told_time > OVERDUE:
            member = replace(member, state=MemberState.AWAY)
        return replace(member, roles=_roles(roll, replica))

    def _hear(self) -> Roll:
        """Take in what others told since."""
        roll = self._tenure.roll()
        for replica, told in roll.told.items():
            known = self._heard.get(replica)
            if replica != self._tenure.me and (known is None or known[0] != told):
                self._heard[replica] = told, heard(replica, told.text, told.time)
        self._heard = {replica: each for replica, each in self._heard.items() if replica in roll.told}
        for replica, time in (*self._tenure.expelled, *(e for _, m in self._heard.values() for e in m.expelled)):
            self._expelled[replica] = max(time, self._expelled.get(replica, 0.0))
        oldest = self._clock.now() - REMEMBERED
        self._expelled = {replica: time for replica, time in self._expelled.items() if time > oldest}
        return roll

    def probe(self) -> list[tuple[str, Reading]]:
        """Return a reading of the replicas: DEGRADED while one is away, and for a minute after one was expelled."""
        roll, now, me = self._hear(), self._clock.now(), self._tenure.me
        silent = {replica: roll.time - told.time for replica, told in roll.told.items() if replica != me}
        gone = {"this one" if replica == me else replica: max(0.0, now - at) for replica, at in self._expelled.items()}
        reasons = [f"{name} was expelled {span:.0f} s ago" for name, span in gone.items()]
        reasons += [f"{name} has said nothing for {span:.0f} s" for name, span in silent.items() if span > OVERDUE]
        if self._tenure.lost:
            reasons.append(self._tenure.lost)
        if reasons:
            return [(REPLICAS, Reading(Status.DEGRADED, "; ".join(reasons)))]
        others = len(silent)
        return [(REPLICAS, Reading(reason=f"{others + 1} are there" if others else "this is the only one"))]

    # What callers ask -----------------------------------------------------------------------------------------------

    def facts(self, alone: bool = False) -> Facts:
        """Return what HealthCheck tells beside the report, of all replicas or of this one `alone`."""
        me = self._tenure.me
        if alone:
            roll = self._hear()
            mine = {role: holder for role, holder in roll.holders.items() if holder == me}
            return replace(self._vitals.facts(alone=True), replica=me, members=(self._own(roll),), holders=mine)
        members, facts = self.members(), self._vitals.facts()
        return replace(
            facts,
            agents_in_contact=sum(member.agents for member in members),
            replica=me,
            members=members,
            holders=self._tenure.roll().holders,
        )

    def metrics(self) -> Iterator[Sample]:
        """Yield what there is to measure."""
        following, members = self._following, self.members()
        mine = next(member for member in members if member.id == self._tenure.me)
        yield Sample(telemetry.REPLICAS, (), len(members))
        yield Sample(telemetry.REPLICAS_AWAY, (), sum(member.state is MemberState.AWAY for member in members))
        yield Sample(telemetry.REPLICA_ROLES, (), len(mine.roles))
        yield Sample(telemetry.REPLICAS_EXPELLED, (), self._tenure.expelled_count)
        yield Sample(telemetry.REPLICA_REJOINED, (), self._tenure.rejoined_count)
        yield Sample(telemetry.FOLLOWING_LAG_EVENTS, (), mine.lag_events)
        yield Sample(telemetry.FOLLOWING_LAG_GROUPS, (), mine.lag_groups)
        yield Sample(telemetry.FOLLOWING_REFILLS, (), following.refills)
        yield from following.waits.samples(telemetry.FOLLOWING_WAIT)


def _roles(roll: Roll, replica: str) -> tuple[str, ...]:
    return tuple(sorted(role for role, holder in roll.holders.items() if holder == replica))


def _memory() -> int:
    with suppress(OSError, ValueError):
        return memory_bytes()[1]
    return 0
