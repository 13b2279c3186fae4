"""Events as one line each for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agenthive.cli import text
from agenthive.cli.tables import short_id
from agenthive.cli.values import short_name
from agenthive.v1 import agent_pb2, event_pb2, task_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message
    from rich.text import Text

    from agenthive.v1.event_pb2 import Event

_SEVERITY_STYLES: Final = {event_pb2.SEVERITY_WARNING: "yellow", event_pb2.SEVERITY_ERROR: "bold red"}
_FAMILY_STYLES: Final = {"agent": "magenta", "session": "blue", "task": "cyan", "message": "green", "plugin": "yellow"}
_GOOD: Final = frozenset({"task_succeeded", "agent_ready"})
_TYPE_WIDTH: Final = 21
_FOR_SCRIPTS: Final = frozenset({"session_id", "runner_session_id", "lease_epoch", "session_epoch"})


def fact_of(event: Event) -> str:
    """Return the name of the fact: `task_succeeded`; `unknown` for one this client does not know."""
    return event.WhichOneof("fact") or "unknown"


def subject(event: Event, *, narrow: bool = False) -> str:
    """Return what an event is about: the task, the agent, or else the session."""
    task = short_id(event.task_id, narrow=narrow)
    if task and event.agent_id:
        return f"{task} @{event.agent_id}"
    return task or event.agent_id or short_id(event.session_id, narrow=narrow)


def what(event: Event) -> str:
    """Return what an event says beyond its type, on one line."""
    fact = fact_of(event)
    if fact == "unknown":
        return ""
    said = getattr(event, fact)
    return text.clean(_SPECIAL[fact](said) if fact in _SPECIAL else _fields(said))


def event_line(event: Event, *, width: int = 0) -> Text:
    """Return an event as one line, cut to `width` when it is given; a narrow one has the beginnings of ids."""
    from rich.text import Text

    fact = fact_of(event)
    line = Text(no_wrap=True, overflow="ellipsis")
    narrow = 0 < width < 100
    line.append(f"{text.clock_time(event.time):12}"[: 8 if narrow else 12], style="dim")
    line.append(f" {event.sequence or '-':>6} ", style="dim")
    line.append(f"{fact.upper():<{_TYPE_WIDTH}} ", style=_style(event, fact))
    line.append(text.clean(subject(event, narrow=narrow)))
    if said := what(event):
        line.append("  " + said, style="dim" if fact == "task_output" else "")
    if width:
        line.truncate(width, overflow="ellipsis")
    return line


def _style(event: Event, fact: str) -> str:
    if event.severity in _SEVERITY_STYLES:
        return _SEVERITY_STYLES[event.severity]
    return "bold green" if fact in _GOOD else _FAMILY_STYLES.get(fact.partition("_")[0], "")


def _fields(said: Message) -> str:
    parts: list[str] = []
    for field, value in said.ListFields():
        if field.name in _FOR_SCRIPTS:
            continue
        if field.enum_type is not None:
            parts.append(f"{field.name}={short_name(field.enum_type, value)}")
        elif field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
            parts.append(f"{field.name}={text.clock_time(value)}")
        else:
            parts.append(f"{value}" if field.name in ("reason", "question", "comment") else f"{field.name}={value}")
    return " ".join(parts)


def _error(said: event_pb2.TaskFailed | event_pb2.TaskRetryScheduled) -> str:
    from agenthive.cli.task_views import error_text

    return f"attempt={said.attempt} {error_text(said.error)}".strip()


def _retry(said: event_pb2.TaskRetryScheduled) -> str:
    return f"{_error(said)}, next at {text.clock_time(said.retry_time)}"


def _plugin_failed(said: event_pb2.PluginFailed) -> str:
    times = f" ({said.count} times)" if said.count > 1 else ""
    return f"{said.plugin}: {said.act}: {said.error}{times}{', switched off' if said.switched_off else ''}"


def _plugin_reported(said: event_pb2.PluginReported) -> str:
    about = f" {said.subject}" if said.subject else ""
    return f"{said.plugin}: {said.kind}{about}: {said.text}"


def _output(said: event_pb2.TaskOutput) -> str:
    return said.data.decode(errors="replace").rstrip()


def _progress(said: event_pb2.TaskProgressed) -> str:
    return f"{said.fraction:.0%} {said.text}".strip()


def _gap(said: event_pb2.OutputGap) -> str:
    end = said.to_offset or "?"
    return f"attempt={said.attempt} bytes {said.from_offset} to {end} are not available"


def _agent(said: event_pb2.AgentSnapshot) -> str:
    agent = said.agent
    state = short_name(agent_pb2.AgentState.DESCRIPTOR, agent.state)
    role = f" role={agent.spec.role}" if agent.spec.role else ""
    return f"{state} slots={agent.open_lease_count}/{agent.spec.slots or 1}{role}"


def _task(said: event_pb2.TaskSnapshot) -> str:
    task = said.task
    state = short_name(task_pb2.TaskState.DESCRIPTOR, task.state)
    return f"{state} type={task.spec.type} priority={task.spec.priority or 3}"


_SPECIAL: Final[Mapping[str, Callable[..., str]]] = {
    "task_failed": _error,
    "task_retry_scheduled": _retry,
    "task_output": _output,
    "task_progressed": _progress,
    "output_gap": _gap,
    "agent_snapshot": _agent,
    "plugin_failed": _plugin_failed,
    "plugin_reported": _plugin_reported,
    "task_snapshot": _task,
}
