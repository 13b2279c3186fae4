"""One row per RPC: who it is for, how long it may take, under which bound it falls, whether a repeat is harmless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agenthive_server.plugin.api import Audience, Load, Policy

_LOOK: Final = Policy(audience=Audience.VIEWER, idempotent=True)
_WAIT: Final = Policy(audience=Audience.VIEWER, idempotent=True, longest_deadline=86_400.0, brief=False)
_ACT: Final = Policy(audience=Audience.OPERATOR)
_ACT_AND_WAIT: Final = Policy(audience=Audience.OPERATOR, longest_deadline=86_400.0)
# Not brief: such a call goes through the very plugin it switches off.
_SWITCH: Final = Policy(audience=Audience.ADMIN, brief=False)
_SPEAK: Final = Policy(audience=Audience.AGENT)
_PROBE: Final = Policy(audience=Audience.ANYONE, load=Load.FREE, idempotent=True)


def _stream(audience: Audience, load: Load = Load.STREAM, *, idempotent: bool = True) -> Policy:
    return Policy(audience=audience, load=load, default_deadline=0.0, longest_deadline=0.0, idempotent=idempotent)


_ORCHESTRATOR: Final[dict[str, Policy]] = {
    # A mutating call without a request id is not idempotent; with one it is, whatever this column says.
    "SpawnAgent": _ACT,
    "SpawnAgents": _ACT,
    "GetAgent": _LOOK,
    "ListAgents": _LOOK,
    "UpdateAgent": _ACT,
    "ShutdownAgent": _ACT,
    "RestartAgent": _ACT,
    "SleepAgent": _ACT,
    "WakeAgent": _ACT,
    "DelegateTask": _ACT_AND_WAIT,
    "DelegateTasks": _ACT,
    "GetTask": _LOOK,
    "WaitTask": _WAIT,
    "ListTasks": _LOOK,
    "CancelTask": _ACT,
    "RetryTask": _ACT,
    "PauseTask": _ACT,
    "ResumeTask": _ACT,
    "RespondToTask": _ACT,
    "ReviewTask": _ACT,
    "ExplainRouting": _LOOK,
    "StreamEvents": _stream(Audience.VIEWER),
    "HealthCheck": Policy(audience=Audience.VIEWER, load=Load.FREE, idempotent=True),
    "GetMetrics": Policy(audience=Audience.VIEWER, load=Load.FREE, idempotent=True),
}

_SERVICES: Final[dict[str, dict[str, Policy]]] = {
    "agenthive.v1.OrchestratorService": _ORCHESTRATOR,
    "agenthive.v1.WorkerService": {
        "Connect": _stream(Audience.AGENT, Load.SESSION, idempotent=False),
    },
    "agenthive.v1.MessagingService": {
        "SendMessage": _SPEAK,
        "BroadcastMessage": _SPEAK,
        "StreamMessages": _stream(Audience.AGENT),
        "AcknowledgeMessages": Policy(audience=Audience.AGENT, idempotent=True),
    },
    "agenthive.v1.BlobService": {
        "UploadBlob": _stream(Audience.AGENT),
        "DownloadBlob": _stream(Audience.VIEWER),
    },
    "agenthive.v1.PluginService": {
        "ListPlugins": _LOOK,
        "GetPlugin": _LOOK,
        "EnablePlugin": _SWITCH,
        "DisablePlugin": _SWITCH,
        "ConfigurePlugin": _SWITCH,
    },
    "grpc.health.v1.Health": {
        "Check": _PROBE,
        "List": _PROBE,
        "Watch": _stream(Audience.ANYONE, Load.FREE),
    },
    "grpc.reflection.v1.ServerReflection": {
        "ServerReflectionInfo": _stream(Audience.ANYONE),
    },
    "grpc.reflection.v1alpha.ServerReflection": {
        "ServerReflectionInfo": _stream(Audience.ANYONE),
    },
}

POLICIES: Final[Mapping[str, Policy]] = {
    f"/{service}/{method}": policy for service, methods in _SERVICES.items() for method, policy in methods.items()
}
"""Policies by full method name. An RPC without a row cannot be called."""
