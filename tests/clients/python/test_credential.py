"""What a worker has earned is kept, privately, and gives way when it is refused."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
from agenthive.credential import Credential
from agenthive.errors import PermissionDenied, Unauthenticated


def test_it_is_kept_in_a_private_file_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "credential"
    Credential(path).earn("first")
    Credential(path).earn("second")
    assert Credential(path).value == "second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_file_it_is_kept_in_memory_only() -> None:
    credential = Credential()
    credential.earn("secret")
    assert credential.value == "secret"


def test_a_file_that_cannot_be_written_is_told_without_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    credential = Credential(tmp_path / "no" / "folder")
    with caplog.at_level(logging.ERROR):
        credential.earn("sesame")
    assert credential.value == "sesame"
    assert "cannot be kept" in caplog.text
    assert "sesame" not in caplog.text


def test_a_refused_credential_gives_way_to_a_join_token_once() -> None:
    credential = Credential()
    credential.earn("old")
    assert not credential.yields(PermissionDenied("no"), "join")
    assert not credential.yields(Unauthenticated("no"), "")
    assert credential.value == "old"
    assert credential.yields(Unauthenticated("no"), "join")
    assert credential.value == ""
    assert not credential.yields(Unauthenticated("no"), "join")
