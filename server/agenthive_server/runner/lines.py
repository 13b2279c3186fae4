r"""The line protocol: what a process agent says on its standard output.

A line that is a JSON object with exactly one of these keys speaks to the control plane. Keys in brackets may
accompany it; a line with any other key, or with a value of another kind, is output like every other line, so that
ordinary JSON logs are not taken for something they are not.

| line | meaning |
|---|---|
| `{"progress": 0.5}` [`text`] | how far it is, 0 to 1, and what it is doing |
| `{"output": "…"}` | output, as if it had been printed |
| `{"checkpoint": "…"}` | handed to the next attempt as `checkpoint`; at most 64 KiB |
| `{"usage": {"input_tokens": 1, "output_tokens": 1, "cost_micros": 1}}` | consumption so far; each may be left out |
| `{"context_usage": 0.5}` | share of the context window in use, 0 to 1 |
| `{"result": …}` [`content_type`] | it is done: any JSON value, or a string of that type; the first one counts |
| `{"error": {"class": "TOOL", "reason": "…", "message": "…", "next_retry_delay": 1}}` | it failed; all optional |
| `{"ready": true}` | AGENT mode only: it takes tasks from now on |

Every line may carry `task_id` and `lease_epoch`. In TASK mode they are not needed. In AGENT mode `task_id` is needed
when more than one task is held, and a line with a `lease_epoch` that is over is dropped.

`class` is one of INFRA, RATE_LIMITED, QUOTA, CONTEXT_FULL, TOOL (the default), TIMEOUT, INVALID and POLICY;
`reason` a word in capitals; `next_retry_delay` in seconds. A line ends with `\n`, also with `\r\n`. Longer than 1 MiB,
it is output. Output need not be text, nor end with a newline.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agenthive.v1 import task_pb2

from agenthive_server.runner.driver import CHECKPOINT_BYTES

LINE_BYTES = 1024 * 1024
_COMPANIONS = {"progress": {"text"}, "result": {"content_type"}}
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
_LONGEST_DELAY = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Said:
    """One line that speaks to the control plane: the key, its value, and what accompanied it."""

    key: str
    value: Any
    text: str | None = None
    task_id: str = ""
    lease_epoch: int = 0


class LineReader:
    """Cuts a stream into lines of the protocol and output. Never holds more than one line of 1 MiB."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._passing = False

    def feed(self, content: bytes) -> Iterator[Said | bytes]:
        """What can be told by now, in order: lines of the protocol, and output in between, joined."""
        output = bytearray()
        for line in _lines(content):
            yield from self._take(line, output)
        if output:
            yield bytes(output)

    def close(self) -> Iterator[Said | bytes]:
        """What the end of the stream makes of the rest."""
        rest, self._rest = bytes(self._rest), bytearray()
        if rest:
            yield parse_line(rest) or rest

    def _take(self, line: bytes, output: bytearray) -> Iterator[Said | bytes]:
        ended = line.endswith(b"\n")
        if self._passing:
            output += line
            self._passing = not ended
            return
        self._rest += line
        if ended:
            whole, self._rest = bytes(self._rest), bytearray()
            said = parse_line(whole)
            if said is None:
                output += whole
                return
            if output:
                yield bytes(output)
                output.clear()
            yield said
        elif len(self._rest) > LINE_BYTES or self._rest.lstrip()[:1] not in b"{":
            output += self._rest  # it cannot become a line of the protocol: nobody has to wait for its end
            self._rest.clear()
            self._passing = True


def _lines(content: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def parse_line(line: bytes) -> Said | None:
    """The line as something said; None when it is output."""
    text = line.strip()
    if not (text.startswith(b"{") and text.endswith(b"}")) or len(line) > LINE_BYTES:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _said(value)


def _said(line: dict[str, Any]) -> Said | None:
    task_id, lease_epoch = line.pop("task_id", ""), line.pop("lease_epoch", 0)
    keys = line.keys() & _VALUES.keys()
    if len(keys) != 1 or not isinstance(task_id, str) or not _is_count(lease_epoch):
        return None
    key = keys.pop()
    if line.keys() - {key} - _COMPANIONS.get(key, set()) or not _VALUES[key](line[key]):
        return None
    text = next((value for name, value in line.items() if name != key), None)
    return Said(key, line[key], text, task_id, lease_epoch) if text is None or isinstance(text, str) else None


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and abs(value) < 2**63


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_checkpoint(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode("utf-8", "replace")) <= CHECKPOINT_BYTES


def _is_usage(value: Any) -> bool:
    known = {"input_tokens", "output_tokens", "cost_micros"}
    return isinstance(value, dict) and value.keys() <= known and all(_is_count(each) for each in value.values())


def _is_error(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"class", "reason", "message", "next_retry_delay"}:
        return False
    delay = value.get("next_retry_delay", 0)
    texts = (value.get(key, "") for key in ("class", "reason", "message"))
    return all(isinstance(text, str) for text in texts) and _is_number(delay) and delay >= 0


_VALUES: dict[str, Callable[[Any], bool]] = {
    "progress": _is_share,
    "output": lambda value: isinstance(value, str),
    "checkpoint": _is_checkpoint,
    "usage": _is_usage,
    "context_usage": _is_share,
    "result": lambda value: True,
    "error": _is_error,
    "ready": lambda value: value is True,
}


def error_of(value: dict[str, Any]) -> tuple[task_pb2.TaskErrorClass.ValueType, str, str, float]:
    """Class, reason, message and retry delay of the value of an `error` line; what makes no sense is replaced."""
    try:
        error_class = task_pb2.TaskErrorClass.Value(f"TASK_ERROR_CLASS_{value.get('class', 'TOOL')}")
    except ValueError:
        error_class = task_pb2.TASK_ERROR_CLASS_TOOL
    reason = value.get("reason", "")
    delay = min(float(value.get("next_retry_delay", 0)), _LONGEST_DELAY)
    return error_class, reason if _REASON.fullmatch(reason) else "AGENT_ERROR", value.get("message", ""), delay
