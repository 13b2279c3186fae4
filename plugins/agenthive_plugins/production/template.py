"""What the agents of a pool are: from the message callers send to the kernel's specification, and back.

The bounds are those of SpawnAgent; whatever else may be wrong with a driver's settings shows when the agent starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agenthive.v1 import agent_pb2 as pb
from agenthive_server.plugin.api import AgentSpec, BadRequest, RestartMode, RestartPolicy

from .fields import real, required_id, set_span, span, text

_BUILT_IN: Final = ("remote", "process", "scripted")
_USUAL: Final = AgentSpec()
_MODES: Final = {
    pb.RESTART_MODE_UNSPECIFIED: RestartMode.ON_FAILURE,
    pb.RESTART_MODE_NEVER: RestartMode.NEVER,
    pb.RESTART_MODE_ON_FAILURE: RestartMode.ON_FAILURE,
    pb.RESTART_MODE_ALWAYS: RestartMode.ALWAYS,
}


def template_from(message: pb.AgentSpec, at: str) -> AgentSpec:
    """Return what an agent should be; raises `BadRequest`. A pool starts its agents: the remote driver starts none."""
    driver, config = _driver(message, at)
    return AgentSpec(
        display_name=text(message.display_name, f"{at}.display_name", 255),
        role=text(message.role, f"{at}.role", 255),
        capabilities=_capabilities(message, f"{at}.capabilities"),
        slots=int(real(message.slots, 0, 1_000, f"{at}.slots")) or 1,
        labels=_labels(message.labels.items(), f"{at}.labels"),
        weight=real(message.weight, 0.001, 1_000.0, f"{at}.weight") if message.weight else _USUAL.weight,
        restart=_restart(message.restart_policy, f"{at}.restart_policy"),
        stop_grace=_or(message, "stop_grace", at, _USUAL.stop_grace),
        start_timeout=span(message.start_timeout, f"{at}.start_timeout") or _USUAL.start_timeout,
        runner_labels=_labels(message.runner_labels.items(), f"{at}.runner_labels"),
        driver=driver,
        driver_config=config,
    )


def _or(message: pb.AgentSpec, name: str, at: str, default: float) -> float:
    return span(getattr(message, name), f"{at}.{name}") if message.HasField(name) else default  # type: ignore[arg-type]  # one of its fields


def _capabilities(message: pb.AgentSpec, at: str) -> tuple[str, ...]:
    if len(message.capabilities) > 64:
        raise BadRequest("more than 64", field=at)
    if not all(message.capabilities):
        raise BadRequest("one of them is empty", field=at)
    return tuple(text(each, f"{at}[{n}]", 255) for n, each in enumerate(message.capabilities))


def _labels(pairs: Iterable[tuple[str, str]], at: str) -> dict[str, str]:
    labels = dict(pairs)
    if len(labels) > 60:
        raise BadRequest("more than 60", field=at)
    for key, value in labels.items():
        if not key or len(key.encode()) > 255 or len(value.encode()) > 255 or "\x00" in key + value:
            raise BadRequest("a key is empty, or a key or value has more than 255 bytes or a NUL", field=at)
    return labels


def _restart(message: pb.RestartPolicy, at: str) -> RestartPolicy:
    usual = RestartPolicy()
    if message.mode not in _MODES:
        raise BadRequest(f"{message.mode} is no value of this enum", field=f"{at}.mode")
    backoff = message.backoff_coefficient
    return RestartPolicy(
        mode=_MODES[message.mode],
        initial_interval=span(message.initial_interval, f"{at}.initial_interval") or usual.initial_interval,
        backoff_coefficient=real(backoff, 1.0, 1_000.0, f"{at}.backoff_coefficient") if backoff else 2.0,
        maximum_interval=span(message.maximum_interval, f"{at}.maximum_interval") or usual.maximum_interval,
        maximum_restarts=int(real(message.maximum_restarts, 0, 1_000, f"{at}.maximum_restarts"))
        or usual.maximum_restarts,
        window=span(message.window, f"{at}.window") or usual.window,
    )


def _driver(message: pb.AgentSpec, at: str) -> tuple[str, bytes]:
    kind = message.WhichOneof("driver")
    if kind is None or kind == "remote":
        raise BadRequest("a driver that starts agents is needed", field=f"{at}.driver")
    if kind == "process":
        if not message.process.command or not message.process.command[0]:
            raise BadRequest("required", field=f"{at}.process.command")
        return kind, message.process.SerializeToString(deterministic=True)
    if kind == "scripted":
        return kind, message.scripted.SerializeToString(deterministic=True)
    name = required_id(message.custom.name, f"{at}.custom.name")
    if name in _BUILT_IN:
        raise BadRequest(f"the driver {name} has a field of its own", field=f"{at}.custom.name")
    return name, message.custom.SerializeToString(deterministic=True)


def fill_template(message: pb.AgentSpec, spec: AgentSpec) -> None:
    """Write what an agent should be."""
    message.display_name = spec.display_name
    message.role = spec.role
    message.capabilities.extend(spec.capabilities)
    message.slots = spec.slots
    message.labels.update(spec.labels)
    message.weight = spec.weight
    if spec.restart != _USUAL.restart:
        _fill_restart(message.restart_policy, spec.restart)
    set_span(message.stop_grace, spec.stop_grace)
    set_span(message.start_timeout, spec.start_timeout)
    message.runner_labels.update(spec.runner_labels)
    holder = getattr(message, spec.driver if spec.driver in _BUILT_IN else "custom")
    holder.SetInParent()
    holder.MergeFromString(spec.driver_config)


def _fill_restart(message: pb.RestartPolicy, policy: RestartPolicy) -> None:
    message.mode = pb.RestartMode.Value(f"RESTART_MODE_{policy.mode}")
    set_span(message.initial_interval, policy.initial_interval)
    message.backoff_coefficient = policy.backoff_coefficient
    set_span(message.maximum_interval, policy.maximum_interval)
    message.maximum_restarts = policy.maximum_restarts
    set_span(message.window, policy.window)
