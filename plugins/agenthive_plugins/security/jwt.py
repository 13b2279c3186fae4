"""JSON Web Tokens (RFC 7519) of one issuer that is trusted: signature, issuer, audience, times, and nothing taken on
trust.

As RFC 8725 advises: the algorithms are the server's choice, only asymmetric ones are known, a key is used for the
algorithms of its own type, and what a token's header says of keys (`jwk`, `jku`, `x5u`) is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agenthive_server.plugin.api import Unauthenticated

if TYPE_CHECKING:
    from .jwks import KeySet

PREFIX: Final = "jwt:"
LONGEST: Final = 8_192
LONGEST_SUBJECT: Final = 250
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""What may be allowed. `none` and the HMAC ones are not among them: whoever can check those can also make them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What a token has to say. Times in seconds."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    leeway: float = 30.0
    # Longest life a token may have, from `iat` to `exp`; zero: any.
    longest_life: float = 0.0
    # Claim with names of roles; empty: none is looked at.
    roles_claim: str = ""
    # Whether a token counts once only, by its `jti`.
    single_use: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token has proven."""

    subject: str
    expire_time: float
    roles: tuple[str, ...] = ()
    jti: str = ""


def looks_like_jwt(text: str) -> bool:
    """Whether a bearer's text has the form of a JWT, so that it is worth a look."""
    return text.startswith("eyJ") and text.count(".") == 2 and len(text) <= LONGEST


def verify(text: str, keys: KeySet, wanted: Expectations, now: float) -> Claims:
    """Return what a token proves; raises `Unauthenticated` with the reason in its metadata, as `why`."""
    import jwt

    try:
        header = jwt.get_unverified_header(text)
    except jwt.PyJWTError:
        raise refused("malformed", "the token is no JWT") from None
    algorithm = header.get("alg")
    if algorithm not in wanted.algorithms or algorithm not in ALGORITHMS:
        raise refused("algorithm", "tokens signed this way are not accepted")
    key = keys.find(header.get("kid"), algorithm)
    if key is None:
        raise refused("unknown_key", "no key of the issuer fits this token")
    try:
        # Times are checked here, by the clock of the server.
        payload = jwt.decode(text, key, algorithms=[algorithm], options=_SIGNATURE_ONLY)
    except jwt.PyJWTError:
        raise refused("signature", "the token's signature is not valid") from None
    return _claims(payload, wanted, now)


_SIGNATURE_ONLY: Final[Any] = {
    "verify_signature": True,
    **dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub"), False),
    "verify_jti": False,
    "require": [],
}


def _claims(payload: Mapping[str, Any], wanted: Expectations, now: float) -> Claims:
    if payload.get("iss") != wanted.issuer:
        raise refused("issuer", "the token is of another issuer")
    audience = payload.get("aud")
    if wanted.audience not in (audience if isinstance(audience, list) else [audience]):
        raise refused("audience", "the token is for another audience")
    expires = _time(payload, "exp")
    if expires is None or now >= expires + wanted.leeway:
        raise refused("expired", "the token has expired, or never does")
    issued = _time(payload, "iat")
    if now < max(_time(payload, "nbf") or 0.0, issued or 0.0) - wanted.leeway:
        raise refused("not_yet", "the token is not valid yet")
    if wanted.longest_life and (issued is None or expires - issued > wanted.longest_life):
        raise refused("too_long", "the token lives longer than is accepted")
    subject, jti = payload.get("sub"), payload.get("jti")
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT or not subject.isprintable():
        raise refused("subject", "the token does not say whose it is")
    if wanted.single_use and (not isinstance(jti, str) or not jti):
        raise refused("jti", "the token has no id, and has to count once only")
    return Claims(
        subject=subject,
        expire_time=expires + wanted.leeway,
        roles=_roles(payload, wanted.roles_claim),
        jti=jti if isinstance(jti, str) else "",
    )


def _time(payload: Mapping[str, Any], name: str) -> float | None:
    value = payload.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise refused("malformed", f"the token's {name} is no time")
    return float(value)


def _roles(payload: Mapping[str, Any], claim: str) -> tuple[str, ...]:
    """Return the names in a claim: a list, or words in a text; `realm_access.roles` looks inside."""
    value: Any = payload
    for step in claim.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    found = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(name for name in found if isinstance(name, str))[:64]


def refused(why: str, text: str) -> Unauthenticated:
    """Return the error for a token that proves nothing."""
    return Unauthenticated(text, metadata={"why": why})
