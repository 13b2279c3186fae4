"""`agenthived certs`: an authority for development, and certificates for a server and its clients."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agenthive_server.kernel.clock import Clock, SystemClock

if TYPE_CHECKING:
    from agenthive_server.authority import Authority, Pair
    from agenthive_server.rpc.x509 import Certificate

DESCRIPTION: Final = """\
Make certificates for TLS, signed by an authority of your own: for development, for tests, for a hive in one hand.
Everything lies in one folder (--dir; default: `tls` in your data directory), readable by you alone:

  ca.pem                     the authority: whoever shall trust the server gets this file, and only this one
  ca-key.pem                 its key: whoever has it can pretend to be anybody. Keep it off the server, if you can
  server.pem                 the server's certificate, for --tls-cert; server-key.pem for --tls-key
  client-NAME.pem            a caller, worker or runner, for --cert; client-NAME-key.pem for --key.
                             NAME is the principal: who it is to the server
"""

EPILOG: Final = """\
TLS in two commands (in the folder of the files):
  agenthived certs server --host hive.example
  agenthived serve --tls-cert server.pem --tls-key server-key.pem
and a client:
  hive --ca ca.pem health
Beyond loopback (serve --listen 0.0.0.0:50051) callers have to be authenticated too, by a plugin.

Clients with certificates (mTLS):
  agenthived certs client ana
  agenthived serve --tls-cert server.pem --tls-key server-key.pem --tls-client-ca ca.pem
  hive --ca ca.pem --cert client-ana.pem --key client-ana-key.pem agents list
The server's own runner needs one as well: `agenthived certs client runner`, and `certificate` and `key` in the table
[runner] of the settings; or serve with --no-runner.

Certificates end after a year. `agenthived certs renew` makes those anew that have less than a third of their time
left; run it daily. A running server takes the new one within seconds.
"""

_MISSING: Final = "`agenthived certs` needs the package `cryptography`: pip install 'agenthive[auth]'"
_FAILED: Final = 1
_MOST_DAYS: Final = 36_500


def add_certs(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `agenthived certs` its commands."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    server = _command(commands, "server", _server, "make a server's certificate, and an authority if there is none")
    server.add_argument(
        "--host", action="append", default=[], metavar="NAME",
        help="name or address under which clients reach the server; repeat. localhost, 127.0.0.1 and ::1 are always in",
    )  # fmt: skip
    client = _command(commands, "client", _client, "make the certificate of a caller, worker or runner")
    client.add_argument("name", metavar="NAME", help="the principal: who it is to the server, for example `ana`")
    for parser_of_one in (server, client):
        _days(parser_of_one)
        parser_of_one.add_argument("--replace", action="store_true", help="make it anew, with a new key, if it exists")

    renew = _command(commands, "renew", _renew, "make certificates again before they end")
    renew.add_argument(
        "names", nargs="*", metavar="NAME",
        help="server, client-NAME, or ca (its key stays, so what it signed stays valid); default: what has less than a"
        " third of its time left",
    )  # fmt: skip
    renew.add_argument("--all", action="store_true", help="all but the authority, whatever time they have left")
    renew.add_argument("--new-key", action="store_true", help="with new keys; else only certificates change")
    _days(renew)

    _command(commands, "ca", _ca, "make an authority and nothing else")
    _command(commands, "show", _show, "list what there is, for whom, and until when")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="folder of the files (default: `tls` in your data directory)"
    )
    parser.set_defaults(run=lambda options: _guarded(run, options))
    return parser


def _days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=int, metavar="N", help="valid for so long (default: 365; renewed: as before)")


def _guarded(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command; whatever stands in its way is a sentence on stderr."""
    try:
        from agenthive_server.authority import AuthorityError
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        return _fail(_MISSING)
    days = getattr(options, "days", None)
    if days is not None and not 1 <= days <= _MOST_DAYS:
        return _fail(f"--days {days}: expected 1 to {_MOST_DAYS}")
    try:
        return run(options)
    except AuthorityError as error:
        return _fail(str(error))


def _fail(sentence: str) -> int:
    sys.stderr.write(f"agenthived: {sentence}\n")
    return _FAILED


def _say(line: str = "") -> None:
    sys.stdout.write(f"{line}\n")


def _folder(options: argparse.Namespace) -> Path:
    if options.dir is not None:
        folder: Path = options.dir
        return folder
    from agenthive_server import settings

    return settings.data_dir(settings.Settings()) / "tls"


def _authority(folder: Path, *, make: bool) -> Authority:
    """Return the authority of a folder, made now if that is allowed and there is none at all."""
    from agenthive_server.authority import Authority, pair_in

    pair = pair_in(folder, "ca")
    if make and not pair.certificate.exists() and not pair.key.exists():
        authority = Authority.new(folder, SystemClock())
        _say(f"made {pair.certificate}  the authority: give it to whoever shall trust the server")
        _say(f"made {pair.key}  its key: keep it to yourself")
        return authority
    return Authority.open(folder, SystemClock())


def _made(pair: Pair) -> None:
    _say(f"made {pair.certificate}  until {_date(_read(pair.certificate)[0].not_after)}")
    _say(f"made {pair.key}")


def _ca(options: argparse.Namespace) -> int:
    from agenthive_server.authority import Authority, pair_in

    folder = _folder(options)
    Authority.new(folder, SystemClock())
    _made(pair_in(folder, "ca"))
    return 0


def _server(options: argparse.Namespace) -> int:
    from agenthive_server.authority import DAYS

    folder = _folder(options)
    authority = _authority(folder, make=True)
    pair = authority.issue_server(options.host, days=options.days or DAYS, replace=options.replace)
    _made(pair)
    _say("\nnow:")
    _say(f"  agenthived serve --tls-cert {pair.certificate} --tls-key {pair.key}")
    _say(f"  hive --ca {folder / 'ca.pem'} health")
    return 0


def _client(options: argparse.Namespace) -> int:
    from agenthive_server.authority import DAYS

    folder = _folder(options)
    authority = _authority(folder, make=True)
    pair = authority.issue_client(options.name, days=options.days or DAYS, replace=options.replace)
    _made(pair)
    _say(f"\nnow, with a server that has --tls-client-ca {folder / 'ca.pem'}:")
    _say(f"  hive --ca {folder / 'ca.pem'} --cert {pair.certificate} --key {pair.key} agents list")
    return 0


def _renew(options: argparse.Namespace) -> int:
    folder = _folder(options)
    authority = _authority(folder, make=False)
    names = options.names or [name for name, share in _leaves(folder, SystemClock()) if options.all or share < 1 / 3]
    for name in names:
        pair = authority.renew(name, days=options.days, new_key=options.new_key)
        _say(f"renewed {pair.certificate}  until {_date(_read(pair.certificate)[0].not_after)}")
    if not names:
        _say("nothing has to be renewed")
    return 0


def _show(options: argparse.Namespace) -> int:
    folder, now = _folder(options), SystemClock().now()
    paths = _certificates(folder)
    if not paths:
        return _fail(f"no certificates in {folder}; `agenthived certs server` makes some")
    for path in paths:
        certificate = _read(path)[0]
        ended = "  ENDED" if certificate.not_after <= now else ""
        whom = ", ".join(certificate.names) or certificate.subject
        _say(f"{path}  until {_date(certificate.not_after)}{ended}  for {whom}")
    return 0


def _certificates(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.pem")) if not path.stem.endswith("-key")]


def _leaves(folder: Path, clock: Clock) -> Iterator[tuple[str, float]]:
    """Yield the certificates but for the authority's, with the share of their time that is left."""
    now = clock.now()
    for path in _certificates(folder):
        if path.stem != "ca":
            certificate = _read(path)[0]
            yield path.stem, (certificate.not_after - now) / max(1.0, certificate.not_after - certificate.not_before)


def _read(path: Path) -> tuple[Certificate, ...]:
    from agenthive_server.authority import AuthorityError
    from agenthive_server.rpc.x509 import read_certificates

    try:
        found = read_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AuthorityError(f"{path}: {error}") from None
    if not found:
        raise AuthorityError(f"{path}: no certificate in PEM form")
    return found


def _date(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")
