"""Reports and replicas → protobuf."""

from __future__ import annotations

from typing import Final

from agenthive.v1 import orchestrator_service_pb2 as pb

from agenthive_server.kernel.health import ComponentReport, Status
from agenthive_server.kernel.members import Member, MemberState

from .values import set_span, set_time

STATUSES: Final = {status: pb.HealthStatus.Value(f"HEALTH_STATUS_{status.name}") for status in Status}
_STATES: Final = {
    MemberState.UNKNOWN: pb.REPLICA_STATE_UNSPECIFIED,
    MemberState.STARTING: pb.REPLICA_STATE_STARTING,
    MemberState.SERVING: pb.REPLICA_STATE_SERVING,
    MemberState.DRAINING: pb.REPLICA_STATE_DRAINING,
    MemberState.AWAY: pb.REPLICA_STATE_AWAY,
}


def component_message(component: ComponentReport) -> pb.ComponentHealth:
    """Return a component as callers see it."""
    message = pb.ComponentHealth(name=component.name, reason=component.reason, status=STATUSES[component.status])
    if component.since:
        set_time(message.since_time, component.since)
    if component.latency is not None:
        set_span(message.latency, component.latency)
    return message


def replica_message(member: Member) -> pb.Replica:
    """Return a replica as callers see it."""
    message = pb.Replica(
        replica_id=member.id,
        address=member.address,
        version=member.version,
        state=_STATES[member.state],
        status=STATUSES[member.status],
        troubles=map(component_message, member.troubles),
        sessions=member.sessions,
        agents_in_contact=member.agents,
        held_tasks=member.held_tasks,
        calls_per_second=member.calls_per_second,
        streams=member.streams,
        cpu_cores=member.cpu_cores,
        memory_bytes=member.memory_bytes,
        last_sequence=member.sequence,
        lag_events=member.lag_events,
        lag_groups=member.lag_groups,
        roles=member.roles,
    )
    if member.start_time:
        set_time(message.start_time, member.start_time)
    set_span(message.event_loop_lag, member.loop_lag)
    set_time(message.told_time, member.told_time)
    return message
