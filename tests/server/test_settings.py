"""Settings: defaults, layers, and mistakes told with their line."""

from __future__ import annotations

from pathlib import Path

import pytest
from agenthive_server.settings import SettingsError, load, runner_environment

FLEET = """\
[server]
listen = "127.0.0.1:0"

[[agents]]
id = "one"
command = ["cat"]

[[agents]]
id = "two"
command = ["cat"]
{line}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def test_defaults_need_no_file() -> None:
    assert load(environ={}).server.listen == "127.0.0.1:50051"


def test_environment_goes_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, "[server]\nlisten = 'a:1'\nmaximum_calls = 5\n")
    environ = {"AGENTHIVE_SERVER__LISTEN": "b:2", "AGENTHIVE_SERVER__RUNNER": "false"}
    settings = load(path, environ=environ, flags={"server.listen": "c:3", "server.store": None})
    assert (settings.server.listen, settings.server.runner, settings.server.maximum_calls) == ("c:3", False, 5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("slots = 'many'", ":11: agents[1].slots: Expected `int`"),
        ("slot = 2", ":11: agents[1].slot: unknown key `slot`; known are id, command"),
        ("mode = 'both'", ":11: agents[1].mode: Invalid enum value 'both'"),
        ("slots = 0", ":11: agents[1].slots: Expected 1 to 1000"),
        ("[[agents]]\nid = 'one'\ncommand = ['x']", ":12: agents[2].id: Expected an id used once"),
        ("[[agents]]\nid = 'three'", ":11: agents[2]: Object missing required field `command`"),
        ("[limits]\nlease = 3", ":12: limits.lease: unknown key `lease`"),
        ("= 3", "not valid TOML: "),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_was_expected(tmp_path: Path, line: str, told: str) -> None:
    path = write(tmp_path, FLEET.format(line=line))
    with pytest.raises(SettingsError) as caught:
        load(path, environ={})
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(tmp_path / "none.toml", environ={})


def test_a_table_in_a_table_is_set_from_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path, "[server.tls]\ncertificate = 'file.pem'\nkey = 'file-key.pem'\n")
    environ = {"AGENTHIVE_SERVER__TLS__KEY": "variable-key.pem", "AGENTHIVE_SERVER__RUNNER": "false"}
    tls = load(path, environ=environ, flags={"server.tls.client_ca": "flag.pem"}).server.tls
    assert (tls.certificate, tls.key, tls.client_ca) == ("file.pem", "variable-key.pem", "flag.pem")
    assert tls.required


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[server.tls]\ncert = 'x'", ":2: server.tls.cert: unknown key `cert`; known are certificate, key"),
        ("[server.tls]\n\nkey = 'x'", ":1: server.tls: `certificate` and `key` belong together"),
        ("[server.tls]\ncertificate = 'c'\nkey = 1", ":3: server.tls.key: Expected `str`"),
        ("[runner]\ncertificate = 'c'", ":2: runner.certificate: `certificate` and `key` belong together"),
        (
            "[server.tls]\ncertificate = 'c'\nkey = 'k'\nclient_ca = 'a'\n[runner]\n",
            ":5: runner: the server requires client certificates, and its own runner has none",
        ),
    ],
)
def test_a_mistake_about_tls_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load(path, environ={})
    assert f"{path}{told}" in str(caught.value)


def test_a_table_cannot_be_put_into_a_value(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tls is not a table"):
        load(write(tmp_path, "[server]\ntls = 1\n"), environ={"AGENTHIVE_SERVER__TLS__KEY": "k"})


def test_a_local_runner_does_not_get_in_with_what_a_caller_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY"):
        monkeypatch.setenv(f"AGENTHIVE_{name}", "x")
    monkeypatch.setenv("AGENTHIVE_LIMITS__UNANSWERED_LIMIT", "4")
    for name in ("AGENTHIVE_SERVER__STORE", "AGENTHIVE_SERVER__REDIS", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.setenv(name, "secret")
    names = [name for name in runner_environment() if name.startswith(("AGENTHIVE_", "PG"))]
    assert names == ["AGENTHIVE_LIMITS__UNANSWERED_LIMIT"]


@pytest.mark.parametrize("store", ["", "memory:", "sqlite:///x.db"])
def test_redis_is_for_servers_that_share_a_store(tmp_path: Path, store: str) -> None:
    path = write(tmp_path, f'[server]\nstore = "{store}"\nredis = "redis://localhost"\n')
    with pytest.raises(
        SettingsError, match=r"fleet.toml:3: server.redis: Redis is for servers that share a PostgreSQL"
    ):
        load(path, environ={})


def test_the_redis_of_a_shared_store_is_a_url() -> None:
    shared = {"server.store": "postgresql://h/d"}
    assert load(flags=shared, environ={}).server.redis == ""
    for url in ("redis://h:1/0", "rediss://:secret@h", "unix:///run/redis.sock?db=1"):
        assert load(flags=shared, environ={"AGENTHIVE_SERVER__REDIS": url}).server.redis == url
    with pytest.raises(SettingsError, match=r"server.redis: expected redis://HOST:PORT/NUMBER") as told:
        load(flags={**shared, "server.redis": "http://:secret@h"}, environ={})
    assert "secret" not in str(told.value)
