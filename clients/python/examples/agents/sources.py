"""Which files below a folder are source, written by people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocol import BadInput

COMMENT = {".py": "#", ".toml": "#", ".proto": "//"}
"""The beginning of a comment, by the suffix of the files that are looked at."""


def folder_of(given: dict[str, Any]) -> Path:
    """Return the folder a task is about. Raises `BadInput` when it names none that exists."""
    folder = Path(given.get("folder") or "")
    if "folder" not in given or not folder.is_dir():
        raise BadInput(f"'folder' should name a folder that exists, not {given.get('folder')!r}")
    return folder


def source_files(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files with one of these suffixes (default: all of `COMMENT`), without generated and hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in (suffixes or COMMENT)
        and "_pb2" not in path.name
        and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
        and path.is_file()
    )
