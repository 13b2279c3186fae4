"""Keys come from where the settings say, are used for what they are made for, and stay when a fetch fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from agenthive_plugins.security.jwks import SOONEST, KeySource, KeysUnusable, check_url, fetch, read_keys
from agenthive_server.kernel.clock import ManualClock, settle
from agenthive_server.testing.waiting import eventually
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

RSA = rsa.generate_private_key(65_537, 2_048)
EC = ec.generate_private_key(ec.SECP256R1())
ALGORITHMS = ["RS256", "PS256", "ES256"]


def rsa_key(**more: object) -> dict[str, Any]:
    return {**json.loads(RSAAlgorithm.to_jwk(RSA.public_key())), **more}


def ec_key(**more: object) -> dict[str, Any]:
    return {**json.loads(ECAlgorithm.to_jwk(EC.public_key())), **more}


def document(*keys: object) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def test_a_key_serves_the_algorithms_of_its_type_only() -> None:
    keys = read_keys(document(rsa_key(kid="r"), ec_key(kid="e")), ALGORITHMS)
    assert len(keys) == 3
    assert keys.find("r", "RS256")
    assert keys.find("r", "PS256")
    assert keys.find("r", "ES256") is None
    assert keys.find("e", "RS256") is None
    assert keys.find("x", "RS256") is None
    assert keys.find(None, "ES256")
    assert keys.find(["r"], "RS256") is None


def test_a_key_that_names_its_algorithm_serves_that_one() -> None:
    keys = read_keys(document(rsa_key(kid="r", alg="PS256")), ALGORITHMS)
    assert keys.find("r", "PS256")
    assert keys.find("r", "RS256") is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": 7}',
        b'{"keys": []}',
        document({"kty": "oct", "k": "c2VjcmV0", "alg": "RS256"}),
        document(rsa_key(use="enc")),
        document(rsa_key(alg="RS512")),
        document({**rsa_key(), "n": "AQAB"}),
        document({"kty": "RSA"}),
        document({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}),
        document(json.loads(RSAAlgorithm.to_jwk(RSA))),
        b"[" * 100_000,
    ],
)
def test_what_holds_no_good_key_is_refused(raw: bytes) -> None:
    with pytest.raises(KeysUnusable):
        read_keys(raw, ALGORITHMS)


def test_a_broken_key_does_not_spoil_the_others() -> None:
    keys = read_keys(document({"kty": "RSA", "n": 7}, "no key", rsa_key(kid="r")), ALGORITHMS)
    assert keys.find("r", "RS256")


def test_a_weak_key_is_no_key() -> None:
    weak = rsa.generate_private_key(65_537, 1_024)
    with pytest.raises(KeysUnusable):
        read_keys(document(json.loads(RSAAlgorithm.to_jwk(weak.public_key()))), ALGORITHMS)


@given(st.binary(max_size=200))
def test_any_bytes_are_dealt_with(raw: bytes) -> None:
    with pytest.raises(KeysUnusable):
        read_keys(raw, ALGORITHMS)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://login.example/keys", True),
        ("https://login.example:8443/keys", True),
        ("http://127.0.0.1:80/keys", True),
        ("http://login.example/keys", False),
        ("https://evil.example/keys", False),
        ("https://login.example@evil.example/", False),
        ("file:///etc/passwd", False),
        ("ftp://login.example/keys", False),
        ("", False),
    ],
)
def test_keys_are_fetched_from_allowed_hosts_only(url: str, allowed: bool) -> None:
    hosts = ["login.example", "127.0.0.1"]
    if allowed:
        check_url(url, hosts)
        return
    with pytest.raises(ValueError, match="fetched"):
        check_url(url, hosts)


class Issuer(HTTPServer):
    """Serves what a test says."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes, dict[str, str]] = (200, document(rsa_key(kid="r")), {})
        self.asked = 0
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/keys"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer = self.server
        assert isinstance(issuer, Issuer)
        issuer.asked += 1
        code, body, headers = issuer.answer
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    issuer.answer = (302, b"", {"Location": "http://127.0.0.1:1/elsewhere"})
    with pytest.raises(KeysUnusable):
        fetch(issuer.url)
    assert issuer.asked == 1


def test_an_endless_document_is_cut_off(issuer: Issuer) -> None:
    issuer.answer = (200, b"x" * (2 * 1024 * 1024), {})
    with pytest.raises(KeysUnusable):
        fetch(issuer.url)


async def test_keys_of_a_url_stay_in_effect_while_it_does_not_answer(issuer: Issuer) -> None:
    clock, changes = ManualClock(), []
    source = KeySource(clock, ALGORITHMS, url=issuer.url, every=600.0, changed=lambda: changes.append(1))
    await source.load()
    assert source.keys.find("r", "RS256")
    assert len(changes) == 1
    running = asyncio.create_task(source.run())

    async def round_of(seconds: float) -> None:
        asked = issuer.asked
        await settle()
        await clock.advance(seconds)
        await eventually(lambda: issuer.asked > asked, what="the keys were asked for")

    issuer.answer = (500, b"", {})
    await round_of(600.0)
    await eventually(lambda: bool(source.failing), what="the failure is told")
    assert source.keys.find("r", "RS256")
    issuer.answer = (200, document(ec_key(kid="e")), {})
    # A token names a key that is not known: the keys are read soon, but not for each such token.
    source.want()
    await round_of(SOONEST)
    await eventually(lambda: source.keys.find("e", "ES256") is not None, what="the new key is known")
    assert source.failing == ""
    assert len(changes) == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_keys_of_a_file_are_read_and_a_missing_one_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    source = KeySource(ManualClock(), ALGORITHMS, file=str(path))
    with pytest.raises(KeysUnusable, match=r"keys\.json: No such file"):
        await source.load()
    path.write_bytes(document(rsa_key(kid="r")))
    await source.load()
    assert source.keys.find("r", "RS256")
