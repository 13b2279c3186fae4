"""What the transport says of a connection that failed, in words. The texts are gRPC's; real handshakes make them."""

from __future__ import annotations

import pytest
from agenthive.errors import Unavailable
from agenthive.transport_errors import explain, in_words

BEFORE = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:41517: "
VERIFY = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            f"{VERIFY}CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK",
            "not of an authority trusted",
        ),
        (f"{VERIFY}CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has expired"),
        (f"{VERIFY}WRONG_VERSION_NUMBER: Invalid certificate verification context", "does not speak TLS"),
        (
            "Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
            "another name",
        ),
        ("Connection refused", "Connection refused"),
    ],
)
def test_known_failures_are_told_in_words(details: str, words: str) -> None:
    assert words in explain(BEFORE + details, tls=True)


def test_a_connection_that_was_closed_is_a_guess() -> None:
    assert "client certificate" in explain(BEFORE + "Socket closed", tls=True)
    assert "may speak TLS" in explain(BEFORE + "Socket closed", tls=False)


def test_what_the_control_plane_says_is_left_as_it_is() -> None:
    assert (
        in_words(Unavailable("on its way out", reason="DRAINING"), tls=True) == "UNAVAILABLE DRAINING: on its way out"
    )
