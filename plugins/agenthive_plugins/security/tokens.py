"""Opaque tokens: how they look, how they are recognised, and what is kept of them.

A token is a prefix that says what it is for, 32 random bytes as 43 digits of base 62, and 6 digits of a checksum over
both, so that scanners find leaked ones without false alarms and typing errors are told from guesses. Of the token
itself only a keyed hash (BLAKE2b, RFC 7693) is kept; the first bytes of the hash are its id.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from enum import StrEnum
from hashlib import blake2b
from typing import Final

import msgspec

from .roles import Role

KEY_BYTES: Final = 32
ID_BYTES: Final = 10
_SECRET_BYTES: Final = 32
_SECRET_DIGITS: Final = 43
_CHECK_DIGITS: Final = 6
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE: Final = re.compile(r"ahv([jc]?)_[0-9A-Za-z]{49}")
LOOKS_SECRET: Final = re.compile(r"ahv[jc]?_[0-9A-Za-z]{20,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]+")
"""Text that could be a credential, whole or cut: an opaque token, or a JWT."""


class TokenKind(StrEnum):
    """What a token is for."""

    BEARER = "BEARER"
    JOIN = "JOIN"
    CREDENTIAL = "CREDENTIAL"


class TokenState(StrEnum):
    """Whether a token is accepted."""

    ACTIVE = "ACTIVE"
    USED = "USED"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


PREFIXES: Final = {TokenKind.BEARER: "ahv_", TokenKind.JOIN: "ahvj_", TokenKind.CREDENTIAL: "ahvc_"}
_KINDS: Final = {"": TokenKind.BEARER, "j": TokenKind.JOIN, "c": TokenKind.CREDENTIAL}


class Scope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which workers a join token lets in: one agent, agents by prefix, or a runner; with these labels."""

    agent_id: str = ""
    agent_id_prefix: str = ""
    runner: bool = False
    labels: dict[str, str] = {}


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of a token. Times are seconds since 1970, zero for not set; `digest` is hexadecimal."""

    id: str
    kind: TokenKind
    digest: str
    principal: str
    roles: tuple[Role, ...] = ()
    # Where the roles hold; empty: in every namespace.
    namespaces: tuple[str, ...] = ()
    description: str = ""
    scope: Scope | None = None
    # Of a credential: the agents it speaks for; none for a runner's.
    agents: tuple[str, ...] = ()
    create_time: float = 0.0
    expire_time: float = 0.0
    revoke_time: float = 0.0
    # Revoked because its agents are gone: what its worker still has open ends by itself.
    departed: bool = False
    # When a join token was used.
    use_time: float = 0.0
    issuer: str = ""
    join_token_id: str = ""

    def state_at(self, now: float) -> TokenState:
        """Return whether it is accepted at a time."""
        if self.revoke_time:
            return TokenState.REVOKED
        if self.use_time:
            return TokenState.USED
        return TokenState.EXPIRED if self.expire_time and now >= self.expire_time else TokenState.ACTIVE


def mint(kind: TokenKind) -> str:
    """Return a new token that nobody can guess."""
    body = PREFIXES[kind] + _digits(int.from_bytes(secrets.token_bytes(_SECRET_BYTES), "big"), _SECRET_DIGITS)
    return body + _checksum(body)


def kind_of(secret: str) -> TokenKind | None:
    """Return what a token is for, or None for what cannot be one: wrong shape or checksum."""
    shape = _SHAPE.fullmatch(secret)
    if shape is None or not hmac.compare_digest(_checksum(secret[:-_CHECK_DIGITS]), secret[-_CHECK_DIGITS:]):
        return None
    return _KINDS[shape[1]]


def digest_of(secret: str, key: bytes) -> bytes:
    """Return the hash that is kept of a token."""
    return blake2b(secret.encode("utf-8", "surrogatepass"), key=key, digest_size=32).digest()


def id_of(digest: bytes) -> str:
    """Return the id of the token with this hash."""
    return digest[:ID_BYTES].hex()


def is_token_id(text: str) -> bool:
    """Whether a text has the shape of a token's id."""
    return re.fullmatch(f"[0-9a-f]{{{2 * ID_BYTES}}}", text) is not None


def redacted(text: str) -> str:
    """Return a text without anything that looks like a credential."""
    return LOOKS_SECRET.sub("[redacted]", text)


def encode(token: Token) -> bytes:
    """Return a token's record as it is stored."""
    return msgspec.json.encode(token)


_decoder: Final = msgspec.json.Decoder(Token)


def decode(raw: bytes) -> Token | None:
    """Return a token's record from how it is stored; None for one that is damaged, which nobody can use then."""
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _digits(number: int, count: int) -> str:
    found = []
    for _ in range(count):
        number, digit = divmod(number, 62)
        found.append(_ALPHABET[digit])
    return "".join(reversed(found))


def _checksum(body: str) -> str:
    return _digits(zlib.crc32(body.encode()), _CHECK_DIGITS)
