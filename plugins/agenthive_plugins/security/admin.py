"""How the operator gets in first: an admin's token in a file that only the operator can read.

It is written when the plugin is switched on for the first time. Whoever can write there can have another one: an empty
file of that name is filled when the plugin is opened.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from agenthive_server.plugin.api import Conflict, State

from .issuing import Issuing, Wish
from .roles import Role
from .tokens import TokenKind

FILE: Final = "admin.token"
PRINCIPAL: Final = "admin"
TTL: Final = 366 * 86_400.0
_DONE: Final = "meta/admin"


class CannotWrite(Exception):
    """The file cannot be written: a sentence for the operator."""


async def provide(state: State, issuing: Issuing, folder: Path) -> Path | None:
    """Write an admin's token into its file if there has not been one yet, or the file is empty; returns its path then.

    Raises `CannotWrite`.
    """
    path = folder / FILE
    refill = _is_empty(path)
    if await state.get(_DONE) is not None and not refill:
        return None
    wish = Wish(kind=TokenKind.BEARER, principal=PRINCIPAL, ttl=TTL, roles=(Role.ADMIN,), description=f"in {FILE}")
    token, secret = await issuing.issue(wish, issuer="system:server")
    try:
        await asyncio.to_thread(write_private, path, secret + "\n")
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror or error}") from None
    # Last: if anything fails before, the next start makes another one.
    try:
        await state.put(_DONE, b"1", revision=None if refill else 0)
    except Conflict:
        # Another replica that starts at the same moment was first.
        path.unlink(missing_ok=True)
        await issuing.revoke(token.id)
        return None
    return path


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whatever was there, all of it or nothing."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _is_empty(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size == 0
    except OSError:
        return False
