"""Settings: one TOML file, then `AGENTHIVE_*` variables, then flags; an unknown key is an error.

`AGENTHIVE_SERVER__LISTEN` stands for `listen` in `[server]`. The keys are in `setting_tables.py`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agenthive_server.setting_mistakes import SettingsError, check, explain
from agenthive_server.setting_tables import FleetAgent, PluginsSettings, Settings
from agenthive_server.storage.address import is_postgres, shown

__all__ = [
    "FleetAgent",
    "PluginsSettings",
    "Settings",
    "SettingsError",
    "data_dir",
    "database_path",
    "load",
    "notify_address",
    "runner_environment",
    "search_path",
]

PREFIX = "AGENTHIVE_"

NOTIFY_VARIABLE = "NOTIFY_SOCKET"

DATABASE_VARIABLES = (f"{PREFIX}SERVER__STORE", f"{PREFIX}SERVER__REDIS", "PGPASSWORD", "PGPASSFILE")
"""How the server may be told the way into its databases: nobody else's business."""


def load(
    path: Path | None = None, *, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings: file, then environment, then `flags` (by dotted name, None left out).

    Raises `SettingsError`.
    """
    text = _read(path)
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    variables = os.environ if environ is None else environ
    overrides: dict[str, Any] = {}
    for name, value in variables.items():
        if name.startswith(PREFIX) and "__" in name:
            overrides[name[len(PREFIX) :].lower().replace("__", ".")] = _parsed(value)
    overrides.update({name: value for name, value in (flags or {}).items() if value is not None})
    for name, value in overrides.items():
        _override(raw, name, value)
    _gather_plugins(raw)
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(explain(str(error), path, text)) from None
    check(settings, path, text)
    return settings


def _override(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name, in tables of tables."""
    *tables, key = name.split(".")
    target = raw
    for table in tables:
        inner = target.setdefault(table, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{name}: {table} is not a table")
        target = inner
    target[key] = value


def _gather_plugins(raw: dict[str, Any]) -> None:
    """Move the tables `[plugins.NAME]` to where they are expected: their names are not known here."""
    plugins = raw.get("plugins")
    if isinstance(plugins, dict):
        tables = {name: plugins.pop(name) for name in list(plugins) if isinstance(plugins[name], dict)}
        plugins.pop("by_name", None)
        plugins["by_name"] = tables


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not UTF-8 text") from None


def _parsed(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def notify_address() -> str:
    """Return where a service manager wants to be told that we are ready (`sd_notify(3)`); empty when nobody does."""
    return os.environ.get(NOTIFY_VARIABLE, "")


def search_path() -> str:
    """Return the PATH of this process: where a runner looks for the commands of its agents, and what they see."""
    return os.environ.get("PATH", os.defpath)


def runner_environment() -> dict[str, str]:
    """Return the environment of a local runner: ours without what a caller would get in with, which is not its own."""
    from agenthive.access import VARIABLES

    ours = {*VARIABLES.values(), *DATABASE_VARIABLES, NOTIFY_VARIABLE}
    return {name: value for name, value in os.environ.items() if name not in ours}


def database_path(settings: Settings) -> Path | None:
    """Return the file of the store, None when it is in memory.

    Raises `SettingsError` for a URL of no known kind, and for that of a database server.
    """
    url = settings.server.store
    if url == "memory:":
        return None
    if not url:
        return data_dir(settings) / "hive.db"
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///"))
    if is_postgres(url):
        raise SettingsError(f"store {shown(url)} is no file; PostgreSQL has tools of its own for copies, as pg_dump")
    raise SettingsError(f"store {url!r}: expected sqlite:///PATH or memory:, or postgresql://HOST/DATABASE")


def data_dir(settings: Settings) -> Path:
    """Return the folder of the data: as set, else `$XDG_DATA_HOME/agenthive` or `~/.local/share/agenthive`."""
    if settings.server.data_dir:
        return Path(settings.server.data_dir)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "agenthive"
