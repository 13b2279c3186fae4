"""What is wrong with settings, told with the line it stands in."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agenthive_server.setting_tables import (
    FleetAgent,
    LimitSettings,
    PluginsSettings,
    RunnerSettings,
    ServerSettings,
    Settings,
    Table,
    TlsSettings,
)
from agenthive_server.storage.address import is_postgres


class SettingsError(Exception):
    """The settings are not valid: a sentence that names the place and what was expected."""


def check(settings: Settings, path: Path | None, text: str) -> None:
    """Raise `SettingsError` for what types alone do not tell."""
    seen: set[str] = set()
    for index, agent in enumerate(settings.agents):
        place = f"$.agents[{index}]"
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", agent.id):
            raise SettingsError(
                explain(
                    f"Expected letters, digits and `-_.`, at most 128, got {agent.id!r} - at `{place}.id`", path, text
                )
            )
        if agent.id in seen:
            raise SettingsError(
                explain(f"Expected an id used once, got {agent.id!r} again - at `{place}.id`", path, text)
            )
        seen.add(agent.id)
        if not agent.command:
            raise SettingsError(explain(f"Expected a command, got an empty list - at `{place}.command`", path, text))
        if not 1 <= agent.slots <= 1_000:
            raise SettingsError(explain(f"Expected 1 to 1000, got {agent.slots} - at `{place}.slots`", path, text))
    for table in ("server", "limits", "runner", "plugins"):
        for name, value in msgspec.structs.asdict(getattr(settings, table)).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value < 1e12:
                raise SettingsError(explain(f"Expected zero or more, got {value} - at `$.{table}.{name}`", path, text))
    _check_tls(settings, path, text)
    _check_redis(settings, path, text)


def _check_redis(settings: Settings, path: Path | None, text: str) -> None:
    url, place = settings.server.redis, "$.server.redis"
    if url and not is_postgres(settings.server.store):
        sentence = "Redis is for servers that share a PostgreSQL store; the store that is set belongs to one server"
        raise SettingsError(explain(f"{sentence}, which needs none - at `{place}`", path, text))
    if url and not url.startswith(("redis://", "rediss://", "unix:///")):
        expected = "expected redis://HOST:PORT/NUMBER, rediss:// for TLS, or unix:///PATH"
        raise SettingsError(explain(f"{expected} - at `{place}`", path, text))


def _check_tls(settings: Settings, path: Path | None, text: str) -> None:
    runner, server = settings.runner, settings.server
    if mistake := server.tls.mistake():
        raise SettingsError(explain(f"{mistake} - at `$.server.tls`", path, text))
    if bool(runner.certificate) != bool(runner.key):
        raise SettingsError(explain("`certificate` and `key` belong together - at `$.runner.certificate`", path, text))
    if server.runner and server.tls.required and not runner.certificate:
        sentence = "the server requires client certificates, and its own runner has none: `certificate` and `key`"
        raise SettingsError(explain(f"{sentence} in [runner], or --no-runner - at `$.runner`", path, text))


def explain(error: str, path: Path | None, text: str) -> str:
    """Turn `Expected … - at `$.agents[1].slots`` into a sentence that begins with file and line."""
    message, _, place = error.partition(" - at `")
    steps = place.rstrip("`").removeprefix("$").removeprefix(".") or ""
    field = re.search(r"unknown field `(.+?)`", message)
    if field:
        steps = f"{steps}.{field[1]}" if steps else field[1]
        message = f"unknown key `{field[1]}`; known are {', '.join(_known(steps))}"
    line = _line_of(steps, text)
    where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
    return f"{where}{steps}: {message}"


def _known(steps: str) -> list[str]:
    table = re.sub(r"\[\d+\]", "", steps).rpartition(".")[0]
    kinds: dict[str, type[Table]] = {
        "server": ServerSettings,
        "server.tls": TlsSettings,
        "limits": LimitSettings,
        "runner": RunnerSettings,
        "plugins": PluginsSettings,
        "agents": FleetAgent,
    }
    return list(kinds.get(table, Settings).__struct_fields__)


def _line_of(steps: str, text: str) -> int:
    """Return the line a key stands in, or that of its table's header, or 0."""
    found = re.fullmatch(r"(server\.tls|\w+)(?:\[(\d+)\])?(?:\.(\w+).*|.*)", steps)
    if not found:
        return 0
    table, index, key = found[1], int(found[2] or 0), found[3]
    best = count = 0
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([\w.]+)\s*\]", line)
        if header:
            is_array = line.strip().startswith("[[")
            same = header[1] == table
            if same and is_array:
                inside = count == index
                count += 1
            else:
                inside = (same and not is_array) or (inside and header[1].startswith(f"{table}."))
            if inside and same:
                best = number
            if inside and key and header[1] == f"{table}.{key}":
                return number
        elif (inside and key and re.match(rf"\s*{re.escape(key)}\s*=", line)) or (
            not found[3] and re.match(rf"\s*{re.escape(table)}\s*=", line)
        ):
            return number
    return best
