"""What a hook is shown of a decision that is about to be committed, and what it may do about it.

A verb makes one of these each time it decides, hands it to every hook in turn, and goes on with what is left in it. A
verb runs again after a conflict and then makes a new one: a hook must do nothing but read and write here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from .agents import AgentSpec
from .assign import Scorer
from .bounds import check_fields, check_record
from .errors import Refused
from .records import Payload, evolved
from .session_items import HostedAgent
from .sessions import RunnerCapacity
from .state import check_key, check_value
from .tasks import Task, TaskSpec


class PluginRows(Protocol):
    """The state of all plugins as one decision sees it; the kernel's `View` stands behind it."""

    def read(self, plugin: str, key: str) -> bytes | None:
        """Return a value; raises `NotLoaded`, which hooks let pass, when it has to be read first."""

    def write(self, plugin: str, key: str, value: bytes | None) -> None:
        """Set a value in the change set of this decision, or remove it (None)."""


class HookState:
    """The state of the plugin whose hook runs, in the change set of the decision.

    What is put here is committed together with the decision, or not at all. A hook that fails leaves nothing.
    """

    __slots__ = ("_plugin", "_rows", "_staged")

    def __init__(self, rows: PluginRows, plugin: str) -> None:
        self._rows = rows
        self._plugin = plugin
        self._staged: dict[str, bytes | None] = {}

    def get(self, key: str) -> bytes | None:
        """Return a value, None where there is none."""
        if key in self._staged:
            return self._staged[key]
        return self._rows.read(self._plugin, key)

    def put(self, key: str, value: bytes) -> None:
        """Set a value; raises `ValueError` when key or value are too long."""
        check_key(key)
        check_value(value)
        self._staged[key] = value

    def delete(self, key: str) -> None:
        """Remove a value; one that is not there stays away."""
        self._staged[key] = None

    def settle(self) -> None:
        """Hand over what was staged; called by the host when the hook has returned."""
        for key, value in self._staged.items():
            self._rows.write(self._plugin, key, value)
        self._staged.clear()


class Turn(NamedTuple):
    """Whose hook is asked, and what it may amend."""

    plugin: str = ""
    amendable: frozenset[str] = frozenset()


NOBODYS: Final = Turn()


@dataclass(slots=True, eq=False, kw_only=True)
class Proposal:
    """A decision before it is committed. `principal` is who asked for it, empty for the server itself."""

    namespace: str
    principal: str = ""
    now: float = 0.0
    # Set by the kernel.
    rows: PluginRows | None = field(default=None, repr=False)
    # Set by the host before each hook.
    turn: Turn = NOBODYS
    # The state of the plugin whose turn it is, once its hook has asked for it.
    opened: HookState | None = field(default=None, repr=False)

    @property
    def plugin(self) -> str:
        """The plugin whose turn it is."""
        return self.turn.plugin

    @property
    def state(self) -> HookState:
        """The state of the plugin whose turn it is."""
        if self.opened is None:
            if self.rows is None:
                raise RuntimeError("this proposal has no state")
            self.opened = HookState(self.rows, self.plugin)
        return self.opened

    def leave(self) -> None:
        """Take over what the hook wrote; the host calls this when it has returned, and not when it failed."""
        if self.opened is not None:
            self.opened.settle()
            self.opened = None

    def present(self) -> Any:
        """Return what a hook may change, as it is; the host calls this before it asks one."""
        return None

    def undo(self, kept: Any) -> None:
        """Forget what the hook did; the host calls this when it has failed, with what was `present` before."""
        self.opened = None
        self._take_back(kept)

    def _take_back(self, kept: Any) -> None:
        """Put back what `present` returned."""

    def refuse(self, why: str, **metadata: str) -> Refused:
        """Return the error that vetoes the decision: `raise proposal.refuse("…")`. Any `KernelError` does, too."""
        return Refused(why, reason="VETOED", metadata={"plugin": self.plugin, **metadata})

    def _may_amend(self, fields: Iterable[str]) -> None:
        undeclared = sorted(set(fields) - self.turn.amendable)
        if undeclared:
            raise ValueError(f"plugin {self.plugin} amends {', '.join(undeclared)}, which it has not declared")


@dataclass(slots=True, eq=False, kw_only=True)
class Spawning(Proposal):
    """`before_spawn`: an agent is about to be recorded, by a caller or because its worker registers it.

    Also asked when a worker introduces an agent that is known with another specification, so that this is amended as
    the first one was; nothing is spawned then, and what the hook puts into its state is dropped.

    `amend` may change: display_name, role, capabilities, slots, labels, weight, restart, stop_grace, start_timeout,
    runner_labels, driver_config.
    """

    agent_id: str
    spec: AgentSpec

    def amend(self, **fields: Any) -> None:
        """Change fields of the specification; raises `ValueError` for what was not declared or is out of bounds."""
        self._may_amend(fields)
        check_fields(type(self.spec), fields)
        self.spec = evolved(self.spec, fields)

    def present(self) -> AgentSpec:
        return self.spec

    def _take_back(self, kept: AgentSpec) -> None:
        self.spec = kept


@dataclass(slots=True, eq=False, kw_only=True)
class Delegating(Proposal):
    """`before_delegate`: a task is about to be accepted.

    `amend` may change: input, title, priority, fairness_key, fairness_weight, required_capabilities, role, agent_id,
    affinity_key, labels, retry, timeouts, exclusive, requires_review, strategy, children_policy.
    """

    task_id: str
    spec: TaskSpec
    ancestors: tuple[str, ...] = ()

    def amend(self, **fields: Any) -> None:
        """Change fields of the specification; raises `ValueError` for what was not declared or is out of bounds."""
        self._may_amend(fields)
        check_fields(type(self.spec), fields)
        self.spec = evolved(self.spec, fields)

    def present(self) -> TaskSpec:
        return self.spec

    def _take_back(self, kept: TaskSpec) -> None:
        self.spec = kept


@dataclass(slots=True, eq=False, kw_only=True)
class Completing(Proposal):
    """`before_complete`: the accepted attempt reports its result.

    `amend` may change: result. `rework(comment)` sends the result back: the task is QUEUED again, the comment is among
    the answers its next attempt is given. Sending back counts as an attempt; when the retry policy allows no more, the
    task ends as FAILED with class INVALID and the comment.
    """

    task: Task
    result: Payload
    agent_id: str = ""
    # Who wants it done again, and why; the first one that says so is heard.
    sent_back_by: str = ""
    comment: str = ""

    def amend(self, *, result: Payload) -> None:
        """Put another result in its place."""
        self._may_amend(("result",))
        check_record(result, Payload)
        self.result = result

    def rework(self, comment: str) -> None:
        """Send the result back for another attempt."""
        if not self.sent_back_by:
            self.sent_back_by = self.plugin
            self.comment = comment

    def present(self) -> tuple[Payload, str, str]:
        return self.result, self.sent_back_by, self.comment

    def _take_back(self, kept: tuple[Payload, str, str]) -> None:
        self.result, self.sent_back_by, self.comment = kept


@dataclass(slots=True, eq=False, kw_only=True)
class Joining(Proposal):
    """`before_join`: a worker is about to open or resume a session with these agents.

    `credential` and `join_token` are what its Hello holds. A hook refuses by raising a `KernelError`; `issue` has a
    credential sent in the Welcome. Both happen in the change set of the session: a single-use token that is struck off
    in `state` here cannot be used twice. A hook that knows better who the worker is sets `principal`; a session is
    resumed, and replaced, by the principal that opened it only.

    Also asked, with `reported`, when an open session brings one more agent along that it was not told to start;
    `principal` is then the session's, and there is no credential.
    """

    agents: tuple[HostedAgent, ...]
    # The session it wants to resume; empty for a new one.
    session_id: str = ""
    # The principal that opened the session it wants to resume.
    session_principal: str = ""
    join_token: str = field(default="", repr=False)
    credential: str = field(default="", repr=False)
    runner: RunnerCapacity | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    # What the interceptors noted on the call: `call.notes`.
    notes: Mapping[str, Any] = field(default_factory=dict)
    reported: bool = False
    issued: str = field(default="", repr=False)

    def issue(self, credential: str) -> None:
        """Have a credential sent in the Welcome. The hook may run again: the last one counts."""
        self.issued = credential

    def present(self) -> tuple[str, str]:
        return self.issued, self.principal

    def _take_back(self, kept: tuple[str, str]) -> None:
        self.issued, self.principal = kept


@dataclass(frozen=True, slots=True)
class HookSet:
    """The hooks in effect, each list in order; swapped as a whole while the server runs.

    Each is already wrapped by the host: it counts, keeps the plugin's failure from the verb, and has its turn marked.
    It raises `KernelError` (the veto), `NotLoaded`, and nothing else. The kernel only calls them in order. An empty
    tuple costs one test.
    """

    before_spawn: tuple[Callable[[Spawning], None], ...] = ()
    before_delegate: tuple[Callable[[Delegating], None], ...] = ()
    before_complete: tuple[Callable[[Completing], None], ...] = ()
    before_join: tuple[Callable[[Joining], None], ...] = ()
    # Added up for each candidate; higher is better. They see no state.
    score_agents: tuple[Scorer, ...] = ()


NO_HOOKS = HookSet()

AMENDABLE: Mapping[str, frozenset[str]] = {
    "before_spawn": frozenset(
        {
            "display_name",
            "role",
            "capabilities",
            "slots",
            "labels",
            "weight",
            "restart",
            "stop_grace",
            "start_timeout",
            "runner_labels",
            "driver_config",
        }
    ),
    "before_delegate": frozenset(
        {
            "input",
            "title",
            "priority",
            "fairness_key",
            "fairness_weight",
            "required_capabilities",
            "role",
            "agent_id",
            "affinity_key",
            "labels",
            "retry",
            "timeouts",
            "exclusive",
            "requires_review",
            "strategy",
            "children_policy",
        }
    ),
    "before_complete": frozenset({"result"}),
}
"""What a plugin may declare that its hooks amend."""
