"""Addresses are told without their ports, so that a caller is the same over all its connections."""

from __future__ import annotations

import pytest
from agenthive_plugins.security.peers import host_of, is_local
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("peer", "host", "local"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7", False),
        ("ipv4:127.0.0.1:4711", "127.0.0.1", True),
        ("ipv4:127.8.9.1:4711", "127.8.9.1", True),
        ("ipv6:[::1]:4711", "::1", True),
        ("ipv6:%5B::1%5D:4711", "::1", True),
        ("ipv6:[2001:db8:1:2:3::7]:1", "2001:db8:1:2::/64", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64", False),
        ("ipv6:[::ffff:10.0.0.7]:4711", "10.0.0.7", False),
        ("ipv6:[::ffff:127.0.0.1]:4711", "127.0.0.1", True),
        ("unix:/run/hive.sock", "unix", True),
        ("unix:", "unix", True),
        ("unix-abstract:hive", "unix", True),
        ("something else", "something else", False),
        ("", "", False),
    ],
)
def test_the_host_of_a_peer(peer: str, host: str, local: bool) -> None:
    assert host_of(peer) == host
    assert is_local(host_of(peer)) == local


@given(st.ip_addresses(v=4), st.integers(1, 65_535), st.integers(1, 65_535))
def test_a_host_is_the_same_over_all_ports(address: object, one: int, other: int) -> None:
    assert host_of(f"ipv4:{address}:{one}") == host_of(f"ipv4:{address}:{other}") == str(address)


@given(st.text(max_size=200))
def test_any_peer_is_dealt_with(peer: str) -> None:
    assert len(host_of(peer)) <= 64
    assert not is_local(host_of("x" + peer)) or peer.startswith(("127.", "::1")) is False
