"""The commands of `agenthived`, as a person types them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from agenthive_server.__main__ import main


def test_check_config_prints_the_effective_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('[server]\nlisten = "127.0.0.1:7000"\n')
    assert main(["check-config", "--config", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["server"]["listen"] == "127.0.0.1:7000"


def test_check_config_does_not_print_the_password_of_a_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hive.toml"
    path.write_text('[server]\nstore = "postgresql://hive:secret@db.example/hive?sslmode=verify-full"\n')
    assert main(["check-config", "--config", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)["server"]["store"]
    assert shown == "postgresql://hive:***@db.example/hive?sslmode=verify-full"


def test_check_config_says_what_is_wrong_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("[server]\nport = 1\n")
    assert main(["check-config", "--config", str(path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{path}:2: server.port: unknown key `port`" in told.err


def test_show_chain_lists_the_interceptors_outermost_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-chain"]) == 0
    names = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert names == ["CallId", "AccessLog", "DeadlineCap", "ConcurrencyLimit", "DiskGuard"]


def test_settings_of_plugins_are_checked_and_their_secrets_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hive.toml"
    path.write_text("[plugins.gone]\nlevel = 1\n")
    assert main(["check-config", "--config", str(path)]) == 1
    assert "plugins.gone: no such plugin is installed" in capsys.readouterr().err
    assert main(["show-chain", "--config", str(path)]) == 1
    assert "plugins.gone: no such plugin is installed" in capsys.readouterr().err
    path.write_text("[plugins]\nenable = []\n")
    assert main(["check-config", "--config", str(path)]) == 1
    assert f"{path}:2: plugins.enable: unknown key `enable`; known are enabled," in capsys.readouterr().err


def test_migrate_makes_a_database_and_leaves_one_that_is_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["migrate", "--data-dir", str(tmp_path)]) == 0
        assert "is up to date" in capsys.readouterr().out
    with sqlite3.connect(tmp_path / "hive.db") as db:
        assert db.execute("SELECT head FROM meta").fetchone() == (0,)
    db.close()


def test_wrong_usage_and_unknown_stores_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runner", "--label", "no-value", "--data-dir", str(tmp_path)]) == 2
    assert main(["migrate", "--store", "mysql://x"]) == 1
    errors = capsys.readouterr().err
    assert "expected KEY=VALUE" in errors
    assert "expected sqlite:///PATH or memory:" in errors


@pytest.mark.parametrize("command", ["serve", "runner", "check-config", "show-chain", "migrate", "version"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"agenthived {command}" in capsys.readouterr().out
