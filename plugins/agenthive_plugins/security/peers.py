"""Where a call comes from: addresses as gRPC writes them, without ports, and which of them are this machine."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

UNIX: Final = "unix"


@lru_cache(maxsize=4_096)
def host_of(peer: str) -> str:
    """Return the address of a peer without its port; of IPv6, the /64 network, because a host has all of it.

    `ipv4:10.0.0.7:4711` is `10.0.0.7`, `ipv6:[2001:db8::7]:4711` is `2001:db8::/64`, `unix:/x` is `unix`. What is none
    of these is returned as it is, cut to 64 characters.
    """
    scheme, _, rest = unquote(peer).partition(":")
    if scheme in (UNIX, "unix-abstract"):
        return UNIX
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer[:64]
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is not None:
            return str(mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def is_local(host: str) -> bool:
    """Whether an address, as `host_of` returns it, is this machine."""
    if host == UNIX:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
