"""What may be listened on, and with what protection."""

from __future__ import annotations

import logging

import pytest
from agenthive_server.rpc.exposure import Unprotected, is_loopback, local_address, require_protected


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:50051", "[::1]:1", "127.9.9.9:1"])
def test_nobody_else_reaches_loopback_so_nothing_has_to_protect_it(listen: str) -> None:
    require_protected(listen, tls=False, authenticated=False, insecure=False)


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.0.2.1:1", "hive.example:1", ":1"])
@pytest.mark.parametrize(
    ("tls", "authenticated", "missing"),
    [(False, False, "no TLS and authentication"), (True, False, "no authentication"), (False, True, "no TLS")],
)
def test_beyond_loopback_tls_and_authentication_are_asked_for_or_insecure_which_is_logged(
    listen: str, tls: bool, authenticated: bool, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unprotected, match="reachable from other machines") as caught:
        require_protected(listen, tls=tls, authenticated=authenticated, insecure=False)
    assert missing in str(caught.value)
    assert ("--tls-cert" in str(caught.value)) is not tls
    assert ("plugin that authenticates" in str(caught.value)) is not authenticated
    with caplog.at_level(logging.WARNING):
        require_protected(listen, tls=tls, authenticated=authenticated, insecure=True)
    assert missing.replace("no ", "without ", 1) in caplog.text


def test_with_both_it_may_listen_anywhere_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    require_protected("0.0.0.0:1", tls=True, authenticated=True, insecure=True)
    assert not caplog.records


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:²", ""])
def test_an_address_that_is_none_is_told(listen: str) -> None:
    with pytest.raises(Unprotected, match="expected HOST:PORT"):
        require_protected(listen, tls=True, authenticated=True, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1.example", "localhost.example", "0.0.0.0", "10.0.0.1", "::", ""])
def test_what_only_looks_like_loopback_is_none(host: str) -> None:
    assert not is_loopback(host)


def test_what_listens_everywhere_is_reached_at_loopback() -> None:
    assert [local_address(host) for host in ("0.0.0.0", "[::]", "192.0.2.1")] == ["127.0.0.1", "[::1]", "192.0.2.1"]
