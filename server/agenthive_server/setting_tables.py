"""The tables of the settings file: every key with its default. Durations are in seconds and say so in their names."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agenthive_server.kernel.limits import Limits


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
    # Store URL: `sqlite:///PATH`, `postgresql://USER@HOST:PORT/DATABASE` (its password is better in PGPASSFILE), or
    # `memory:` for a hive that forgets everything. Empty: SQLite in the data directory.
    store: str = ""
    # Redis of servers that share a PostgreSQL store: `redis://HOST:PORT/NUMBER`, `rediss://` for TLS, `unix:///PATH`.
    # With it events, output of agents and rate limits pass from one to the other faster; all or none of the servers of
    # a hive have it. Empty: none.
    redis: str = ""
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
    # Seconds after which a connection gets no new calls and a stream ends by itself, with a last cursor or RECONNECT;
    # 10 % more or less; 0: never. Scaled out 300, so that load spreads to new replicas.
    maximum_connection_age_seconds: float = 0.0
    # Below this many free bytes new work is refused; results are still stored.
    minimum_free_disk_bytes: int = 64 * 2**20
    # Largest blob taken, in bytes.
    maximum_blob_bytes: int = 2**30
    # Folder of an archive of this hive: backups, and between them a journal of all that was committed. Empty: none.
    # On another disk than the data, so that one of them survives; for one hive only.
    archive_dir: str = ""
    # Seconds from one backup of the archive to the next; sooner when the journal is longer than the database.
    archive_backup_seconds: float = 86_400.0
    # Seconds for which it must be possible to go back to any event; what is older is removed from the archive.
    archive_keep_seconds: float = 604_800.0
    # HOST:PORT of an HTTP endpoint with /healthz, /readyz and /metrics, or off. Beyond loopback only with `insecure`.
    web: str = "off"
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
