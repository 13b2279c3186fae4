"""What a person changes of a pool: laid over the policy that is there, everything else stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agenthive.cli.failures import ExitCode, Failure
from agenthive.cli.service_calls import set_span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agenthive.v1.agent_pb2 import AgentSpec
    from agenthive.v1.production_service_pb2 import ScalingPolicy


@dataclass(frozen=True, kw_only=True)
class PoolChanges:
    """What was said; None and empty: nothing."""

    command: Sequence[str]
    role: str
    capabilities: Sequence[str]
    slots: int | None
    labels: Mapping[str, str]
    least: int | None
    most: int | None
    grow_above: float | None
    shrink_below: float | None
    cooldown: float | None
    quiet: float | None
    drain: float | None
    enabled: bool | None

    def refuse_without_command(self, pool_id: str) -> None:
        """Raise Failure when a new pool would have nothing to run."""
        if not self.command:
            text = f"there is no pool {pool_id} to change; a new one wants a command after --"
            raise Failure(text, ExitCode.NOT_FOUND, "NOT_FOUND")

    def apply(self, policy: ScalingPolicy) -> None:
        """Change a policy."""
        self._apply_template(policy.template)
        if self.least is not None:
            policy.min_agents = self.least
            policy.allow_empty = self.least == 0
        if self.most is not None:
            policy.max_agents = self.most
        if self.grow_above is not None:
            policy.scale_up_threshold = self.grow_above
        if self.shrink_below is not None:
            policy.scale_down_threshold = self.shrink_below
        if self.enabled is not None:
            policy.disabled = not self.enabled
        spans = ((policy, "cooldown", self.cooldown), (policy, "stabilization", self.quiet))
        for owner, name, length in (*spans, (policy, "drain_grace", self.drain)):
            if length is not None:
                set_span(getattr(owner, name), length)

    def _apply_template(self, template: AgentSpec) -> None:
        template.SetInParent()
        template.role = self.role or template.role
        template.slots = self.slots or template.slots
        template.labels.update(self.labels)
        if self.capabilities:
            template.capabilities[:] = self.capabilities
        if self.command:
            from agenthive.v1 import agent_pb2

            template.process.command[:] = self.command
            template.process.mode = template.process.mode or agent_pb2.PROCESS_MODE_TASK
