"""Prints HAProxy's `tcp-check` rules that ask a replica by gRPC whether it serves.

HAProxy has no gRPC check, and its HTTP check cannot send the body a gRPC call needs. But on a new connection a call
is a fixed run of bytes. These are those of `grpc.health.v1.Health/Check` (RFC 9113 for the frames, RFC 7541 for the
headers), one `send-binary` a frame:

    python health_check.py                                        the server as a whole, as `haproxy.cfg` has it
    python health_check.py agenthive.v1.WorkerService             one service of it

They are the same for replicas that speak TLS: their `server` lines say so, with `check-alpn h2`.
Python 3.11, nothing else.
"""

from __future__ import annotations

import argparse
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATH: Final = "/grpc.health.v1.Health/Check"

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
# Names of HPACK's static table, by index.
_AUTHORITY, _PATH, _CONTENT_TYPE, _USER_AGENT = 1, 4, 31, 58
_POST, _HTTP = b"\x83", b"\x86"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(fields: bytes) -> bytes:
    """Return a protobuf message as gRPC sends it: not compressed, its length before it."""
    return b"\0" + struct.pack(">I", len(fields)) + fields


def request(service: str) -> bytes:
    """Return a `HealthCheckRequest`; ValueError when the name is too long for a length of one byte."""
    name = service.encode()
    if len(name) > 127:
        raise ValueError("a service's name has at most 127 bytes")
    return message(b"\x0a" + bytes([len(name)]) + name if name else b"")


def answer(status: int) -> bytes:
    """Return a `HealthCheckResponse`: 1 is SERVING, 2 is NOT_SERVING."""
    return message(bytes([0x08, status]))


def headers(authority: str) -> bytes:
    """Return the headers of the call as HPACK, every one a literal that changes no table."""
    return b"".join(
        (
            _POST,
            _HTTP,
            _indexed(_PATH, PATH),
            _indexed(_AUTHORITY, authority),
            _indexed(_CONTENT_TYPE, "application/grpc"),
            _indexed(_USER_AGENT, "haproxy-check"),
            b"\0" + _text("te") + _text("trailers"),
        )
    )


def _indexed(name: int, value: str) -> bytes:
    # A literal without indexing; the index of its name has four bits, the rest follows in a byte of its own.
    return (bytes([name]) if name < 15 else bytes([15, name - 15])) + _text(value)


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode("ascii")


def rules(service: str = "", *, authority: str = "agenthive") -> list[str]:
    """Return the rules. The first answer decides: SERVING is up, NOT_SERVING is down at once, none is a timeout.

    One `expect` alone would wait for more after NOT_SERVING, and report that as a timeout. The first one of two waits
    for any answer; the second takes what is there then, because it says how much it needs.
    """
    sent = (
        ("preface", PREFACE),
        ("SETTINGS", frame(_SETTINGS, 0, 0)),
        (f"HEADERS {PATH}", frame(_HEADERS, _END_HEADERS, 1, headers(authority))),
        (f"DATA {service}".strip(), frame(_DATA, _END_STREAM, 1, request(service))),
    )
    return [
        "tcp-check connect default",
        *(f'tcp-check send-binary {data.hex()} comment "{what}"' for what, data in sent),
        f'tcp-check expect rbinary {answer(0).hex()[:-1]}[12] comment "an answer"',
        f'tcp-check expect min-recv 1 binary {answer(1).hex()} on-error "NOT_SERVING"',
    ]


def main() -> None:
    """Print the rules for a service."""
    parser = argparse.ArgumentParser(description="Print HAProxy's tcp-check rules for a gRPC health check.")
    parser.add_argument("service", nargs="?", default="", help="name to ask for (default: the server as a whole)")
    parser.add_argument("--authority", default="agenthive", metavar="NAME", help="what the call names as its server")
    options = parser.parse_args()
    for line in rules(options.service, authority=options.authority):
        print(f"    {line}")


if __name__ == "__main__":
    main()
