"""Why there is no connection, in words: what gRPC and its TLS library say of it is for those who wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from agenthive.errors import HiveError

_WORDS: Final = (
    ("certificate has expired", "the server's certificate has expired"),
    ("certificate is not yet valid", "the server's certificate is not valid yet"),
    (
        "Hostname Verification Check failed",
        "the server's certificate is for another name (server_name: which to expect)",
    ),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is not of an authority trusted here (ca: which to trust)"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
)
_HUNG_UP: Final = ("Socket closed", "Connection reset", "End of file", "Broken pipe")


def explain(details: str, *, tls: bool) -> str:
    """Return the end of a text of gRPC about a connection that failed, in words where we have better ones."""
    for fragment, words in _WORDS:
        if fragment in details:
            return words
    if any(fragment in details for fragment in _HUNG_UP):
        guess = "it may ask for a client certificate (cert, key)" if tls else "it may speak TLS (ca)"
        return f"the connection was closed; {guess}"
    text = details.partition("last error: ")[2] or details
    return text.rpartition(": ")[2].strip(" .])")


def in_words(error: HiveError, *, tls: bool) -> str:
    """Return an error of a stream; what the control plane says is said as it says it."""
    return str(error) if error.reason else explain(error.message, tls=tls)


async def why_unreachable(channel: grpc.aio.Channel, *, tls: bool) -> str:
    """Return why a channel has no connection, empty when the transport does not say so within a second."""
    # A call that is neither repeated nor made to wait fails at once, with a text.
    ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
    try:
        await ask(b"", timeout=1.0)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return explain(error.details() or "", tls=tls)
    return ""
