"""Principals of client certificates: the name that the TLS handshake has proven.

The names are tried in the order of the settings: a URI or DNS name among the subject's alternative names, then the
common name. SPIFFE ids, as workloads have them, are URIs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

PREFIX: Final = "cert:"
LONGEST: Final = 250
NAMES: Final = ("uri", "dns", "common_name")

AuthContext = Mapping[str, Iterable[bytes]]

_URI: Final = "peer_spiffe_id"
_ALTERNATIVE: Final = "x509_subject_alternative_name"
_COMMON: Final = "x509_common_name"


def principal_of(context: AuthContext, names: Sequence[str] = NAMES) -> str:
    """Return the principal of a connection's client certificate, `cert:NAME`; empty when there is none.

    Also empty when it has no usable name: longer than 250 characters, or with characters that could not be printed.
    """
    if not context:
        return ""
    for name in names:
        for found in _candidates(context, name):
            if 0 < len(found) <= LONGEST and found.isprintable():
                return PREFIX + found
    return ""


def _candidates(context: AuthContext, name: str) -> list[str]:
    if name == "common_name":
        return _texts(context.get(_COMMON, ()))
    alternatives = _texts(context.get(_ALTERNATIVE, ()))
    if name == "uri":
        return _texts(context.get(_URI, ())) + [text for text in alternatives if "://" in text]
    return [text for text in alternatives if "://" not in text and "@" not in text and ":" not in text]


def _texts(values: Iterable[bytes]) -> list[str]:
    found = []
    for value in values:
        try:
            found.append(value.decode("utf-8"))
        except UnicodeDecodeError:
            continue
    return found
