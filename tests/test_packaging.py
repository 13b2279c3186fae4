"""The wheel holds its packages, the stubs, the migrations and py.typed; what it needs can live in one environment."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = [ROOT / "clients/python/agenthive", ROOT / "server/agenthive_server", ROOT / "plugins/agenthive_plugins"]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
MIGRATIONS = ROOT / "server/agenthive_server/storage/migrations"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the wheel as a user would get it, built here and now, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    (file,) = folder.iterdir()
    with zipfile.ZipFile(file) as opened:
        return set(opened.namelist())


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: set[str]) -> None:
    metadata = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
    assert {name.partition("/")[0] for name in wheel} == {metadata, *(folder.name for folder in PACKAGES)}


def test_every_file_of_a_package_is_in_the_wheel(wheel: set[str]) -> None:
    missing = [file for folder in PACKAGES for file in files_of(folder) if in_wheel(file, folder) not in wheel]
    assert not missing


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_every_package_says_that_it_is_typed(wheel: set[str], folder: Path) -> None:
    assert f"{folder.name}/py.typed" in wheel


@pytest.mark.parametrize("proto", PROTOS, ids=lambda proto: proto.stem)
def test_every_proto_has_its_typed_stubs_in_the_wheel(wheel: set[str], proto: Path) -> None:
    stem = proto.relative_to(ROOT / "protos").with_suffix("").as_posix()
    kinds = ("_pb2", "_pb2_grpc") if stem.endswith("_service") else ("_pb2",)
    stubs = {f"{stem}{kind}.{suffix}" for kind in kinds for suffix in ("py", "pyi")}
    assert stubs <= wheel


def test_the_migrations_are_in_the_wheel(wheel: set[str]) -> None:
    versions = {
        f"agenthive_server/storage/migrations/versions/{file.name}" for file in MIGRATIONS.glob("versions/*.py")
    }
    assert versions <= wheel
    assert versions or not MIGRATIONS.exists()


def test_a_client_brings_nothing_of_the_server() -> None:
    server = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["server"]}
    assert not server & {name for name, _ in closure(PROJECT["name"])}


def test_no_file_belongs_to_two_distributions() -> None:
    owners = defaultdict(set)
    for name in {name for name, _ in closure(PROJECT["name"], "server")}:
        for file in distribution(name).files or ():
            owners[file.locate()].add(name)
    assert not {str(file): names for file, names in owners.items() if len(names) > 1}


def files_of(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def in_wheel(file: Path, folder: Path) -> str:
    return file.relative_to(folder.parent).as_posix()


def closure(name: str, extra: str = "") -> set[tuple[NormalizedName, str]]:
    """Return what a distribution with an extra needs here, itself included, as pairs of a name and an extra."""
    found: set[tuple[NormalizedName, str]] = set()
    todo = {(canonicalize_name(name), extra)}
    while todo:
        found |= todo
        todo = {need for name, extra in todo for need in needs(name, extra)} - found
    return found


def needs(name: str, extra: str) -> set[tuple[NormalizedName, str]]:
    """Return the direct requirements of an installed distribution that apply on this machine."""
    requirements = [Requirement(line) for line in distribution(name).requires or ()]
    return {
        (canonicalize_name(requirement.name), extra_of_need)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        for extra_of_need in {"", *requirement.extras}
    }


def test_nothing_lies_in_the_root_but_what_belongs_there() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    found = {name.partition("/")[0] for name in listed}
    assert {name for name in found if not name.startswith(".")} == {
        "LICENSE",
        "Makefile",
        "README.md",
        "buf.yaml",
        "clients",
        "plugins",
        "protos",
        "pyproject.toml",
        "server",
        "tests",
    }
