"""A file that is there whole and for its owner only, or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import typer
from agenthive.cli.private_file import PrivateFile


def test_it_is_there_when_it_is_kept_and_only_for_its_owner(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    with PrivateFile(place, force=False) as file:
        file.write(b"one ")
        file.write(b"two")
        assert not place.exists()
        file.keep()
    assert place.read_bytes() == b"one two"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [place]


def test_what_was_not_kept_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_bytes(b"old")
    with PrivateFile(place, force=True) as file:
        file.write(b"new")
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_place_that_is_taken_or_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"old")
    for place, force in ((tmp_path / "taken", False), (tmp_path, True), (tmp_path / "no" / "folder", False)):
        with pytest.raises(typer.BadParameter):
            PrivateFile(place, force=force)


def test_a_readable_file_that_is_replaced_becomes_private(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_bytes(b"old")
    place.chmod(0o644)
    with PrivateFile(place, force=True) as file:
        file.write(b"new")
        file.keep()
    assert (place.read_bytes(), stat.S_IMODE(place.stat().st_mode)) == (b"new", 0o600)
