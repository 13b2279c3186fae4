"""The one module plugin authors import: everything a plugin is made of, is given, sees and may raise.

A plugin is a `Registration`, found by the entry point group `agenthive.plugins`, whose `open` is an async context
manager: entering starts it, leaving stops it, and what it yields is a `Plugin`, its acts. `../../../plugins/README.md`
shows one in ten minutes.
"""

from __future__ import annotations

from agenthive_server.kernel.agent_verbs import NewAgent, ShownAgent
from agenthive_server.kernel.agents import Agent, AgentSpec, AgentState, RestartMode, RestartPolicy
from agenthive_server.kernel.assign import Candidate, Scorer
from agenthive_server.kernel.clock import Clock, ManualClock, SystemClock
from agenthive_server.kernel.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Draining,
    Exists,
    KernelError,
    NotFound,
    NotImplementedHere,
    Overloaded,
    PermissionDenied,
    Refused,
    StoreUnavailable,
    Unauthenticated,
    agent_not_found,
    task_not_found,
)
from agenthive_server.kernel.events import TERMINAL_EVENTS, Event, EventType, Severity
from agenthive_server.kernel.health import ComponentReport, Status
from agenthive_server.kernel.messages import Message, Urgency
from agenthive_server.kernel.ports import Query
from agenthive_server.kernel.proposals import (
    AMENDABLE,
    Completing,
    Delegating,
    HookState,
    Joining,
    Proposal,
    Spawning,
)
from agenthive_server.kernel.records import Payload
from agenthive_server.kernel.session_items import HostedAgent
from agenthive_server.kernel.sessions import RunnerCapacity
from agenthive_server.kernel.task_queries import Explanation, RoutingCandidate
from agenthive_server.kernel.task_verbs import NewTask
from agenthive_server.kernel.tasks import (
    ErrorClass,
    Progress,
    RetryPolicy,
    Strategy,
    Task,
    TaskError,
    TaskSpec,
    TaskState,
    Timeouts,
    Usage,
)
from agenthive_server.telemetry import Sample

from .bell import Bell
from .buckets import Buckets, LocalBuckets, Rate
from .calls import OK, Audience, Call, Interceptor, Load, Outcome, Policy, Stage, Transport
from .context import PluginContext, State, Stored, VitalsReading
from .metrics import Counter, Gauge, Histogram, PluginMetrics
from .ports import BackupReport, Verbs
from .registration import (
    SECRET,
    Background,
    Config,
    Failure,
    Handler,
    Hooks,
    Plugin,
    Registration,
    Service,
)

__all__ = [
    "AMENDABLE",
    "OK",
    "SECRET",
    "TERMINAL_EVENTS",
    "Agent",
    "AgentSpec",
    "AgentState",
    "Audience",
    "Background",
    "BackupReport",
    "BadRequest",
    "Bell",
    "Buckets",
    "Call",
    "Candidate",
    "Clock",
    "Completing",
    "ComponentReport",
    "Config",
    "Conflict",
    "Counter",
    "DeadlineExceeded",
    "Delegating",
    "Draining",
    "ErrorClass",
    "Event",
    "EventType",
    "Exists",
    "Explanation",
    "Failure",
    "Gauge",
    "Handler",
    "Histogram",
    "HookState",
    "Hooks",
    "HostedAgent",
    "Interceptor",
    "Joining",
    "KernelError",
    "Load",
    "LocalBuckets",
    "ManualClock",
    "Message",
    "NewAgent",
    "NewTask",
    "NotFound",
    "NotImplementedHere",
    "Outcome",
    "Overloaded",
    "Payload",
    "PermissionDenied",
    "Plugin",
    "PluginContext",
    "PluginMetrics",
    "Policy",
    "Progress",
    "Proposal",
    "Query",
    "Rate",
    "Refused",
    "Registration",
    "RestartMode",
    "RestartPolicy",
    "RetryPolicy",
    "RoutingCandidate",
    "RunnerCapacity",
    "Sample",
    "Scorer",
    "Service",
    "Severity",
    "ShownAgent",
    "Spawning",
    "Stage",
    "State",
    "Status",
    "StoreUnavailable",
    "Stored",
    "Strategy",
    "SystemClock",
    "Task",
    "TaskError",
    "TaskSpec",
    "TaskState",
    "Timeouts",
    "Transport",
    "Unauthenticated",
    "Urgency",
    "Usage",
    "Verbs",
    "VitalsReading",
    "agent_not_found",
    "task_not_found",
]
