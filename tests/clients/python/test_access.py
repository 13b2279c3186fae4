"""What a client shows and trusts: options, environment, files that change, and secrets that do not travel openly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from agenthive import Client, Worker
from agenthive.access import Access, AccessError, is_local
from agenthive_server.authority import Authority
from agenthive_server.kernel.clock import SystemClock

BEARER = "authorization"


def bearer(access: Access) -> str | None:
    return dict(access.metadata()).get(BEARER)


def test_nothing_is_shown_when_nothing_is_said() -> None:
    access = Access(environ={})
    assert access.metadata() == (("agenthive-namespace", "default"),)
    assert not access.tls


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/x", "unix-abstract:x", "127.3.0.1",
                                    "dns:///localhost:1", "dns://8.8.8.8/127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:1",
                                    "ipv6:[::1]:1"])  # fmt: skip
def test_a_target_on_this_machine(target: str) -> None:
    assert is_local(target)


@pytest.mark.parametrize("target", ["hive.example:1", "10.0.0.1:1", "[2001:db8::1]:1", "localhost.example:1", "",
                                    "0.0.0.0:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "dns://127.0.0.1/hive.example:1", "xds:///localhost",
                                    "127.0.0.1.example"])  # fmt: skip
def test_a_target_on_another_machine(target: str) -> None:
    assert not is_local(target)


def test_the_environment_counts_where_the_arguments_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    environ = {"AGENTHIVE_TOKEN_FILE": str(tmp_path / "token")}
    assert bearer(Access(environ=environ)) == "Bearer from-file"
    environ["AGENTHIVE_TOKEN"] = "from-variable"
    assert bearer(Access(environ=environ)) == "Bearer from-variable"
    assert bearer(Access(environ=environ, token="given")) == "Bearer given"
    (tmp_path / "mine").write_text("mine")
    assert bearer(Access(environ=environ, token_file=tmp_path / "mine")) == "Bearer mine"
    assert bearer(Access(environ={"AGENTHIVE_TOKEN": ""})) is None


def test_an_authority_in_the_environment_makes_it_speak_tls(tmp_path: Path) -> None:
    Authority.new(tmp_path, SystemClock())
    environ = {"AGENTHIVE_CA": str(tmp_path / "ca.pem")}
    assert Access("hive.example:1", environ=environ, token="t").tls
    assert not Access(environ=environ, tls=False).tls
    with pytest.raises(AccessError, match="no TLS, and files for it"):
        Access(environ={}, tls=False, ca=tmp_path / "ca.pem")


@pytest.mark.parametrize("make", [lambda **more: Client("hive.example:1", **more),
                                  lambda **more: Worker("hive.example:1", agent_id="a", **more)])  # fmt: skip
def test_a_token_is_not_sent_in_plain_text_to_another_machine(make: type[Client]) -> None:
    with pytest.raises(ValueError, match=r"would travel in plain text to hive\.example:1"):
        make(token="sesame")
    make(token="sesame", insecure=True)
    make(token="sesame", tls=True)


def test_a_join_token_is_not_either() -> None:
    with pytest.raises(AccessError, match="a join token or credential would travel in plain text"):
        Worker("hive.example:1", agent_id="a", join_token="sesame")
    Worker("127.0.0.1:1", agent_id="a", join_token="sesame")


@pytest.mark.parametrize("token", ["two words", "", "line\nbreak", "snowman-☃", "x" * 9_000])
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(AccessError, match="the token: expected one token") as caught:
        Access(environ={}, token=token)
    assert not token or token not in str(caught.value)


def test_a_token_file_is_read_again_when_it_changes_and_kept_when_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    access = Access(environ={}, token_file=path)
    assert bearer(access) == "Bearer first"
    path.write_text("second-one")
    assert bearer(access) == "Bearer second-one"
    path.write_text("")  # as it is while somebody writes it
    assert bearer(access) == "Bearer second-one"
    path.unlink()
    assert bearer(access) == "Bearer second-one"
    path.write_text("third")
    assert bearer(access) == "Bearer third"


def test_a_token_can_come_through_a_pipe_which_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"sesame\n")
    os.close(writing)
    access = Access(environ={}, token_file=f"/dev/fd/{reading}")
    os.close(reading)
    assert [bearer(access), bearer(access)] == ["Bearer sesame"] * 2


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority.new(tmp_path, SystemClock())
    one, other = authority.issue_client("one"), authority.issue_client("other")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(AccessError, match=r"token_file .*/none: No such file"):
        Access(environ={}, token_file=tmp_path / "none")
    with pytest.raises(AccessError, match=r"ca .*/none: No such file"):
        Access(environ={}, ca=tmp_path / "none")
    with pytest.raises(AccessError, match=r"ca .*/junk: no certificate"):
        Access(environ={}, ca=tmp_path / "junk")
    with pytest.raises(AccessError, match="belong together"):
        Access(environ={}, cert=one.certificate)
    with pytest.raises(
        AccessError, match=r"client-one\.pem and key .*client-other-key\.pem are no certificate and its"
    ):
        Access(environ={}, cert=one.certificate, key=other.key)
    assert Access(environ={}, cert=one.certificate, key=one.key).tls


def test_the_certificate_of_the_environment_comes_as_a_pair_or_not_at_all(tmp_path: Path) -> None:
    authority = Authority.new(tmp_path, SystemClock())
    one = authority.issue_client("one")
    environ = {"AGENTHIVE_CERT": str(one.certificate), "AGENTHIVE_KEY": str(one.key)}
    assert Access(environ=environ).tls
    with pytest.raises(AccessError, match="belong together"):
        Access(environ=environ, cert=one.certificate)
