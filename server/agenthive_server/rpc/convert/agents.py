"""Agents: specifications in, agents out."""

from __future__ import annotations

from typing import Final, Protocol

from agenthive.v1 import agent_pb2 as pb

from agenthive_server.kernel.agents import REMOTE, Agent, AgentSpec, RestartMode, RestartPolicy
from agenthive_server.kernel.errors import BadRequest
from agenthive_server.rpc import validate

from .values import EnumTable, json_from, set_span, set_time

STATES: Final = EnumTable(pb.AgentState.DESCRIPTOR, "AGENT_STATE_")
_MODES: Final = EnumTable(pb.RestartMode.DESCRIPTOR, "RESTART_MODE_", RestartMode)

_USUAL: Final = AgentSpec()
_USUAL_RESTART: Final = _USUAL.restart
_START_TIMEOUTS: Final = {"container": 120.0}
_BUILT_IN: Final = ("remote", "process", "scripted")
_MAX_BYTES: Final = 2**60


class Shown(Protocol):
    """What follows from open leases and the session, as `AgentVerbs.shown` tells it."""

    @property
    def state(self) -> str:
        """A name of `AgentState` in the protos."""

    @property
    def open_leases(self) -> int:
        """Leases it holds."""

    @property
    def context_usage(self) -> float:
        """Share of its context window in use."""


def spec_from(message: pb.AgentSpec, at: str) -> AgentSpec:
    """Return what an agent should be; raises `BadRequest` naming the field under `at`."""
    driver, config = _driver(message, at)
    start_timeout = validate.span(message.start_timeout, f"{at}.start_timeout")
    stop_grace = validate.span(message.stop_grace, f"{at}.stop_grace")
    return AgentSpec(
        display_name=validate.text(message.display_name, f"{at}.display_name"),
        role=validate.text(message.role, f"{at}.role"),
        capabilities=validate.texts(message.capabilities, f"{at}.capabilities", validate.MAX_CAPABILITIES),
        slots=validate.or_default(message.slots, _USUAL.slots, 1, 1_000, f"{at}.slots"),
        labels=validate.labels(message.labels, f"{at}.labels"),
        weight=validate.real_or_default(message.weight, _USUAL.weight, 0.001, 1_000.0, f"{at}.weight"),
        restart=_restart(message.restart_policy, f"{at}.restart_policy")
        if message.HasField("restart_policy")
        else _USUAL_RESTART,
        stop_grace=stop_grace if message.HasField("stop_grace") else _USUAL.stop_grace,
        start_timeout=start_timeout or _START_TIMEOUTS.get(driver, _USUAL.start_timeout),
        runner_labels=validate.labels(message.runner_labels, f"{at}.runner_labels"),
        driver=driver,
        driver_config=config,
    )


def names_driver(message: pb.AgentSpec) -> bool:
    """Whether a specification says what starts the agent."""
    return message.WhichOneof("driver") is not None


def _restart(message: pb.RestartPolicy, at: str) -> RestartPolicy:
    usual, span = _USUAL_RESTART, validate.span
    return RestartPolicy(
        mode=_MODES.read(message.mode, f"{at}.mode", usual.mode),
        initial_interval=span(message.initial_interval, f"{at}.initial_interval") or usual.initial_interval,
        backoff_coefficient=validate.real_or_default(
            message.backoff_coefficient, usual.backoff_coefficient, 1.0, 1_000.0, f"{at}.backoff_coefficient"
        ),
        maximum_interval=span(message.maximum_interval, f"{at}.maximum_interval") or usual.maximum_interval,
        maximum_restarts=validate.or_default(
            message.maximum_restarts, usual.maximum_restarts, 1, 1_000, f"{at}.maximum_restarts"
        ),
        window=span(message.window, f"{at}.window") or usual.window,
    )


def _driver(message: pb.AgentSpec, at: str) -> tuple[str, bytes]:
    """Return the driver's name and its configuration as serialized bytes of the message in the oneof."""
    kind = message.WhichOneof("driver")
    if kind is None or kind == REMOTE:
        return REMOTE, b""
    if kind == "process":
        _check_process(message.process, f"{at}.process")
        return kind, message.process.SerializeToString(deterministic=True)
    if kind == "scripted":
        _check_scripted(message.scripted, f"{at}.scripted")
        return kind, message.scripted.SerializeToString(deterministic=True)
    name = validate.required_id(message.custom.name, f"{at}.custom.name")
    if name in _BUILT_IN:
        raise BadRequest(f"the driver {name} has a field of its own", field=f"{at}.custom.name")
    json_from(message.custom.config, f"{at}.custom.config")
    return name, message.custom.SerializeToString(deterministic=True)


def _check_process(message: pb.ProcessDriver, at: str) -> None:
    if not message.command:
        raise BadRequest("required", field=f"{at}.command")
    validate.count(message.command, f"{at}.command", validate.MAX_COUNT)
    validate.required_text(message.command[0], f"{at}.command[0]", validate.LONG_TEXT)
    for n, word in enumerate(message.command):
        validate.text(word, f"{at}.command[{n}]", 32 * 1024)
    if message.mode not in pb.ProcessMode.values():
        raise BadRequest(f"{message.mode} is no value of this enum", field=f"{at}.mode")
    validate.count(message.environment, f"{at}.environment", validate.MAX_COUNT)
    for n, pair in enumerate(message.environment):
        validate.variable(pair.name, f"{at}.environment[{n}].name")
        validate.text(pair.value, f"{at}.environment[{n}].value", 32 * 1024)
    validate.text(message.working_directory, f"{at}.working_directory", validate.LONG_TEXT)
    for name in ("memory_bytes", "cpu_seconds", "open_files", "file_bytes"):
        validate.between(getattr(message.limits, name), 0, _MAX_BYTES, f"{at}.limits.{name}")


def _check_scripted(message: pb.ScriptedDriver, at: str) -> None:
    for name in ("ready_after", "task_time", "exit_after"):
        validate.span(getattr(message, name), f"{at}.{name}")
    validate.text(message.start_failure, f"{at}.start_failure", validate.LONG_TEXT)
    validate.text(message.task_failure, f"{at}.task_failure", validate.LONG_TEXT)
    validate.between(message.exit_code, 0, 255, f"{at}.exit_code")


def fill_agent(message: pb.Agent, agent: Agent, shown: Shown) -> None:
    """Write an agent."""
    message.agent_id = agent.id
    message.namespace = agent.namespace
    message.revision = agent.revision
    fill_spec(message.spec, agent.spec)
    message.state = STATES.numbers[shown.state]  # type: ignore[assignment]  # the stubs want the enum's own type
    message.state_reason = agent.reason
    message.session_id = agent.session_id
    message.runner_session_id = agent.runner_session_id
    message.open_lease_count = shown.open_leases
    message.restart_count = len(agent.restarts)
    message.context_usage = shown.context_usage
    set_time(message.create_time, agent.create_time)
    set_time(message.update_time, agent.update_time)
    if agent.next_start_time:
        set_time(message.next_start_time, agent.next_start_time)


def fill_spec(message: pb.AgentSpec, spec: AgentSpec) -> None:
    """Write what an agent should be."""
    message.SetInParent()
    message.display_name = spec.display_name
    message.role = spec.role
    message.capabilities.extend(spec.capabilities)
    message.slots = spec.slots
    message.labels.update(spec.labels)
    message.weight = spec.weight
    if spec.restart != _USUAL_RESTART:
        _fill_restart(message.restart_policy, spec.restart)
    set_span(message.stop_grace, spec.stop_grace)
    set_span(message.start_timeout, spec.start_timeout)
    message.runner_labels.update(spec.runner_labels)
    holder = getattr(message, spec.driver if spec.driver in _BUILT_IN else "custom")
    holder.SetInParent()
    holder.MergeFromString(spec.driver_config)


def _fill_restart(message: pb.RestartPolicy, policy: RestartPolicy) -> None:
    message.mode = _MODES.numbers[policy.mode]  # type: ignore[assignment]  # as above
    set_span(message.initial_interval, policy.initial_interval)
    message.backoff_coefficient = policy.backoff_coefficient
    set_span(message.maximum_interval, policy.maximum_interval)
    message.maximum_restarts = policy.maximum_restarts
    set_span(message.window, policy.window)
