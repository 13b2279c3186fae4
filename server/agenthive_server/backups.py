"""`agenthived backup` and `agenthived restore`: copies of a hive, and the way back."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from agenthive_server.storage.backup.manifest import Manifest
    from agenthive_server.storage.backup.place import Found
    from agenthive_server.storage.backup.restore import Restored

BACKUP: Final = """\
Copy a hive, look through copies, and read them whole. A backup is a folder with the database (tasks, agents, messages,
events, blobs) and a manifest with digests. It is there when it is complete; one that was interrupted never is.

The server may run: nothing is stopped, commits go on, and the copy is of one moment. What belongs to this machine only
(the runner's ledger and work folders, certificates, settings) is not in it.

With `archive_dir` in [server] the server does this by itself: a backup a day, and in between a journal of every change,
written within a moment and synced every second. Then everything since the first backup can be gone back to.
"""

BACKUP_EXAMPLES: Final = """\
examples:
  agenthived backup create --to /backups            of the hive in your data directory, running or not
  agenthived backup create --data-dir ./hive --to /backups
  agenthived backup list /backups
  agenthived backup verify /backups                 all of them, and how far the journal leads

exit codes: 0 well, 1 failed, 2 wrong usage, 65 a backup is damaged
"""

RESTORE: Final = """\
Make a new data directory from a backup, or from a folder of backups, of which the newest is taken. If the server kept
an archive there, all that was archived after the backup comes with it.

It is a new log. Tasks that were held go back to the queue, their attempts not counted; agents are started again by
their policy; workers and runners that are still there connect by themselves, and what they still hold of the lost hive
is refused. Readers of events start anew: cursors of the lost hive are too old. Calls repeated with their request_id are
still known.
"""

RESTORE_EXAMPLES: Final = """\
examples:
  agenthived restore --from /backups --to ./hive    all there is; then: agenthived serve --data-dir ./hive
  agenthived restore --from /backups --to ./before --sequence 12345
                                                    as it was after event 12345 (see `hive events`)

With --sequence the last whole change set up to that event is restored: events of one change set are never separated.

exit codes: 0 well, 1 failed, 2 wrong usage, 65 the backup is damaged
"""

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
EXIT_DAMAGED: Final = 65

Options = argparse.Namespace


def add_backup(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `agenthived backup` its commands."""
    parser.description, parser.epilog = BACKUP, BACKUP_EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    create = _command(commands, "create", _create, "copy a hive, running or not, into a new folder")
    create.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the new folder is made")
    create.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML) of the server")
    create.add_argument("--data-dir", metavar="DIR", help="folder of the data (default: your data directory)")
    create.add_argument("--store", metavar="URL", help="store URL: sqlite:///PATH")
    listing = _command(commands, "list", _list, "list the backups in a folder, oldest first")
    listing.add_argument("place", type=Path, metavar="DIR", help="folder of backups")
    verify = _command(commands, "verify", _verify, "read backups whole and say what is broken")
    verify.add_argument("place", type=Path, metavar="PATH", help="a backup, or a folder of backups")


def add_restore(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `agenthived restore` its options."""
    parser.description, parser.epilog = RESTORE, RESTORE_EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--from", type=Path, required=True, dest="source", metavar="PATH", help="a backup, or a folder of backups"
    )
    parser.add_argument(
        "--to", type=Path, required=True, dest="target", metavar="DIR", help="the new data directory: new, or empty"
    )
    parser.add_argument("--sequence", type=int, metavar="N", help="as it was after this event (default: all there is)")
    _output(parser)
    parser.set_defaults(run=lambda options: _guarded(_restore, options))


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[Options], Coroutine[Any, Any, int]],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    _output(parser)
    parser.set_defaults(run=lambda options: _guarded(run, options))
    return parser


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="default: text")


def _guarded(run: Callable[[Options], Coroutine[Any, Any, int]], options: Options) -> int:
    """Run a command; whatever stands in its way is a sentence on stderr. Ctrl-C leaves nothing half done."""
    from agenthive_server.kernel.errors import DataLoss, KernelError
    from agenthive_server.settings import SettingsError

    try:
        return asyncio.run(run(options))
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was left behind", EXIT_INTERRUPTED)
    except DataLoss as error:
        return _fail(error.message, EXIT_DAMAGED)
    except KernelError as error:
        return _fail(error.message)
    except SettingsError as error:
        return _fail(str(error))


def _fail(sentence: str, code: int = EXIT_FAILED) -> int:
    sys.stderr.write(f"agenthived: {sentence}\n")
    return code


def _say(options: Options, facts: object, *lines: str) -> None:
    text = json.dumps(facts, indent=2, default=str) if options.output == "json" else "\n".join(lines)
    sys.stdout.write(f"{text}\n")


# Commands -----------------------------------------------------------------------------------------------------------


async def _create(options: Options) -> int:
    from agenthive_server import settings
    from agenthive_server.kernel.clock import SystemClock
    from agenthive_server.storage.backup.create import Making, create_backup
    from agenthive_server.storage.backup.place import backup_name
    from agenthive_server.storage.backup.work import run
    from agenthive_server.vitals import server_version

    flags = {"server.data_dir": options.data_dir, "server.store": options.store}
    loaded = settings.load(options.config, flags=flags)
    database = settings.database_path(loaded)
    if database is None:
        return _fail("a store in memory cannot be backed up: it is gone when its server ends")
    clock = SystemClock()
    making = Making(clock=clock, software=server_version(), minimum_free=loaded.server.minimum_free_disk_bytes)
    folder = options.to / backup_name(clock.now())
    manifest = await run(lambda token: create_backup(database, folder, making, token), clock)
    _say(options, _facts(folder, manifest), f"made {folder}", f"  {_told(manifest)}, in {manifest.seconds:.1f} s")
    return 0


async def _list(options: Options) -> int:
    from agenthive_server.storage.backup.place import list_backups
    from agenthive_server.storage.backup.work import run

    found = await run(lambda _: list_backups(options.place))
    if not found and options.output == "text":
        return _fail(f"there are no backups in {options.place}")
    width = max((len(each.path.name) for each in found), default=0)
    facts = [_found_facts(each) for each in found]
    _say(options, facts, *(f"{each.path.name:<{width}}  {_found_told(each)}" for each in found))
    return 0


async def _verify(options: Options) -> int:
    from agenthive_server.kernel.clock import SystemClock
    from agenthive_server.storage.backup.manifest import MANIFEST
    from agenthive_server.storage.backup.place import list_backups
    from agenthive_server.storage.backup.verify import reach, verify_backup
    from agenthive_server.storage.backup.work import run

    clock, place = SystemClock(), options.place
    paths = [place] if (place / MANIFEST).exists() else [each.path for each in list_backups(place)]
    if not paths:
        return _fail(f"there is no backup in {place}")
    facts, lines, damaged, newest = [], [], False, None
    for path in paths:
        found = await run(lambda token, path=path: verify_backup(path, token, clock), clock)  # type: ignore[misc]  # bound
        damaged = damaged or not found.whole
        newest = found if found.manifest is not None else newest
        facts.append({"path": path, "whole": found.whole, "problems": found.problems, "seconds": found.seconds})
        told = _told(found.manifest) if found.manifest else ""
        lines += [f"{path.name}  ok: {told}"] if found.whole else [f"{path.name}  DAMAGED"]
        lines += [f"  {problem}" for problem in found.problems]
    if newest is not None and newest.manifest is not None:
        manifest, folder = newest.manifest, newest.path
        there = await run(lambda token: reach(folder, manifest, token), clock)
        damaged = damaged or bool(there.broken)
        facts.append({"journal_after": folder, "last_sequence": there.head, "broken": there.broken})
        if there.broken or there.head > manifest.head:
            lines.append(f"journal  {'BROKEN' if there.broken else 'ok'}: leads from there to event {there.head}")
            lines += [f"  {there.broken}"] if there.broken else []
    _say(options, facts, *lines)
    return EXIT_DAMAGED if damaged else 0


async def _restore(options: Options) -> int:
    from agenthive_server.kernel.clock import SystemClock
    from agenthive_server.storage.backup.restore import restore_backup
    from agenthive_server.storage.backup.work import run

    clock = SystemClock()
    # Without rests: whoever restores waits for it, and nobody works on the new directory.
    restored = await run(
        lambda token: restore_backup(options.source, options.target, token, clock, until=options.sequence)
    )
    _say(options, _restored_facts(restored), *_restored_told(restored))
    if restored.missing:
        sys.stderr.write(f"agenthived: the journal leads no further than event {restored.head}: {restored.missing}\n")
    return 0


# What is said --------------------------------------------------------------------------------------------------------


def _facts(path: Path, manifest: Manifest) -> dict[str, object]:
    return {
        "path": path,
        "time": _time(manifest.create_time),
        "log_id": manifest.log_id,
        "last_sequence": manifest.head,
        "size_bytes": manifest.size,
        "records": manifest.records,
        "events": manifest.events,
        "blobs": manifest.blobs,
        "automatic": manifest.automatic,
        "software": manifest.software,
        "seconds": manifest.seconds,
    }


def _told(manifest: Manifest) -> str:
    held = f"{manifest.records} records, {manifest.blobs} blobs, {_size(manifest.size)}"
    return f"up to event {manifest.head} of log {manifest.log_id[:12]}, {held}"


def _found_facts(found: Found) -> dict[str, object]:
    if found.manifest is None:
        return {"path": found.path, "problem": found.problem}
    return _facts(found.path, found.manifest)


def _found_told(found: Found) -> str:
    if found.manifest is None:
        return f"DAMAGED: {found.problem}"
    return f"{_told(found.manifest)}{', by the archive' if found.manifest.automatic else ''}"


def _restored_facts(restored: Restored) -> dict[str, object]:
    return {
        "path": restored.target,
        "backup": restored.backup,
        "log_id": restored.renewal.log_id,
        "log_id_before": restored.manifest.log_id,
        "last_sequence_before": restored.head,
        "from_journal_events": restored.head - restored.manifest.head,
        "tasks_requeued": restored.renewal.tasks_requeued,
        "sessions_ended": restored.renewal.sessions_ended,
        "agents_begun_anew": restored.renewal.agents_begun_anew,
        "exclusive_tasks": restored.renewal.exclusive_tasks,
        "missing": restored.missing,
        "seconds": restored.seconds,
    }


def _restored_told(restored: Restored) -> list[str]:
    renewal, replayed = restored.renewal, restored.head - restored.manifest.head
    void = f"{renewal.tasks_requeued} held tasks are in the queue again, {renewal.sessions_ended} sessions are over"
    lines = [
        f"made {restored.target} from {restored.backup} in {restored.seconds:.1f} s",
        f"  everything up to event {restored.head}, {replayed} events of it from the journal",
        f"  a new log, {renewal.log_id[:12]}: {void}, {renewal.agents_begun_anew} agents begin anew",
    ]
    if renewal.exclusive_tasks:
        lines += [
            f"  {renewal.exclusive_tasks} open tasks are exclusive. A worker that survived stops working on one within",
            "  the reconnect grace (30 s) of the end of the lost server: start the new one after that",
        ]
    return [*lines, "", "now:", f"  agenthived serve --data-dir {restored.target}"]


def _size(count: float) -> str:
    unit, units = "bytes", ["TiB", "GiB", "MiB", "KiB"]
    while count >= 1024 and units:
        count, unit = count / 1024, units.pop()
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
