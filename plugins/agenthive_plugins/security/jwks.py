"""The keys of the issuer of JSON Web Tokens (RFC 7517): read from a file or fetched from an allowed host, and kept
fresh.

Keys that cannot be fetched leave the last ones in effect. Nothing here follows redirects or speaks to a host that is
not in the settings.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from agenthive_server.plugin.api import Clock

if TYPE_CHECKING:
    from jwt import PyJWK

MOST_BYTES: Final = 1024 * 1024
MOST_KEYS: Final = 100
LEAST_RSA_BITS: Final = 2_048
FETCH_SECONDS: Final = 10.0
SOONEST: Final = 30.0
"""Seconds after which keys are fetched again at the earliest, however many tokens name one that is not known."""

_BY_TYPE: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("RSA", ""): frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
}


class KeysUnusable(Exception):
    """The keys cannot be read, fetched or used: a sentence for the operator."""


class KeySet:
    """Keys by id, each for the algorithms of its type and no other."""

    def __init__(self, keys: Sequence[tuple[str | None, str, PyJWK]] = ()) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len({(kid, id(key)) for kid, _, key in self._keys})

    def find(self, kid: object, algorithm: str) -> PyJWK | None:
        """Return the key with an id that fits an algorithm; without an id, the only one that does."""
        fitting = [key for known, name, key in self._keys if name == algorithm and kid in (None, known)]
        return fitting[0] if len(fitting) == 1 else None


def read_keys(raw: bytes, algorithms: Sequence[str]) -> KeySet:
    """Return the keys of a JWKS document that can check these algorithms. Raises `KeysUnusable` when none can."""
    try:
        document = json.loads(raw)
        entries = document["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeysUnusable("not a JWKS document: an object with a list `keys`") from None
    found: list[tuple[str | None, str, PyJWK]] = []
    for entry in entries[:MOST_KEYS] if isinstance(entries, list) else []:
        for algorithm in sorted(_fitting(entry) & set(algorithms)):
            key = _key(entry, algorithm)
            if key is not None:
                found.append((entry.get("kid"), algorithm, key))
    if not found:
        raise KeysUnusable(f"no key in it is for {', '.join(algorithms)}")
    return KeySet(found)


def _key(entry: Any, algorithm: str) -> PyJWK | None:
    """Return a key, None for one that is broken or too weak: others in the document may be good."""
    from jwt import PyJWK, PyJWTError

    try:
        key = PyJWK(entry, algorithm)
    except PyJWTError:
        return None
    return key if entry["kty"] != "RSA" or key.key.key_size >= LEAST_RSA_BITS else None


def _fitting(entry: Any) -> frozenset[str]:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or "d" in entry:
        return frozenset()
    kind = entry.get("kty")
    fitting = _BY_TYPE.get((str(kind), "" if kind == "RSA" else str(entry.get("crv"))), frozenset())
    return fitting & {entry["alg"]} if isinstance(entry.get("alg"), str) else fitting


def check_url(url: str, hosts: Sequence[str]) -> None:
    """Raise `ValueError` unless a URL may be fetched: https (http on this machine), and its host is allowed."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.hostname not in hosts:
        raise ValueError(f"{parts.hostname or url} is not among the hosts keys may be fetched from")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")):
        raise ValueError("keys are fetched by https only")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        """Follow none: the answer would be of a host nobody has allowed."""


def fetch(url: str) -> bytes:
    """Return a document; blocks, up to some seconds. Raises `KeysUnusable`."""
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=FETCH_SECONDS) as answer:
            raw: bytes = answer.read(MOST_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise KeysUnusable(f"the keys of the issuer cannot be fetched: {error}") from None
    if len(raw) > MOST_BYTES:
        raise KeysUnusable("the keys of the issuer are too long a document")
    return raw


class KeySource:
    """Keeps the keys: `load` once, then `run`. `changed` is called when they are others than before."""

    def __init__(
        self,
        clock: Clock,
        algorithms: Sequence[str],
        *,
        file: str = "",
        url: str = "",
        every: float = 600.0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.keys = KeySet()
        self.failing = ""
        """Why the keys could not be read the last time; empty when they could."""
        self._clock = clock
        self._algorithms = algorithms
        self._file = file
        self._url = url
        self._every = every
        self._changed = changed
        self._raw = b""
        self._wanted = asyncio.Event()

    async def load(self) -> None:
        """Read the keys. Raises `KeysUnusable`; the last ones stay in effect then."""
        try:
            raw = await asyncio.to_thread(fetch, self._url) if self._url else await asyncio.to_thread(self._read)
            if raw != self._raw:
                self.keys = read_keys(raw, self._algorithms)
                self._raw = raw
                self._changed()
        except KeysUnusable as error:
            self.failing = str(error)
            raise
        self.failing = ""

    def want(self) -> None:
        """Have the keys read soon: a token names one that is not known."""
        self._wanted.set()

    async def run(self) -> None:
        """Read the keys again and again, until cancelled."""
        while True:
            await self._clock.sleep(SOONEST)
            waits = [asyncio.ensure_future(self._wanted.wait())]
            waits.append(asyncio.ensure_future(self._clock.sleep(self._every - SOONEST)))  # type: ignore[arg-type]  # of two kinds
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            self._wanted.clear()
            try:
                await self.load()
            except KeysUnusable:
                continue

    def _read(self) -> bytes:
        try:
            with Path(self._file).open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise KeysUnusable(f"{self._file}: {error.strerror or error}") from None
        if len(raw) > MOST_BYTES:
            raise KeysUnusable(f"{self._file}: too long a document")
        return raw
