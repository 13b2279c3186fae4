"""`agenthived backup` and `agenthived restore`, as a person types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agenthive_server.__main__ import main
from agenthive_server.storage.backup.manifest import DATABASE
from agenthive_server.testing.harness import open_app, open_served
from agenthive_server.testing.waiting import eventually

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    told = capsys.readouterr()
    return code, told.out, told.err


def asked(capsys: Capture, *words: object) -> Any:
    code, out, err = run(capsys, *words, "--output", "json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    """The data directory of a hive that has ended."""
    async with open_served(tmp_path / "data") as (_, client):
        for name in ("a", "b", "c"):
            await client.delegate("work", task_id=name)
    return tmp_path / "data"


def test_a_hive_is_copied_listed_read_and_brought_back(data: Path, tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "backups"
    code, told, _ = run(capsys, "backup", "create", "--data-dir", data, "--to", place)
    assert code == 0
    (folder,) = place.iterdir()
    assert told.startswith(f"made {folder}\n  up to event 3 of log ")
    assert f"{folder.name}  up to event 3" in run(capsys, "backup", "list", place)[1]
    code, told, _ = run(capsys, "backup", "verify", folder)
    assert (code, told.split(":")[0]) == (0, f"{folder.name}  ok")
    code, told, _ = run(capsys, "restore", "--from", place, "--to", tmp_path / "new")
    assert code == 0
    assert f"made {tmp_path / 'new'} from {folder}" in told
    assert f"agenthived serve --data-dir {tmp_path / 'new'}" in told
    assert (tmp_path / "new" / DATABASE).exists()


def test_programs_are_told_in_json(data: Path, tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "backups"
    made = asked(capsys, "backup", "create", "--data-dir", data, "--to", place)
    assert (made["last_sequence"], made["events"], made["blobs"], made["automatic"]) == (3, 3, 0, False)
    (listed,) = asked(capsys, "backup", "list", place)
    assert listed == made
    verified, journal = asked(capsys, "backup", "verify", place)
    assert (verified["path"], verified["whole"], verified["problems"]) == (made["path"], True, [])
    assert (journal["last_sequence"], journal["broken"]) == (3, "")
    restored = asked(capsys, "restore", "--from", place, "--to", tmp_path / "new", "--sequence", 3)
    assert restored["log_id"] != restored["log_id_before"] == made["log_id"]
    assert restored["last_sequence_before"] == 3


async def test_with_an_archive_any_event_can_be_gone_back_to(tmp_path: Path, capsys: Capture) -> None:
    archive = tmp_path / "archive"
    async with open_served(tmp_path / "data", server__archive_dir=str(archive)) as (app, client):
        made = app.archive
        assert made is not None
        await eventually(lambda: made.backups == 1)
        for number in range(5):
            await client.delegate("work", task_id=f"t{number}")
        head = app.log.head
    for sequence in (2, 4, head):
        target = tmp_path / f"at-{sequence}"
        assert run_in_process("restore", "--from", archive, "--to", target, "--sequence", sequence)[0] == 0
        async with open_served(target) as (_, client):
            there = [task.task_id async for task in client.list_tasks()]
        assert sorted(there) == [f"t{number}" for number in range(sequence)]
    code, told, _ = run_in_process("backup", "verify", archive)
    assert code == 0
    assert f"journal  ok: leads from there to event {head}" in told


def run_in_process(*words: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "agenthive_server", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


async def test_an_archive_of_a_store_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="a store in memory cannot be archived"):
        async with open_app(server__archive_dir=str(tmp_path)):
            pass


# What does not work


def test_damage_has_a_code_of_its_own(data: Path, tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "backups"
    made = Path(asked(capsys, "backup", "create", "--data-dir", data, "--to", place)["path"])
    content = (made / DATABASE).read_bytes()
    (made / DATABASE).write_bytes(content[:9_000] + b"xyz" + content[9_003:])
    code, told, _ = run(capsys, "backup", "verify", place)
    assert code == 65
    assert f"{made.name}  DAMAGED\n  {DATABASE} is not as it was written" in told
    code, told, error = run(capsys, "restore", "--from", place, "--to", tmp_path / "new")
    assert (code, told) == (65, "")
    assert "is damaged: it is not as it was written" in error
    assert not (tmp_path / "new").exists()
    (made / "manifest.json").write_text("{}")
    assert "DAMAGED" in run(capsys, "backup", "list", place)[1]
    assert run(capsys, "backup", "verify", place)[0] == 65


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("backup", "create", "--data-dir", "{tmp}/none", "--to", "{tmp}/b"), "there is no database at"),
        (("backup", "create", "--store", "memory:", "--to", "{tmp}/b"), "a store in memory cannot be backed up"),
        (("backup", "create", "--store", "mysql://x", "--to", "{tmp}/b"), "expected sqlite:///PATH or memory:"),
        (("backup", "create", "--config", "{tmp}/none.toml", "--to", "{tmp}/b"), "No such file"),
        (("backup", "list", "{tmp}/none"), "there are no backups in"),
        (("backup", "verify", "{tmp}/none"), "there is no backup in"),
        (("restore", "--from", "{tmp}/none", "--to", "{tmp}/new"), "there is no backup in"),
    ],
)
def test_what_fails_is_a_sentence(words: tuple[str, ...], told: str, tmp_path: Path, capsys: Capture) -> None:
    code, out, error = run(capsys, *(word.format(tmp=tmp_path) for word in words))
    assert (code, out) == (1, "")
    assert error.startswith("agenthived: ")
    assert told in error
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_and_an_event_nobody_kept_are_refused(data: Path, tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "backups"
    assert run(capsys, "backup", "create", "--data-dir", data, "--to", place)[0] == 0
    code, _, error = run(capsys, "restore", "--from", place, "--to", data)
    assert (code, "is not empty (hive.db" in error) == (1, True)
    code, _, error = run(capsys, "restore", "--from", place, "--to", tmp_path / "new", "--sequence", 9)
    assert (code, "lead to event 3" in error) == (1, True)
    assert not (tmp_path / "new").exists()


def test_ctrl_c_leaves_nothing_behind(data: Path, tmp_path: Path) -> None:
    (data / "big").write_bytes(b"")
    command = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('CREATE TABLE filler (x)');"
    command += " db.execute('INSERT INTO filler VALUES (zeroblob(300000000))'); db.commit(); db.close()"
    subprocess.run([sys.executable, "-c", command, str(data / DATABASE)], check=True)
    words = ["backup", "create", "--data-dir", str(data), "--to", str(tmp_path / "b")]
    with subprocess.Popen([sys.executable, "-m", "agenthive_server", *words], stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob("b/.partial-*/*")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, b"agenthived: interrupted; nothing was left behind\n")
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_the_commands_explain_themselves(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "examples:" in told
    assert "exit codes:" in told
