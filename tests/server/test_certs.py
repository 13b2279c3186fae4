"""`agenthived certs`, as a person types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from agenthive_server.__main__ import main
from agenthive_server.authority import Authority, pair_in
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.rpc.x509 import read_certificates

DAY = 86_400.0


def serial(folder: Path, name: str) -> int:
    return read_certificates(pair_in(folder, name).certificate.read_bytes())[0].serial


def test_one_command_makes_an_authority_and_a_server_and_says_what_to_do_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tls"
    assert main(["certs", "server", "--dir", str(folder), "--host", "hive.example", "--host", "192.0.2.1"]) == 0
    told = capsys.readouterr().out
    assert f"agenthived serve --tls-cert {folder}/server.pem --tls-key {folder}/server-key.pem" in told
    assert f"hive --ca {folder}/ca.pem health" in told
    assert sorted(path.name for path in folder.iterdir()) == ["ca-key.pem", "ca.pem", "server-key.pem", "server.pem"]
    (made,) = read_certificates((folder / "server.pem").read_bytes())
    assert made.names[:2] == ("hive.example", "localhost")
    assert "192.0.2.1" in made.names


def test_a_client_is_made_by_the_authority_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certs", "server", "--dir", str(tmp_path)]) == 0
    authority = serial(tmp_path, "ca")
    assert main(["certs", "client", "ana", "--dir", str(tmp_path), "--days", "7"]) == 0
    assert serial(tmp_path, "ca") == authority
    assert f"--cert {tmp_path}/client-ana.pem --key {tmp_path}/client-ana-key.pem" in capsys.readouterr().out


def test_nothing_that_is_there_is_lost_by_a_second_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ca"], ["server"], ["client", "ana"]):
        assert main(["certs", *words, "--dir", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for words in (["ca"], ["server"], ["client", "ana"]):
        assert main(["certs", *words, "--dir", str(tmp_path)]) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert capsys.readouterr().err.count("exists") == 3


def test_half_an_authority_is_neither_used_nor_made_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certs", "ca", "--dir", str(tmp_path)]) == 0
    (tmp_path / "ca-key.pem").unlink()
    assert main(["certs", "server", "--dir", str(tmp_path)]) == 1
    assert "ca-key.pem: No such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]


def test_only_what_ends_soon_is_renewed_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Authority.new(tmp_path, SystemClock()).issue_server([], days=30)
    past = Authority.open(tmp_path, ManualClock(SystemClock().now() - 25 * DAY))
    past.issue_client("ana", days=30)
    server, client, authority = (serial(tmp_path, name) for name in ("server", "client-ana", "ca"))
    assert main(["certs", "renew", "--dir", str(tmp_path)]) == 0
    assert "client-ana.pem" in (told := capsys.readouterr().out)
    assert "server.pem" not in told
    assert serial(tmp_path, "server") == server
    assert serial(tmp_path, "client-ana") != client
    assert main(["certs", "renew", "--dir", str(tmp_path)]) == 0
    assert "nothing has to be renewed" in capsys.readouterr().out
    assert main(["certs", "renew", "--all", "--dir", str(tmp_path)]) == 0
    assert serial(tmp_path, "server") != server
    assert serial(tmp_path, "ca") == authority
    assert main(["certs", "renew", "ca", "--dir", str(tmp_path)]) == 0
    assert serial(tmp_path, "ca") != authority


def test_what_there_is_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certs", "show", "--dir", str(tmp_path)]) == 1
    assert "no certificates in" in capsys.readouterr().err
    past = Authority.new(tmp_path, ManualClock(SystemClock().now() - 5 * DAY))
    past.issue_client("late", days=2)
    past.issue_server(["hive.example"], days=30)
    assert main(["certs", "show", "--dir", str(tmp_path)]) == 0
    _, client, server = capsys.readouterr().out.splitlines()
    assert client.endswith("ENDED  for late")
    assert server.endswith("for hive.example, localhost, 127.0.0.1, ::1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["server", "--host", "a:1"], "expected a DNS name"),
        (["client", "../x"], "expected 1 to 64 letters"),
        (["server", "--days", "0"], "expected 1 to 36500"),
        (["renew"], "ca.pem: No such file"),
    ],
)
def test_what_cannot_be_made_is_a_sentence(
    tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certs", *words, "--dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_without_cryptography_it_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from agenthive_server.__main__ import main\n"
        f"sys.exit(main(['certs', 'server', '--dir', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == "agenthived: `agenthived certs` needs the package `cryptography`: pip install 'agenthive[auth]'\n"
    )


def test_the_server_does_without_cryptography() -> None:
    program = "import sys, agenthive_server.app; print('cryptography' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )


@pytest.mark.parametrize("words", [[], ["server"], ["client"], ["renew"], ["ca"], ["show"]])
def test_every_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["certs", *words, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert f"agenthived certs {' '.join(words)}".strip() in told
    if not words:
        assert "TLS in two commands" in told
