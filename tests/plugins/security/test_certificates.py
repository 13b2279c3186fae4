"""A client certificate gives the principal its handshake has proven, and nothing that was not proven."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from agenthive_plugins.security.certificates import principal_of

ALTERNATIVE = "x509_subject_alternative_name"
COMMON = "x509_common_name"


@pytest.mark.parametrize(
    ("context", "principal"),
    [
        ({}, ""),
        ({"transport_security_type": [b"ssl"]}, ""),
        ({COMMON: [b"runner-7"]}, "cert:runner-7"),
        ({COMMON: [b"runner-7"], ALTERNATIVE: [b"runner-7.hive.example"]}, "cert:runner-7.hive.example"),
        ({COMMON: [b"x"], ALTERNATIVE: [b"a.example", b"spiffe://hive/ns/a"]}, "cert:spiffe://hive/ns/a"),
        ({COMMON: [b"x"], "peer_spiffe_id": [b"spiffe://hive/b"]}, "cert:spiffe://hive/b"),
        # Addresses say where somebody is, not who.
        ({COMMON: [b"x"], ALTERNATIVE: [b"a@example.org", b"::1"]}, "cert:x"),
        ({COMMON: [b"line\nbreak"]}, ""),
        ({COMMON: [b"\xff\xfe"]}, ""),
        ({COMMON: [b""]}, ""),
        ({COMMON: [b"n" * 251]}, ""),
    ],
)
def test_the_principal_of_a_certificate(context: Mapping[str, list[bytes]], principal: str) -> None:
    assert principal_of(context) == principal


def test_the_settings_say_which_names_count() -> None:
    context = {COMMON: [b"runner-7"], ALTERNATIVE: [b"a.example"]}
    assert principal_of(context, ["common_name"]) == "cert:runner-7"
    assert principal_of(context, ["uri"]) == ""
