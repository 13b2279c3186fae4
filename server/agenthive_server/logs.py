"""Log lines: one JSON object each with fields, for machines; or a short line, when a person looks on."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from agenthive_server.telemetry import CallIdFilter

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD and value not in ("", None)}


class JsonFormatter(logging.Formatter):
    """A JSON object for each record: time, level, logger, event, fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainFormatter(logging.Formatter):
    """Time, level, event and fields on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and its traceback below."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")  # noqa: DTZ006 - local time, for a person
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        text = f"{time} {record.levelname.lower():<7} {record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Stderr(logging.Handler):
    """Writes to what stderr is at that moment: one that was there when this was made may be closed."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler does: a line that cannot be written ends nothing
            self.handleError(record)


def configure(level: str) -> None:
    """Log to stderr: plainly to a terminal, as JSON elsewhere."""
    handler = _Stderr()
    handler.setFormatter(PlainFormatter() if sys.stderr.isatty() else JsonFormatter())
    handler.addFilter(CallIdFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel("WARNING")
