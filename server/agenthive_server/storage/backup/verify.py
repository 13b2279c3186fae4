"""Reads a backup whole and says what is broken: digests, the database's own check, the log, records and blobs."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agenthive_server.kernel.clock import Clock
from agenthive_server.kernel.errors import DataLoss
from agenthive_server.kernel.records import Kind
from agenthive_server.storage import statements
from agenthive_server.storage.codec import Unreadable, unpack, unpack_events
from agenthive_server.storage.columns import REVISION
from agenthive_server.storage.transaction import sentence

from .create import open_copy, tables
from .journal import FOLDER, Group
from .manifest import DATABASE, Manifest, read_manifest
from .place import failures, sha256_of
from .replay import Broken, Standing, follow
from .work import Token

MOST_PROBLEMS = 20
"""Problems told; what is that broken is not read to the end."""

_ROWS = 500
_INSTRUCTIONS = 100_000


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What verifying found. `manifest` is None when it cannot be read."""

    path: Path
    manifest: Manifest | None
    problems: tuple[str, ...]
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_backup(folder: Path, token: Token, clock: Clock) -> Verification:
    """Read a backup whole. What is wrong is in the answer.

    Blocks. Raises `BadRequest` when there is no backup or one of a newer format, and `GivenUp`.
    """
    began = clock.monotonic()
    try:
        manifest = read_manifest(folder)
    except DataLoss as error:
        return Verification(path=folder, manifest=None, problems=(error.message,), seconds=clock.monotonic() - began)
    problems = tuple(islice(_problems(folder, manifest, token), MOST_PROBLEMS))
    return Verification(path=folder, manifest=manifest, problems=problems, seconds=clock.monotonic() - began)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far the journal leads from a backup: to every event up to `head`. `broken`: why not beyond, if it should."""

    head: int
    broken: str = ""


def reach(folder: Path, manifest: Manifest, token: Token) -> Reach:
    """Read the journal that continues a backup; raises `StoreUnavailable`, `GivenUp`. Blocks."""
    standing = Standing(
        log_id=manifest.log_id, schema=manifest.schema, group_count=manifest.group_count, time=manifest.create_time
    )
    head = manifest.head
    with failures(f"journal of {folder}"):
        try:
            for entry in follow(folder.parent / FOLDER / manifest.log_id, standing):
                token.step()
                for member in entry.members if isinstance(entry, Group) else ():
                    if member.last and member.first != head + 1:
                        return Reach(head=head, broken=f"the journal has a hole: event {member.first} follows {head}")
                    head = member.last or head
        except Broken as error:
            return Reach(head=head, broken=str(error))
    return Reach(head=head)


def _problems(folder: Path, manifest: Manifest, token: Token) -> Iterator[str]:
    yield from check_files(folder, manifest, token)
    if not (folder / DATABASE).is_file():
        return
    try:
        db = open_copy(folder / DATABASE)
        try:
            db.set_progress_handler(lambda: int(token.given_up), _INSTRUCTIONS)
            yield from _check_database(db, manifest, token)
        finally:
            db.close()
    except sqlite3.Error as error:
        # Interrupted as asked, perhaps.
        token.step()
        yield f"the database cannot be read: {sentence(error)}"


def check_files(folder: Path, manifest: Manifest, token: Token) -> Iterator[str]:
    """Yield what is wrong with the files of a backup: missing, longer or shorter, or changed."""
    for file in manifest.files:
        path = folder / file.name
        try:
            size = path.stat().st_size
            if size != file.size:
                yield f"{file.name} has {size} bytes, not {file.size}"
            elif sha256_of(path, token) != file.sha256:
                yield f"{file.name} is not as it was written: its digest has changed"
        except OSError as error:
            yield f"{file.name}: {error.strerror}"


def _check_database(db: sqlite3.Connection, manifest: Manifest, token: Token) -> Iterator[str]:
    for (found,) in db.execute("PRAGMA integrity_check(5)"):
        if found != "ok":
            yield f"the database is damaged: {found}"
    missing = {"meta", "event", "blob", "blob_chunk", "alembic_version"} - tables(db)
    if missing:
        yield f"tables are missing: {', '.join(sorted(missing))}"
        return
    (schema,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
    if not known_schema(schema):
        yield f"its tables stand at {schema}, this version knows them up to {REVISION}: use a newer Agent Hive"
        return
    log_id, head, _, _ = db.execute(statements.SELECT_META).fetchone()
    if (schema, log_id, head) != (manifest.schema, manifest.log_id, manifest.head):
        yield f"the database is of log {log_id} up to event {head}, the manifest of another"
    yield from check_log(db, head, token)
    yield from _check_records(db, token)
    yield from _check_blobs(db, token)


def known_schema(schema: str) -> bool:
    """Whether this version can read tables that stand at a migration."""
    return schema.isdigit() and len(schema) == len(REVISION) and schema <= REVISION


def check_log(db: sqlite3.Connection, head: int, token: Token) -> Iterator[str]:
    """Yield what is wrong with the event log: holes, an end that is not the head, what cannot be read."""
    expected, before = 0, 0.0
    rows = db.execute(statements.EVENTS_AFTER, (-1,))
    while batch := rows.fetchmany(_ROWS):
        token.step()
        for last, first, time, body in batch:
            if expected and first != expected:
                yield f"the log has a hole: event {first} follows event {expected - 1}"
            if time < before:
                yield f"the time of event {first} is before that of the event before it"
            try:
                count = len(unpack_events(last, first, time, body))
            except Unreadable as error:
                yield f"events {first} to {last} cannot be read: {error}"
            else:
                if count != last - first + 1:
                    yield f"events {first} to {last} should be {last - first + 1}, and are {count}"
            expected, before = last + 1, time
    if expected and expected != head + 1:
        yield f"the log ends with event {expected - 1}, its head is {head}"


def _check_records(db: sqlite3.Connection, token: Token) -> Iterator[str]:
    present = tables(db)
    for kind in Kind:
        if kind.value not in present:
            continue
        rows = db.execute(statements.scan_records(kind, open_only=False))
        while batch := rows.fetchmany(_ROWS):
            token.step()
            for row in batch:
                try:
                    unpack(kind, *row)
                except Unreadable as error:
                    yield f"the record {kind} {row[1]!r} cannot be read: {error}"


def _check_blobs(db: sqlite3.Connection, token: Token) -> Iterator[str]:
    for namespace, blob_id, size, upload_id in db.execute("SELECT namespace, id, size, upload_id FROM blob"):
        digest, length = hashlib.sha256(), 0
        for (content,) in db.execute(
            "SELECT content FROM blob_chunk WHERE upload_id = ? ORDER BY number", (upload_id,)
        ):
            digest.update(content)
            length += len(content)
            token.step()
        if length != size:
            yield f"the blob {blob_id} of {namespace} has {length} bytes, not {size}"
        elif f"sha256:{digest.hexdigest()}" != blob_id:
            yield f"the content of the blob {blob_id} of {namespace} is another"
