"""Settings: one TOML file, then `AGENTHIVE_*` variables, then flags; an unknown key is an error.

`AGENTHIVE_SERVER__LISTEN` stands for `listen` in `[server]`. Durations are in seconds and say so in their names.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from agenthive_server.kernel.limits import Limits

PREFIX = "AGENTHIVE_"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the settings file."""


class TlsSettings(Table, frozen=True, kw_only=True):
    """`[server.tls]`: the files are PEM, and read again within seconds when they change."""

    # Certificate of the server, intermediates after it. Empty: no TLS.
    certificate: str = ""
    # Its private key, not encrypted.
    key: str = ""
    # Authorities whose certificates clients may show. Empty: clients show none.
    client_ca: str = ""
    # `required`: who has no certificate does not get in. `none`: nobody is asked for one. `optional`: as `none`, and
    # clients with a certificate come to `mutual_listen`. Absent: `required` where there is a `client_ca`, else `none`.
    require_client_certificate: Literal["none", "optional", "required"] | None = None
    # HOST:PORT for clients with a certificate only; for `optional`.
    mutual_listen: str = ""

    @property
    def required(self) -> bool:
        """Whether who has no certificate does not get in at `listen`."""
        demand = self.require_client_certificate
        return demand == "required" or (demand is None and bool(self.client_ca))

    def mistake(self) -> str:
        """Return what does not fit together, empty when all does."""
        demand = self.require_client_certificate
        asks = demand in ("optional", "required")
        mistakes = (
            (bool(self.certificate) != bool(self.key), "`certificate` and `key` belong together, and one is missing"),
            (
                not self.certificate and bool(self.client_ca or self.mutual_listen or asks),
                "without `certificate` and `key` there is no TLS to ask clients for theirs",
            ),
            (asks and not self.client_ca, f"`{demand}` needs the authority of the clients, `client_ca`"),
            (demand == "none" and bool(self.client_ca), "a `client_ca` is of no use with `none`"),
            (
                (demand == "optional") != bool(self.mutual_listen),
                "`optional` and `mutual_listen` belong together: gRPC cannot ask for a certificate and go on without",
            ),
        )
        return next((sentence for made, sentence in mistakes if made), "")


class ServerSettings(Table, frozen=True, kw_only=True):
    """`[server]`: where it listens, where its data lie, how it stops."""

    # HOST:PORT. Beyond loopback only with TLS and a plugin that authenticates, or with `insecure = true`.
    listen: str = "127.0.0.1:50051"
    # Folder of the database, the runner's ledger and work folders. Empty: the user's data directory.
    data_dir: str = ""
    # Store URL: `sqlite:///PATH`, or `memory:` for a hive that forgets everything. Empty: SQLite in the data directory.
    store: str = ""
    # SQLite's `synchronous`: FULL survives loss of power; NORMAL survives `kill -9` but may lose the last commits
    # with the power.
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    # Listen beyond loopback without TLS or authentication. Logged at every start.
    insecure: bool = False
    # Start a local runner in the server's process group.
    runner: bool = True
    # Leave that runner and its agents running when the server stops.
    keep_runner: bool = False
    # Seconds to keep serving after health says NOT_SERVING; behind a balancer longer than its interval.
    drain_delay_seconds: float = 0.0
    # Seconds calls in flight may take to finish when the server stops.
    drain_grace_seconds: float = 10.0
    # Largest message taken, in bytes.
    message_limit_bytes: int = 4 * 2**20
    # Unary calls at once; more are refused with RESOURCE_EXHAUSTED.
    maximum_calls: int = 2_000
    # Event and message streams at once.
    maximum_streams: int = 10_000
    # Seconds after which a connection is sent away, with 10 % jitter; 0: never.
    maximum_connection_age_seconds: float = 0.0
    # Below this many free bytes new work is refused; results are still stored.
    minimum_free_disk_bytes: int = 64 * 2**20
    # Largest blob taken, in bytes.
    maximum_blob_bytes: int = 2**30
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tls: TlsSettings = TlsSettings()


class LimitSettings(Table, frozen=True, kw_only=True):
    """`[limits]`: the kernel's spans and bounds."""

    accept_timeout_seconds: float = 10.0
    heartbeat_interval_seconds: float = 10.0
    reconnect_grace_seconds: float = 30.0
    unanswered_limit: int = 3
    maximum_queued_tasks: int = 1_000_000
    context_threshold: float = 0.85
    retention_events_seconds: float = 604_800.0
    retention_output_seconds: float = 3_600.0
    retention_requests_seconds: float = 86_400.0
    retention_tasks_seconds: float = 604_800.0
    retention_blobs_seconds: float = 604_800.0

    def to_limits(self) -> Limits:
        """Return them as the kernel takes them."""
        return Limits(
            accept_timeout=self.accept_timeout_seconds,
            heartbeat_interval=self.heartbeat_interval_seconds,
            reconnect_grace=self.reconnect_grace_seconds,
            unanswered_limit=self.unanswered_limit,
            maximum_queued=self.maximum_queued_tasks,
            context_threshold=self.context_threshold,
            retention_events=self.retention_events_seconds,
            retention_requests=self.retention_requests_seconds,
            retention_tasks=self.retention_tasks_seconds,
            retention_blobs=self.retention_blobs_seconds,
        )


class RunnerSettings(Table, frozen=True, kw_only=True):
    """`[runner]`: the local runner."""

    labels: dict[str, str] = {}
    # Most agents at once; 0: no bound.
    maximum_agents: int = 0
    # Seconds without a server after which it stops its agents and ends.
    orphan_timeout_seconds: float = 300.0
    # What it shows to a server that requires client certificates (PEM files).
    certificate: str = ""
    key: str = ""


class FleetAgent(Table, frozen=True, kw_only=True):
    """`[[agents]]`: an agent that is there from the start, run by the local runner."""

    # Its id.
    id: str
    # The command and its arguments; not a shell line. `{python}` is the interpreter of the server, `{config_dir}` the
    # folder of this file.
    command: list[str]
    # `task`: a process for each task; `agent`: one process that takes tasks as JSON lines.
    mode: Literal["task", "agent"] = "task"
    role: str = ""
    capabilities: list[str] = []
    slots: int = 1
    weight: float = 1.0
    labels: dict[str, str] = {}
    environment: dict[str, str] = {}
    # Folder to run in; empty: a private one. `{config_dir}` is replaced.
    working_directory: str = ""
    restart: Literal["never", "on-failure", "always"] = "on-failure"
    memory_bytes: int = 0
    cpu_seconds: int = 0


class PluginsSettings(Table, frozen=True, kw_only=True):
    """`[plugins]`: which are on, and what they may do. `[plugins.NAME]` holds the settings of one plugin.

    Both are the first state: what is switched while the server runs (`hive plugins`) is kept in the store and counts
    from then on. `required = true` in `[plugins.NAME]`: it is on, and the server does not start without it.
    """

    # Names of the plugins that are on.
    enabled: list[str] = []
    # Longest an inline interceptor or hook may take; longer is a failure.
    inline_seconds: float = 0.05
    # Longest the interceptors of one call may wait together.
    call_seconds: float = 1.0
    # So many failures within `window_seconds` switch a plugin off, unless its failure means that calls are refused.
    maximum_failures: int = 5
    window_seconds: float = 60.0
    # Tasks a plugin may have at once; more are a leak.
    maximum_tasks: int = 200
    # Code that blocks the event loop for so long is switched off; 0: nobody watches.
    block_seconds: float = 1.0
    # Longest a plugin may take to open.
    open_seconds: float = 30.0
    # Seconds calls in flight may take to finish when a plugin is switched off.
    grace_seconds: float = 2.0
    # Not set itself: the tables `[plugins.NAME]`, by name.
    by_name: dict[str, dict[str, Any]] = {}


class Settings(Table, frozen=True, kw_only=True):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    runner: RunnerSettings = RunnerSettings()
    plugins: PluginsSettings = PluginsSettings()
    agents: list[FleetAgent] = []


class SettingsError(Exception):
    """The settings are not valid: a sentence that names the place and what was expected."""


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
        raise SettingsError(_explain(str(error), path, text)) from None
    _check(settings, path, text)
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


def _check(settings: Settings, path: Path | None, text: str) -> None:
    seen: set[str] = set()
    for index, agent in enumerate(settings.agents):
        place = f"$.agents[{index}]"
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", agent.id):
            raise SettingsError(
                _explain(
                    f"Expected letters, digits and `-_.`, at most 128, got {agent.id!r} - at `{place}.id`", path, text
                )
            )
        if agent.id in seen:
            raise SettingsError(
                _explain(f"Expected an id used once, got {agent.id!r} again - at `{place}.id`", path, text)
            )
        seen.add(agent.id)
        if not agent.command:
            raise SettingsError(_explain(f"Expected a command, got an empty list - at `{place}.command`", path, text))
        if not 1 <= agent.slots <= 1_000:
            raise SettingsError(_explain(f"Expected 1 to 1000, got {agent.slots} - at `{place}.slots`", path, text))
    for table in ("server", "limits", "runner", "plugins"):
        for name, value in msgspec.structs.asdict(getattr(settings, table)).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value < 1e12:
                raise SettingsError(_explain(f"Expected zero or more, got {value} - at `$.{table}.{name}`", path, text))

    _check_tls(settings, path, text)


def _check_tls(settings: Settings, path: Path | None, text: str) -> None:
    runner, server = settings.runner, settings.server
    if mistake := server.tls.mistake():
        raise SettingsError(_explain(f"{mistake} - at `$.server.tls`", path, text))
    if bool(runner.certificate) != bool(runner.key):
        raise SettingsError(_explain("`certificate` and `key` belong together - at `$.runner.certificate`", path, text))
    if server.runner and server.tls.required and not runner.certificate:
        sentence = "the server requires client certificates, and its own runner has none: `certificate` and `key`"
        raise SettingsError(_explain(f"{sentence} in [runner], or --no-runner - at `$.runner`", path, text))


def _explain(error: str, path: Path | None, text: str) -> str:
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


def search_path() -> str:
    """Return the PATH of this process: where a runner looks for the commands of its agents, and what they see."""
    return os.environ.get("PATH", os.defpath)


def runner_environment() -> dict[str, str]:
    """Return the environment of a local runner: ours without what a caller would get in with, which is not its own."""
    from agenthive.access import VARIABLES

    return {name: value for name, value in os.environ.items() if name not in VARIABLES.values()}


def data_dir(settings: Settings) -> Path:
    """Return the folder of the data: as set, else `$XDG_DATA_HOME/agenthive` or `~/.local/share/agenthive`."""
    if settings.server.data_dir:
        return Path(settings.server.data_dir)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "agenthive"
