"""Tokens cannot be guessed, are told by their look, and leave nothing of themselves but a keyed hash."""

from __future__ import annotations

import pytest
from agenthive_plugins.security.roles import Role
from agenthive_plugins.security.tokens import (
    PREFIXES,
    Scope,
    Token,
    TokenKind,
    TokenState,
    decode,
    digest_of,
    encode,
    id_of,
    is_token_id,
    kind_of,
    mint,
    redacted,
)
from hypothesis import given
from hypothesis import strategies as st

KEY = b"k" * 32


@pytest.mark.parametrize("kind", list(TokenKind))
def test_a_token_says_what_it_is_for_and_none_is_made_twice(kind: TokenKind) -> None:
    made = {mint(kind) for _ in range(200)}
    assert len(made) == 200
    for secret in made:
        assert secret.startswith(PREFIXES[kind])
        assert kind_of(secret) is kind
        # 43 digits of base 62 are room for 256 bits.
        assert len(secret) == len(PREFIXES[kind]) + 43 + 6


@given(at=st.integers(0, 52), by=st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=127))
def test_a_token_with_one_wrong_letter_is_none(at: int, by: str) -> None:
    secret = mint(TokenKind.BEARER)
    wrong = secret[:at] + by + secret[at + 1 :]
    assert kind_of(wrong) is (TokenKind.BEARER if wrong == secret else None)


@given(st.text(max_size=80))
def test_any_text_is_dealt_with(text: str) -> None:
    assert kind_of(text) is None
    assert len(digest_of(text, KEY)) == 32


def test_the_hash_depends_on_the_key_and_gives_the_id() -> None:
    secret = mint(TokenKind.BEARER)
    digest = digest_of(secret, KEY)
    assert digest != digest_of(secret, b"j" * 32)
    assert is_token_id(id_of(digest))
    assert secret[4:] not in digest.hex()
    assert not is_token_id(secret)


def test_what_looks_like_a_credential_is_taken_out_of_texts() -> None:
    secret = mint(TokenKind.JOIN)
    header = "eyJhbGciOiJSUzI1NiJ9"
    text = redacted(f"worker: join with {secret} failed, and {header}.eyJzdWIiOiJhIn0.c2ln and {secret[:30]}")
    assert text == "worker: join with [redacted] failed, and [redacted] and [redacted]"
    assert redacted("ahv_ is a prefix, ahv_short is nothing") == "ahv_ is a prefix, ahv_short is nothing"


def test_a_record_comes_back_as_it_was_kept() -> None:
    token = Token(
        id="a" * 20,
        kind=TokenKind.CREDENTIAL,
        digest="d" * 64,
        principal="agent:default/a-1",
        roles=(Role.AGENT,),
        namespaces=("default",),
        scope=Scope(agent_id_prefix="pool-", labels={"zone": "a"}),
        agents=("pool-1",),
        create_time=1.5,
        expire_time=9.0,
    )
    assert decode(encode(token)) == token


def test_a_token_is_active_until_its_time_its_use_or_its_end() -> None:
    token = Token(id="a" * 20, kind=TokenKind.JOIN, digest="", principal="", expire_time=10.0)
    assert token.state_at(9.99) is TokenState.ACTIVE
    assert token.state_at(10.0) is TokenState.EXPIRED
    used = Token(id="a" * 20, kind=TokenKind.JOIN, digest="", principal="", expire_time=10.0, use_time=5.0)
    assert used.state_at(20.0) is TokenState.USED
    revoked = Token(id="a" * 20, kind=TokenKind.JOIN, digest="", principal="", use_time=5.0, revoke_time=6.0)
    assert revoked.state_at(20.0) is TokenState.REVOKED
    assert Token(id="", kind=TokenKind.BEARER, digest="", principal="").state_at(1e12) is TokenState.ACTIVE
