"""Where a server listens, and whether it may."""

from __future__ import annotations

import socket

import pytest
from agenthive_server.front import Front
from agenthive_server.kernel.clock import ManualClock
from agenthive_server.lifecycle import StartError
from agenthive_server.settings import load


def front(**flags: object) -> Front:
    """Return a front; keys are settings of `[server]`."""
    return Front(load(flags={f"server.{name}": value for name, value in flags.items()}, environ={}), ManualClock())


def test_on_loopback_nothing_more_is_asked_for() -> None:
    here = front(listen="127.0.0.1:0")
    here.load()
    here.require_tls()
    here.require_protected(authenticated=False)
    assert not here.exposed()
    assert here.addresses() == ["127.0.0.1:0"]


def test_beyond_it_tls_is_missed_at_once_and_authentication_when_the_plugins_are_open() -> None:
    open_to_all = front(listen="0.0.0.0:0")
    assert open_to_all.exposed()
    with pytest.raises(StartError, match="TLS and authentication"):
        open_to_all.require_tls()
    with pytest.raises(StartError, match="has no TLS"):
        open_to_all.require_protected(authenticated=True)


def test_insecure_is_the_operators_word() -> None:
    told = front(listen="0.0.0.0:0", insecure=True)
    told.require_tls()
    told.require_protected(authenticated=False)
    assert not told.exposed()


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "[::]"])
def test_what_listens_everywhere_is_shown_under_the_name_of_the_machine(everywhere: str) -> None:
    assert front(listen="10.0.0.7:0").shown(7) == "10.0.0.7:7"
    assert front(listen=f"{everywhere}:0").shown(7) == f"{socket.gethostname()}:7"
