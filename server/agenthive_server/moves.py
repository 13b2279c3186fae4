"""`agenthived migrate-store`: moves a hive from a SQLite file to PostgreSQL."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agenthive_server.storage.address import is_postgres, masked, shown

if TYPE_CHECKING:
    from agenthive_server.storage.move.moving import Moved

MOVE: Final = """\
Move a whole hive from a SQLite file to a PostgreSQL database that is empty, or an empty schema in one: agents, tasks,
sessions, messages, plugins' state, the event log with its cursors, blobs. It stays the same hive: workers go on with
their leases, subscribers with their cursors.

The server may run while all is copied. For the end it must be stopped: what has changed meanwhile is copied, everything
is read on both sides and compared, the file is marked as moved, so that no server starts on it by accident, and the new
hive can be served. Until then it cannot. With --wait one run does it all, and says when to stop the server.

Interrupted at any point, by whatever, the same command goes on where it was.
"""

EXAMPLES: Final = """\
examples:
  agenthived migrate-store --from sqlite:///hive/hive.db --to postgresql://hive@db.example/hive --wait
  agenthived migrate-store --from sqlite:///hive/hive.db --to … --verify-only
                                                    read both and compare, change nothing
  agenthived migrate-store --from sqlite:///hive/hive.db --to … --undo
                                                    back to the file, if the new hive has not been served yet
  agenthived migrate-store --from sqlite:///hive/hive.db --undo
                                                    back to the file whatever happened: what came after is not in it

A password is better in a PGPASSFILE or PGPASSWORD: what stands in the command, others see. Agents' processes, work
folders and certificates are not in the store: start the new server on the same machine with the same data directory.

exit codes: 0 well, 1 failed, 2 wrong usage, 65 source and target differ, 75 not finished: a server runs on the source,
or the database is not to be had; run it again then
"""

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_DIFFERS: Final = 65
EXIT_AGAIN: Final = 75
EXIT_INTERRUPTED: Final = 130

Options = argparse.Namespace


def add_migrate_store(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `agenthived migrate-store` its options."""
    parser.description, parser.epilog = MOVE, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="the hive: sqlite:///PATH")
    parser.add_argument("--to", dest="target", metavar="URL", help="where to: postgresql://USER@HOST:PORT/DATABASE")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--wait", action="store_true", help="copy until the server is stopped, then finish")
    instead.add_argument("--verify-only", action="store_true", help="compare what was moved, and change nothing")
    instead.add_argument("--undo", action="store_true", help="let the source be served again")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="default: text")
    parser.set_defaults(run=_run)


def _run(options: Options) -> int:
    prefix = "sqlite:///"
    if not options.source.startswith(prefix):
        return _fail(f"--from {shown(options.source)}: expected sqlite:///PATH", EXIT_USAGE)
    if options.target is None and not options.undo:
        return _fail("--to is missing: where to move the hive", EXIT_USAGE)
    if options.target is not None and not is_postgres(options.target):
        return _fail(f"--to {shown(options.target)}: expected postgresql://USER@HOST:PORT/DATABASE", EXIT_USAGE)
    return _guarded(Path(options.source.removeprefix(prefix)), options)


def _guarded(path: Path, options: Options) -> int:
    """Do what is asked; whatever stands in the way is a sentence on stderr."""
    from agenthive_server.kernel.errors import DataLoss, KernelError, StoreUnavailable
    from agenthive_server.kernel.ports import StoreUnusable

    try:
        from agenthive_server.storage.move.moving import StillServed
    except ImportError as error:
        return _fail(f"PostgreSQL needs the package {error.name}: pip install 'agenthive[postgres]'")
    try:
        return asyncio.run(_move(path, options))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on where it was", EXIT_INTERRUPTED)
    except DataLoss as error:
        return _fail(error.message, EXIT_DIFFERS)
    except (StillServed, StoreUnavailable) as error:
        return _fail(error.message, EXIT_AGAIN)
    except KernelError as error:
        return _fail(error.message)
    except StoreUnusable as error:
        return _fail(str(error))


async def _move(path: Path, options: Options) -> int:
    from agenthive_server.kernel.clock import SystemClock
    from agenthive_server.storage.move.moving import Move, forget_move

    if options.target is None:
        mark = forget_move(path)
        facts = {"source": path, "moved_to": mark.target}
        _say(options, facts, f"{path} can be served again. Do not serve {mark.target} beside it: both are one hive")
        return 0
    clock = SystemClock()
    began = clock.monotonic()
    move = Move(path, options.target, clock, lambda line: print(line, file=sys.stderr, flush=True))
    if options.undo:
        moved = await move.take_back()
        told = f"{path} can be served again, {moved.target} cannot; a later migrate-store goes on from what is there"
        _say(options, {"source": path, "target": moved.target}, told)
    elif options.verify_only:
        moved = await move.compare()
        _say(
            options,
            _facts(path, moved, clock.monotonic() - began),
            f"{path} and {moved.target} are the same",
            *_sums(moved),
        )
    else:
        moved = await move.run(wait=options.wait)
        seconds = clock.monotonic() - began
        _say(options, _facts(path, moved, seconds), *_told(path, moved, seconds, masked(options.target)))
    return 0


def _facts(path: Path, moved: Moved, seconds: float) -> dict[str, object]:
    return {
        "source": path,
        "target": moved.target,
        "log_id": moved.standing.log_id,
        "last_sequence": moved.standing.head,
        "moved_before": moved.before,
        "rows_written": moved.written,
        "tables": {each.table: {"rows": each.rows, "sha256": each.digest} for each in moved.sums},
        "seconds": seconds,
    }


def _told(path: Path, moved: Moved, seconds: float, url: str) -> list[str]:
    if moved.before:
        return [f"{path} was moved to {moved.target} before; there is nothing to do"]
    return [
        f"moved {path} to {moved.target} in {seconds:.1f} s",
        f"  everything up to event {moved.standing.head} of log {moved.standing.log_id[:12]}, compared on both sides:",
        *_sums(moved),
        "",
        "now:",
        f"  agenthived serve --store '{url}' --data-dir {path.parent}",
    ]


def _sums(moved: Moved) -> list[str]:
    width = max((len(each.table) for each in moved.sums), default=0)
    return [f"  {each.table:<{width}}  {each.rows:>10,} rows  {each.digest[:16]}" for each in moved.sums if each.rows]


def _say(options: Options, facts: object, *lines: str) -> None:
    text = json.dumps(facts, indent=2, default=str) if options.output == "json" else "\n".join(lines)
    sys.stdout.write(f"{text}\n")


def _fail(sentence: str, code: int = EXIT_FAILED) -> int:
    sys.stderr.write(f"agenthived: {sentence}\n")
    return code
