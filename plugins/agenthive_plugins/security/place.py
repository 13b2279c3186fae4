"""This replica's place: which chain of the trail is its own, and whether somebody else writes it at the moment."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import IO, Final

CHAIN: Final = "chain"
LOCK: Final = "chain.lock"
_NAME: Final = re.compile(r"[a-z0-9.-]{1,64}")


class Place:
    """The folder that says which chain is this replica's. Held by every writer of it, here and in other processes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CHAIN
        self._lock_path = folder / LOCK
        self._lock: IO[bytes] | None = None

    def enter(self) -> bool:
        """Hold the place; returns whether nobody else did, so that who held it before is gone. Raises OSError."""
        self._lock = self._lock_path.open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            alone = False
        else:
            alone = True
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return alone

    def leave(self) -> None:
        """Give the place up."""
        if self._lock is not None:
            self._lock.close()

    def chain(self) -> str:
        """Return the name of this replica's chain; the first time, a new one."""
        try:
            found = self._path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            found = ""
        return found if _NAME.fullmatch(found) else self.new_chain()

    def new_chain(self) -> str:
        """Give this replica another chain, and return its name."""
        name = os.urandom(8).hex()
        beside = self._path.with_name(f".{CHAIN}.new")
        beside.write_text(name + "\n", encoding="ascii")
        beside.replace(self._path)
        return name
