"""A JWT counts when its issuer's key, its audience, its times and its algorithm are right, and for no other reason."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from agenthive_plugins.security.jwks import KeySet, read_keys
from agenthive_plugins.security.jwt import ALGORITHMS, Expectations, looks_like_jwt, verify
from agenthive_server.plugin.api import Unauthenticated
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt import encode
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

NOW = 1_700_000_000.0
RSA = rsa.generate_private_key(65_537, 2_048)
OTHER = rsa.generate_private_key(65_537, 2_048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()

WANTED = Expectations(issuer="https://login.example", audience="hive", algorithms=["RS256", "ES256", "EdDSA"])


def jwk(key: Any, **more: str) -> dict[str, Any]:
    algorithm: Any = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}.get(
        next(kind for kind in (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, object) if isinstance(key, kind)),
        OKPAlgorithm,
    )
    return {**json.loads(algorithm.to_jwk(key.public_key())), **more}


KEYS = read_keys(
    json.dumps({"keys": [jwk(RSA, kid="r"), jwk(EC, kid="e"), jwk(ED, kid="d")]}).encode(), WANTED.algorithms
)


def claims(**changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "iss": "https://login.example",
        "aud": "hive",
        "sub": "alice",
        "iat": int(NOW) - 10,
        "exp": int(NOW) + 600,
    }
    made.update(changes)
    return {name: value for name, value in made.items() if value is not None}


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", **changes: Any) -> str:
    headers = {} if kid is None else {"kid": kid}
    return encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def subject(text: str, keys: KeySet = KEYS, wanted: Expectations = WANTED) -> str:
    return verify(text, keys, wanted, NOW).subject


def why(text: str, keys: KeySet = KEYS, wanted: Expectations = WANTED) -> str:
    with pytest.raises(Unauthenticated) as caught:
        verify(text, keys, wanted, NOW)
    assert text not in caught.value.message
    return caught.value.metadata["why"]


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d"), (RSA, "RS256", None)]
)
def test_a_good_token_proves_its_subject(key: Any, algorithm: str, kid: str | None) -> None:
    found = verify(token(key, algorithm, kid), KEYS, WANTED, NOW)
    assert found.subject == "alice"
    assert found.expire_time == NOW + 600 + WANTED.leeway


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"aud": "another"}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": ["a", "b"]}, "audience"),
        ({"exp": int(NOW) - 31}, "expired"),
        ({"exp": None}, "expired"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": -1}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"nbf": int(NOW) + 31}, "not_yet"),
        ({"iat": int(NOW) + 31}, "not_yet"),
        ({"sub": None}, "subject"),
        ({"sub": ""}, "subject"),
        ({"sub": "x" * 251}, "subject"),
        ({"sub": "line\nbreak"}, "subject"),
    ],
)
def test_a_token_with_a_wrong_claim_proves_nothing(changes: dict[str, Any], reason: str) -> None:
    assert why(token(**changes)) == reason


def test_times_are_taken_with_the_leeway_and_no_more() -> None:
    assert subject(token(exp=int(NOW) - 29, nbf=int(NOW) + 29)) == "alice"
    strict = Expectations(issuer=WANTED.issuer, audience="hive", algorithms=["RS256"], leeway=0.0)
    assert why(token(exp=int(NOW)), wanted=strict) == "expired"
    # The clock is the server's, not that of the library.
    assert verify(token(), KEYS, WANTED, NOW).expire_time < time.time()  # noqa: TID251 - to show that it is not used


def test_a_token_that_lives_too_long_is_not_accepted() -> None:
    wanted = Expectations(issuer=WANTED.issuer, audience="hive", algorithms=["RS256"], longest_life=3_600.0)
    assert subject(token(), wanted=wanted) == "alice"
    assert why(token(exp=int(NOW) + 7_200), wanted=wanted) == "too_long"
    assert why(token(iat=None), wanted=wanted) == "too_long"


def test_a_signature_of_another_key_does_not_count() -> None:
    assert why(token(OTHER)) == "signature"
    assert why(token(OTHER, kid="unknown")) == "unknown_key"


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    # HS256 with the issuer's public key as its secret: who checks by the header's algorithm takes it.
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"r","typ":"JWT"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
    import hmac
    from hashlib import sha256

    for secret in (
        RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ):
        mac = base64.urlsafe_b64encode(hmac.new(secret, head + b"." + body, sha256).digest()).rstrip(b"=")
        text = b".".join((head, body, mac)).decode()
        assert why(text) == "algorithm"
        # Not even when somebody asked for it in the settings.
        loose = Expectations(issuer=WANTED.issuer, audience="hive", algorithms=["HS256", "none"])
        assert why(text, wanted=loose) == "algorithm"
    assert not {"none", "HS256", "HS384", "HS512"} & set(ALGORITHMS)


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
def test_no_signature_is_no_token(name: str) -> None:
    head = base64.urlsafe_b64encode(json.dumps({"alg": name}).encode()).rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=").decode()
    assert why(f"{head}.{body}.") in ("algorithm", "malformed")


def test_an_algorithm_of_the_same_key_that_is_not_allowed_does_not_count() -> None:
    assert why(token(algorithm="RS512")) == "algorithm"
    assert why(token(EC, "ES256", kid="r")) == "unknown_key"


def test_a_key_in_the_header_is_not_looked_at() -> None:
    text = encode(claims(), OTHER, algorithm="RS256", headers={"kid": "r", "jwk": jwk(OTHER), "jku": "https://evil/"})
    assert why(text) == "signature"


def test_without_a_key_id_the_key_must_be_the_only_one_that_fits() -> None:
    two = read_keys(json.dumps({"keys": [jwk(RSA, kid="1"), jwk(OTHER, kid="2")]}).encode(), ["RS256"])
    assert why(token(kid=None), keys=two) == "unknown_key"
    assert subject(token(kid="1"), keys=two) == "alice"


def test_tokens_that_count_once_need_an_id() -> None:
    once = Expectations(issuer=WANTED.issuer, audience="hive", algorithms=["RS256"], single_use=True)
    assert why(token(), wanted=once) == "jti"
    assert verify(token(jti="7"), KEYS, once, NOW).jti == "7"


@pytest.mark.parametrize(
    ("claim", "payload", "roles"),
    [
        ("groups", {"groups": ["ops", "dev", 7]}, ("ops", "dev")),
        ("scope", {"scope": "ops dev"}, ("ops", "dev")),
        ("realm_access.roles", {"realm_access": {"roles": ["ops"]}}, ("ops",)),
        ("realm_access.roles", {"realm_access": "ops"}, ()),
        ("groups", {}, ()),
        ("", {"": ["ops"]}, ("ops",)),
    ],
)
def test_roles_come_from_the_claim_that_is_named(claim: str, payload: dict[str, Any], roles: tuple[str, ...]) -> None:
    wanted = Expectations(issuer=WANTED.issuer, audience="hive", algorithms=["RS256"], roles_claim=claim)
    assert verify(token(**payload), KEYS, wanted, NOW).roles == roles


@given(st.text(max_size=200) | st.lists(st.text(max_size=40), min_size=3, max_size=3).map(".".join))
@settings(max_examples=200)
def test_any_text_is_refused_as_what_it_is(text: str) -> None:
    with pytest.raises(Unauthenticated):
        verify(text, KEYS, WANTED, NOW)


@given(st.data())
@settings(max_examples=200)
def test_a_changed_token_proves_nothing(data: st.DataObject) -> None:
    good = token()
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.sampled_from("abcXYZ019-_.")) + good[at + 1 :]
    if changed == good:
        return
    try:
        found = verify(changed, KEYS, WANTED, NOW)
    except Unauthenticated:
        return
    # The last digit of base 64 has bits that mean nothing.
    assert at == len(good) - 1
    assert found.subject == "alice"


def test_what_looks_like_a_jwt() -> None:
    assert looks_like_jwt(token())
    assert not looks_like_jwt("ahv_x")
    assert not looks_like_jwt("eyJ" + "a" * 9_000 + "..")
