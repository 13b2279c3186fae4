"""Is a history linearizable? The search for an order of its operations in which each does what it was seen to do.

The algorithm is Wing and Gong's ("Testing and verifying concurrent objects", 1993) with Lowe's memory of what was tried
("Testing for linearizability", 2017), as in Knossos and Porcupine: place one operation after the other, only such as no
other has to come before, and never look twice at the same set of placed operations in the same state. Objects that do
not share a state are checked apart (Horn and Kroening, "Faster linearizability checking via P-compositionality", 2015).
Three things keep the search short, and change no verdict: what only reads is placed as soon as it fits; of operations
that do the same, only the most urgent is tried; and nothing is tried any more once one of them can never fit again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

S = TypeVar("S", bound=Hashable)

LIMIT: Final = 500_000
"""Steps after which a search gives up; histories of real runs take about as many as they have operations."""


class Undecided(RuntimeError):
    """The search took more than `LIMIT` steps."""


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[S]):
    """Something that took effect at one moment between its start and its end, if it did.

    `step` returns the state after it, None where it cannot have happened. `start` and `end` are times of one clock;
    endless when nobody knows.
    """

    name: str
    step: Callable[[S], S | None]
    start: float = -math.inf
    end: float = math.inf
    # Operations of a kind do the same, and one of a higher rank can happen wherever one of a lower can. None: no kind.
    kind: Hashable = None
    rank: float = 0.0
    # It never changes the state.
    reads: bool = False
    # It may have had no effect at all: its caller never heard of one.
    optional: bool = False
    # Numbers of operations, none of them optional, that took effect before it.
    after: tuple[int, ...] = ()
    # Whether it can happen neither in this state nor in any later one.
    hopeless: Callable[[S], bool] | None = None


@dataclass(frozen=True)
class Counterexample(Generic[S]):
    """Why a history is not linearizable: how far in time it can be explained, and what fits nowhere after that."""

    operations: Sequence[Operation[S]]
    # Numbers of the operations of the order that came farthest in time, and the state after each.
    placed: Sequence[tuple[int, S]]
    initial: S
    # Numbers of the operations whose turn it then is.
    stuck: Sequence[int]

    def describe(self, show: Callable[[S], str] = str) -> str:
        """Return it for people: all operations in order of time, the longest order, its state, and what is left."""
        first = min((each.start for each in self.operations if each.start > -math.inf), default=0.0)
        turn = {number: position for position, (number, _) in enumerate(self.placed, 1)}
        lines = ["operations by time (seconds from the first; the number before # is its place in the order below):"]
        for number, each in sorted(enumerate(self.operations), key=lambda pair: (pair[1].start, pair[1].end)):
            place = str(turn.get(number, "maybe" if each.optional else "-"))
            span = f"{_since(each.start, first):>9} .. {_since(each.end, first):<9}"
            lines.append(f"  {place:>5} #{number:<3} {span} {each.name}")
        lines.append("the order that comes farthest:")
        before = self.initial
        for number, state in self.placed:
            if state != before:
                lines.append(f"  #{number:<3} {self.operations[number].name}  =>  {show(state)}")
            else:
                lines.append(f"  #{number:<3} {self.operations[number].name}")
            before = state
        lines.append(f"the state then: {show(before)}")
        lines.append("one of these has to follow, and none can:")
        for number in self.stuck:
            missing = [f"#{other}" for other in self.operations[number].after if other not in turn]
            wanted = f"  (only after {', '.join(missing)})" if missing else ""
            lines.append(f"  #{number:<3} {self.operations[number].name}{wanted}")
        return "\n".join(lines)


def check(operations: Sequence[Operation[S]], initial: S, *, limit: int = LIMIT) -> Counterexample[S] | None:
    """Return None when the history is linearizable, else what shows that it is not. Raises `Undecided`."""
    found = _Search(operations, initial).run(limit)
    if found is None or all(each.hopeless is None for each in operations):
        return found
    # Once more without foresight: it shows how far one can come.
    blind = [replace(each, hopeless=None) for each in operations]
    try:
        return _Search(blind, initial).run(min(limit, 3 * len(operations))) or found
    except Undecided:
        return found


def _since(time: float, first: float) -> str:
    return "" if math.isinf(time) else f"{time - first:.4f}"


@dataclass(slots=True)
class _Place(Generic[S]):
    """A partial order of operations: those placed, as bits, the state after them, and what may be tried next."""

    placed: int
    state: S
    tries: Iterator[int]
    # How long the order was before this place.
    length: int


class _Search(Generic[S]):
    def __init__(self, operations: Sequence[Operation[S]], initial: S) -> None:
        self._operations = operations
        self._initial = initial
        self._by_start = sorted(range(len(operations)), key=lambda number: operations[number].start)
        self._before = [sum(1 << other for other in each.after) for each in operations]
        self._later = [0] * len(operations)
        self._order_by_time()
        self._optional = sum(1 << number for number, each in enumerate(operations) if each.optional)
        self._required = (1 << len(operations)) - 1 - self._optional
        self._order: list[tuple[int, S]] = []
        self._longest: list[tuple[int, S]] = []
        self._stuck: list[int] = []
        self._farthest = (-math.inf, 0, 0)

    def _order_by_time(self) -> None:
        """Note who ended before whom began, as bits."""
        by_end = sorted(range(len(self._operations)), key=lambda number: self._operations[number].end)
        ended, next_end = 0, 0
        for number in self._by_start:
            while self._operations[by_end[next_end]].end < self._operations[number].start:
                ended |= 1 << by_end[next_end]
                next_end += 1
            self._before[number] |= ended
        for number, before in enumerate(self._before):
            for other in _bits(before):
                self._later[other] |= 1 << number

    def run(self, limit: int) -> Counterexample[S] | None:
        seen: set[tuple[int, S]] = set()
        path = [self._arrive(0, self._initial)]
        while path:
            place = path[-1]
            if place.placed & self._required == self._required:
                return None
            number = next(place.tries, None)
            if number is None:
                path.pop()
                del self._order[place.length :]
                continue
            state = self._operations[number].step(place.state)
            if state is None:
                continue
            placed = place.placed | 1 << number
            if (placed, state) in seen:
                continue
            seen.add((placed, state))
            if len(seen) > limit:
                raise Undecided(f"{len(self._operations)} operations, {limit} steps")
            path.append(self._arrive(placed, state, number))
        return Counterexample(self._operations, self._longest, self._initial, self._stuck)

    def _arrive(self, placed: int, state: S, number: int | None = None) -> _Place[S]:
        """Place what only reads and fits here, and see what may come next."""
        length = len(self._order)
        if number is not None:
            self._order.append((number, state))
        ready = self._ready(placed)
        while (fitting := [number for number in ready if self._fits_now(number, placed, state)]) != []:
            for number in fitting:
                placed |= 1 << number
                self._order.append((number, state))
            ready = self._ready(placed)
        self._note(placed)
        if self._is_hopeless(placed, state):
            return _Place(placed, state, iter(()), length)
        possible = [number for number in ready if self._operations[number].step(state) is not None]
        return _Place(placed, state, iter(self._worth_trying(possible)), length)

    def _note(self, placed: int) -> None:
        """Keep the order that explains the history up to the latest time, and no more than that."""
        missing = list(_bits(self._required & ~placed))
        until = min((self._operations[number].end for number in missing), default=math.inf)
        under_way = sum(-math.inf < self._operations[number].start <= until for number, _ in self._order)
        farthest = (until, under_way, -len(self._order))
        if farthest > self._farthest:
            self._farthest, self._longest = farthest, list(self._order)
            self._stuck = [number for number in missing if self._operations[number].start <= until]

    def _ready(self, placed: int) -> list[int]:
        """Return the operations that may come next, by their start."""
        found, earliest_end = [], math.inf
        missing = self._required & ~placed
        for number in self._by_start:
            each = self._operations[number]
            if each.start > earliest_end:
                break
            if placed >> number & 1 or self._before[number] & missing or self._later[number] & placed:
                continue
            found.append(number)
            if not each.optional:
                earliest_end = min(earliest_end, each.end)
        return found

    def _fits_now(self, number: int, placed: int, state: S) -> bool:
        """Whether placing it here takes nothing from any order that could follow."""
        each = self._operations[number]
        if not each.reads or each.optional or each.step(state) is None:
            return False
        # What may have come before it would be shut out.
        return all(self._past(other, state) for other in _bits(self._before[number] & self._optional & ~placed))

    def _past(self, number: int, state: S) -> bool:
        hopeless = self._operations[number].hopeless
        return hopeless is not None and hopeless(state)

    def _is_hopeless(self, placed: int, state: S) -> bool:
        return any(self._past(number, state) for number in _bits(self._required & ~placed))

    def _urgency(self, number: int) -> tuple[bool, float, float]:
        each = self._operations[number]
        return each.optional, each.rank, each.end

    def _worth_trying(self, possible: Sequence[int]) -> list[int]:
        """Leave out what another of its kind may stand in for: one after which as much has to come, or more."""
        chosen: list[int] = []
        operations, later = self._operations, self._later
        for number in sorted(possible, key=self._urgency):
            each = operations[number]
            if each.kind is None or not any(
                operations[other].kind == each.kind
                and operations[other].rank <= each.rank
                and not later[number] & ~later[other]
                and (each.optional or not operations[other].optional)
                for other in chosen
            ):
                chosen.append(number)
        return chosen


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
