"""Make a virtual environment with pip in it, whatever parts of the standard library this Python came without.

Debian and its children put `ensurepip` into python3-venv and pip into python3-pip. In order of preference: the plain
way; without ensurepip, this Python's own pip puts pip into the environment; without either, one pinned pip wheel is
fetched from the package index (PIP_INDEX_URL, else PyPI), compared with its checksum, and installs itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

PIP_WHEEL = "pip-25.3-py3-none-any.whl"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
INSTALL = ("install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore")


def main() -> None:
    """Make the environment named on the command line, or keep it if it works; a half-made one is removed."""
    folder = Path(sys.argv[1])
    if has_pip(folder):
        return
    print(f"Making {folder} with Python {sys.version.split()[0]} ({sys.executable})", flush=True)
    try:
        make(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def make(folder: Path) -> None:
    """Make an environment with pip in it; exits with a sentence that says what to install if that is impossible."""
    if not has_module("venv"):
        sys.exit("This Python has no venv module; on Debian and Ubuntu it is in the package python3-venv.")
    if has_module("ensurepip"):
        run(sys.executable, "-m", "venv", "--clear", folder)
    else:
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder)
        add_pip(folder / "bin" / "python")
    if not has_pip(folder):
        sys.exit(f"{folder} was made, but pip does not run in it.")


def add_pip(python: Path) -> None:
    """Install pip into the environment of this interpreter without the help of ensurepip."""
    if has_module("pip"):
        where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site_packages = subprocess.check_output(where, text=True).strip()
        run(sys.executable, "-m", "pip", *INSTALL, "--target", site_packages, "pip")
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(scratch) / PIP_WHEEL
        wheel.write_bytes(fetch_pip())
        run(python, wheel / "pip", *INSTALL, "--no-index", wheel)


def fetch_pip() -> bytes:
    """Return the pinned pip wheel from the package index; exits if the index lacks it or has another."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"  # noqa: TID251 - pip's own
    with urllib.request.urlopen(index, timeout=60) as page:
        link = re.search(rf'href="([^"]*{re.escape(PIP_WHEEL)}[^"]*)"', page.read().decode())
    if link is None:
        sys.exit(f"{index} does not offer {PIP_WHEEL}; install python3-venv or python3-pip instead.")
    with urllib.request.urlopen(urllib.parse.urljoin(index, link[1]), timeout=60) as file:
        wheel: bytes = file.read()
    if hashlib.sha256(wheel).hexdigest() != PIP_SHA256:
        sys.exit(f"{PIP_WHEEL} from {index} is not the file it should be.")
    return wheel


def has_pip(folder: Path) -> bool:
    """Return whether the environment exists and pip runs in it."""
    python = folder / "bin" / "python"
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0


def has_module(name: str) -> bool:
    """Return whether this Python could import the module."""
    return importlib.util.find_spec(name) is not None


def run(*command: str | Path) -> None:
    """Run a command; if it fails, this program ends with its exit code."""
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
