"""What a worker has earned by joining: the secret it shows from then on instead of its join token."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agenthive.errors import Unauthenticated

if TYPE_CHECKING:
    from agenthive.errors import HiveError

_logger: Final = logging.getLogger(__name__)
_LARGEST: Final = 4_096


class Credential:
    """Kept in memory, and in a private file if there is one to be: then a restart needs no new join token."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read the file, if it is there. Raises OSError when it is and cannot be read."""
        self._path = None if path is None else Path(path)
        self.value = ""
        if self._path is not None and self._path.exists():
            self.value = self._path.read_bytes()[:_LARGEST].decode("utf-8", "replace").strip()

    def earn(self, value: str) -> None:
        """Keep a new one in place of the old. A file that cannot be written is told in the log."""
        self.value = value
        if self._path is None:
            return
        beside = self._path.with_name(f".{self._path.name}.new")
        try:
            beside.unlink(missing_ok=True)
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as error:
            _logger.error("the credential cannot be kept in %s: %s", self._path, error.strerror)

    def yields(self, error: HiveError, join_token: str) -> bool:
        """Say whether a join token may help where this was refused; then it is shown no more."""
        if not isinstance(error, Unauthenticated) or not self.value or not join_token:
            return False
        self.value = ""
        return True
