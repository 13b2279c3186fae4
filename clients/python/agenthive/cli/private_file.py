"""A file that only its owner can read, and that is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class PrivateFile:
    """A file of mode 0600 that is being written beside its place; `keep` puts it there, else it is removed.

    It is opened before the server is asked for what goes into it: nothing is made that has no place to go.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        """Open it. Raises BadParameter when the place is taken and not forced, or cannot be written to."""
        if not force and os.path.lexists(path):
            raise typer.BadParameter(f"{path} is there already; --force replaces it")
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder")
        try:
            number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        except OSError as error:
            raise typer.BadParameter(f"{path}: {error.strerror}") from None
        self._path = path
        self._part = Path(name)
        self._file = os.fdopen(number, "wb")

    def write(self, data: bytes) -> None:
        """Append bytes. Raises OSError."""
        self._file.write(data)

    def keep(self) -> None:
        """Put the file in its place once all of it is on the disk. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._path)

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not kept."""
        try:
            self._file.close()
        finally:
            self._part.unlink(missing_ok=True)
