"""A manifest is read as it was written, or refused with what is wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from agenthive_server.kernel.errors import BadRequest, DataLoss
from agenthive_server.storage.backup.manifest import MANIFEST, File, Manifest, _digest, read_manifest, write_manifest

PLAIN = Manifest(
    software="1",
    schema="0001",
    create_time=1.5,
    seconds=0.25,
    log_id="l",
    oldest=1,
    head=9,
    head_time=1.25,
    group_count=3,
    records=2,
    events=9,
    blobs=0,
    files=(File(name="hive.db", size=10, sha256="ab"),),
)


def rewrite(folder: Path, **changes: object) -> None:
    content = msgspec.json.decode((folder / MANIFEST).read_bytes()) | changes
    content["digest"] = _digest(content)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(content))


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, PLAIN)
    assert read_manifest(tmp_path) == PLAIN.sealed()
    assert PLAIN.size == 10


def test_what_a_later_version_adds_is_skipped_but_not_its_format(tmp_path: Path) -> None:
    write_manifest(tmp_path, PLAIN)
    rewrite(tmp_path, weather="fine")
    assert read_manifest(tmp_path).head == 9
    rewrite(tmp_path, format=2)
    with pytest.raises(BadRequest, match="newer version"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"format": 1, "digest": "x"}'])
def test_garbage_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(DataLoss, match="is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../hive.db", "/etc/passwd", "..", ""])
def test_it_names_no_file_outside(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, PLAIN)
    rewrite(tmp_path, files=[{"name": name, "size": 1, "sha256": "x"}])
    with pytest.raises(DataLoss, match="outside"):
        read_manifest(tmp_path)


def test_a_folder_without_one_is_no_backup(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(BadRequest, match="is not a backup"):
            read_manifest(path)
