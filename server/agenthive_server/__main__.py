"""`agenthived`: serve · runner · backup · restore · certs · check-config · show-chain · migrate · migrate-store ·
version.

Argparse and late imports, because what is imported here stays in the memory of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agenthive_server.backups import add_backup, add_restore
from agenthive_server.certs import add_certs
from agenthive_server.moves import add_migrate_store

if TYPE_CHECKING:
    from agenthive_server.settings import Settings

EXIT_FAILED = 1
EXIT_USAGE = 2

EPILOG = """\
examples:
  agenthived serve                                  a hive on 127.0.0.1:50051, its data in your data directory
  agenthived serve --data-dir ./hive --listen 127.0.0.1:6000
  agenthived serve --config fleet.toml              with the agents of a fleet file
  agenthived serve --store postgresql://hive@db.example/hive
                                                    everything in PostgreSQL (pip install 'agenthive[postgres]')
  agenthived serve --store postgresql://hive@db.example/hive --redis redis://redis.example:6379/0
                                                    one of several servers (pip install 'agenthive[postgres,redis]')
  agenthived runner --server hive.example:50051     make this machine part of a hive
  agenthived backup create --to /backups            a copy of the hive, running or not; `restore` brings it back
  agenthived certs server --host hive.example       certificates for TLS, from an authority of your own
  agenthived check-config --config fleet.toml       what the settings come to, and whether they are right

Every setting of the file can also be given as AGENTHIVE_<TABLE>__<KEY>, for example AGENTHIVE_SERVER__LISTEN.
"""


STORE = (
    "store URL: sqlite:///PATH, postgresql://USER@HOST:PORT/DATABASE, or memory: to forget everything. A password is"
    " better in a PGPASSFILE or AGENTHIVE_SERVER__STORE: what stands here, others see"
)


REDIS = (
    "Redis shared by the servers of a PostgreSQL store: redis://HOST:PORT/NUMBER, rediss:// for TLS, unix:///PATH"
    " (default: none). A password is better in AGENTHIVE_SERVER__REDIS"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 well, 1 failed with a sentence on stderr, 2 wrong usage."""
    # The runner is started when gRPC's threads run already; its fork handlers could only warn about that.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # noqa: TID251 - written, and before grpc is imported
    # A line for every handshake that fails is what a port scan wants; `GRPC_VERBOSITY=info` shows them.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # noqa: TID251 - written, and before grpc is imported
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agenthived",
        description="The control plane for fleets of AI agents.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the server, with a local runner"))
    _add_runner(commands.add_parser("runner", help="run agents on this machine for a server"))
    add_backup(commands.add_parser("backup", help="copy a hive, list copies, read them whole"))
    add_restore(commands.add_parser("restore", help="make a new data directory from a backup"))
    add_certs(commands.add_parser("certs", help="make certificates for TLS"))
    check = commands.add_parser("check-config", help="print the effective settings, or what is wrong with them")
    check.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    check.set_defaults(run=_check_config)
    show = commands.add_parser("show-chain", help="print the interceptors every call passes, in order")
    show.description = (
        "Print the interceptors every call passes, outermost first: what is built in, then those of the plugins the"
        " settings enable, which are opened for it over an empty store. `hive plugins show` tells of a running server."
    )
    show.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    show.set_defaults(run=_show_chain)
    migrate = commands.add_parser("migrate", help="bring a database up to this version")
    migrate.add_argument("--store", metavar="URL", help="store URL: sqlite:///PATH or postgresql://…")
    migrate.add_argument("--data-dir", metavar="DIR", help="folder of the database (default: your data directory)")
    migrate.set_defaults(run=_migrate)
    add_migrate_store(commands.add_parser("migrate-store", help="move a hive from SQLite to PostgreSQL"))
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the server. Prints one line on stdout when it is serving. SIGTERM or Ctrl-C drains and stops; a second"
        " one skips the waiting."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="address (default 127.0.0.1:50051; port 0 takes a free one)"
    )
    parser.add_argument(
        "--web", metavar="HOST:PORT|off", help="HTTP endpoint with /healthz, /readyz and /metrics (default: off)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: your data directory)")
    parser.add_argument("--store", metavar="URL", help=STORE)
    parser.add_argument("--redis", metavar="URL", help=REDIS)
    parser.add_argument("--no-runner", dest="runner", action="store_false", default=None, help="start no local runner")
    parser.add_argument(
        "--keep-runner", action="store_true", default=None, help="leave the runner and its agents when the server stops"
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM); read again on change"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="the private key of that certificate (PEM)")
    parser.add_argument(
        "--tls-client-ca", metavar="FILE", help="let only clients in that have a certificate of this authority"
    )
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="listen beyond loopback without TLS or authentication"
    )
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="default: info")
    parser.set_defaults(run=_serve)


def _add_runner(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run agents on this machine for a server. SIGTERM or Ctrl-C hands held tasks back and stops the agents; a"
        " second one kills them. Exits with 69 when no server answered for the orphan timeout."
    )
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: 127.0.0.1:50051")
    _add_access(parser)
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder of ledger and work folders (default: your data directory)"
    )
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="label for placement; repeat")
    parser.add_argument("--name", default="", help="name of this machine, for people (default: the host name)")
    parser.add_argument(
        "--maximum-agents", type=int, default=0, metavar="N", help="most agents at once (default: no bound)"
    )
    parser.add_argument(
        "--orphan-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="stop after this long without a server (300)",
    )
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], default="info", help="default: info"
    )
    parser.set_defaults(run=_runner)


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Add how a runner gets in. No secret is an argument: other users see those."""
    parser.add_argument("--ca", metavar="FILE", help="speak TLS, trusting this authority; or AGENTHIVE_CA")
    parser.add_argument("--cert", metavar="FILE", help="certificate that says who this runner is; or AGENTHIVE_CERT")
    parser.add_argument("--key", metavar="FILE", help="private key of that certificate; or AGENTHIVE_KEY")
    parser.add_argument(
        "--tls", action="store_true", default=None, help="speak TLS, trusting the well-known authorities"
    )
    parser.add_argument("--server-name", metavar="NAME", help="name to expect in the server's certificate")
    parser.add_argument("--token-file", metavar="FILE", help="file with a bearer token; or AGENTHIVE_TOKEN_FILE")
    parser.add_argument(
        "--join-token-file",
        metavar="FILE",
        help="file with the token that lets this runner in for the first time; - is standard input. What it earns by"
        " that is kept in the data directory, but for a token from standard input",
    )
    parser.add_argument("--insecure", action="store_true", help="send tokens in plain text, even to another machine")


def _serve(options: argparse.Namespace) -> int:
    from agenthive_server import app, logs, settings
    from agenthive_server.lifecycle import StartError

    flags = {
        "server.listen": options.listen,
        "server.web": options.web,
        "server.data_dir": options.data_dir,
        "server.store": options.store,
        "server.redis": options.redis,
        "server.runner": options.runner,
        "server.keep_runner": options.keep_runner,
        "server.insecure": options.insecure,
        "server.tls.certificate": options.tls_cert,
        "server.tls.key": options.tls_key,
        "server.tls.client_ca": options.tls_client_ca,
        "server.log_level": options.log_level,
    }
    try:
        loaded = settings.load(options.config, flags=flags)
    except settings.SettingsError as error:
        return _fail(str(error))
    logs.configure(loaded.server.log_level)
    try:
        return _run(app.serve(loaded, options.config))
    except StartError as error:
        return _fail(str(error))


def _runner(options: argparse.Namespace) -> int:
    from agenthive.access import Access

    from agenthive_server import logs, settings
    from agenthive_server.runner.runner import LedgerLocked, RunnerConfig, run_runner

    logs.configure(options.log_level)
    names = ("ca", "cert", "key", "tls", "server_name", "token_file", "insecure")
    try:
        access = Access(options.server, **{name: getattr(options, name) for name in names})
        join_token = _secret(options.join_token_file)
    except ValueError as error:
        return _fail(str(error), EXIT_USAGE)
    except OSError as error:
        return _fail(f"--join-token-file {options.join_token_file}: {error.strerror}", EXIT_USAGE)
    labels: dict[str, str] = {}
    for label in options.label:
        key, separator, value = label.partition("=")
        if not key or not separator:
            return _fail(f"--label {label}: expected KEY=VALUE", EXIT_USAGE)
        labels[key] = value
    folder = Path(options.data_dir) if options.data_dir else settings.data_dir(settings.Settings())
    handed_over = options.join_token_file == "-"
    config = RunnerConfig(
        data_dir=folder,
        join_token=join_token,
        credential_file=None if handed_over else folder / "runner" / "credential",
        labels=labels,
        display_name=options.name,
        maximum_agents=options.maximum_agents,
        orphan_timeout=options.orphan_timeout,
        search_path=settings.search_path(),
    )
    try:
        return _run(run_runner(access, config))
    except (LedgerLocked, OSError, ValueError) as error:
        return _fail(str(error))


def _secret(path: str | None) -> str:
    if path is None:
        return ""
    return (sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")).strip()


def _check_config(options: argparse.Namespace) -> int:
    import msgspec

    from agenthive_server import plugged, settings
    from agenthive_server.plugin.registry import discover

    try:
        shown = plugged.shown_settings(settings.load(options.config), discover())
    except settings.SettingsError as error:
        return _fail(str(error))
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() + "\n")
    return 0


def _show_chain(options: argparse.Namespace) -> int:
    from agenthive_server import logs, settings
    from agenthive_server.lifecycle import StartError

    logs.configure("error")
    try:
        return _run(_chain(settings.load(options.config)))
    except (settings.SettingsError, StartError) as error:
        return _fail(str(error))


async def _chain(loaded: Settings) -> int:
    from tempfile import TemporaryDirectory

    from agenthive_server.app import App
    from agenthive_server.plugged import for_looking
    from agenthive_server.rpc.chain import describe

    with TemporaryDirectory() as folder:
        app = App(for_looking(loaded, folder))
        await app.open()
        try:
            for stage, name, source in describe(app.switch.current):
                sys.stdout.write(f"{stage:<10} {name:<20} {source}\n")
        finally:
            await app.close()
    return 0


def _migrate(options: argparse.Namespace) -> int:
    from agenthive_server import settings, stores
    from agenthive_server.lifecycle import StartError

    try:
        loaded = settings.load(None, flags={"server.store": options.store, "server.data_dir": options.data_dir})
        sys.stdout.write(stores.migrate(loaded) + "\n")
    except (settings.SettingsError, StartError) as error:
        return _fail(str(error))
    return 0


def _version(_options: argparse.Namespace) -> int:
    from importlib.metadata import version

    sys.stdout.write(f"agenthived {version('agenthive')}\n")
    return 0


def _run(main_task: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main_task)


def _fail(sentence: str, code: int = EXIT_FAILED) -> int:
    sys.stderr.write(f"agenthived: {sentence}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
