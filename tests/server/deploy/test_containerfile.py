"""The container file, as far as it can be tried without building it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tomllib
from pathlib import Path

from agenthive_server.__main__ import _parser
from agenthive_server.testing.harness import open_process

ROOT = Path(__file__).parents[3]
HIVE = Path(sys.executable).parent / "hive"


def last(deploy: Path, instruction: str) -> str:
    """What the image ends up with: the last of these instructions."""
    text = (deploy / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return str(re.findall(rf"^{instruction} (.*)$", text, re.MULTILINE)[-1])


def test_it_starts_a_server_that_nobody_can_reach_unasked(deploy: Path) -> None:
    assert json.loads(last(deploy, "ENTRYPOINT")) == ["agenthived"]
    options = _parser().parse_args(json.loads(last(deploy, "CMD")))
    assert options.data_dir == last(deploy, "VOLUME")
    assert options.listen is None
    assert options.insecure is None


def test_it_runs_as_the_user_the_manifests_name(deploy: Path) -> None:
    pod = (deploy / "kubernetes" / "deployment.yaml").read_text(encoding="utf-8")
    user = re.search(r"runAsUser: (\d+)", pod)
    assert user
    assert last(deploy, "USER") == f"{user[1]}:{user[1]}"


def test_it_takes_in_what_the_package_is_made_of_and_nothing_else(deploy: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = [
        line.split()[1:-1] for line in (deploy / "Containerfile").read_text().splitlines() if line.startswith("COPY")
    ]
    taken = {word for words in copied for word in words if not word.startswith(("-", "/"))}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert all(any(Path(package).is_relative_to(each) for each in taken) for package in packages)
    assert {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"} <= taken
    assert all((ROOT / each).exists() for each in taken)
    extras = re.search(r"'\.\[(.+)\]'", (deploy / "Containerfile").read_text())
    assert extras
    assert set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])


async def test_its_health_check_follows_a_server(deploy: Path, tmp_path: Path) -> None:
    words = json.loads(last(deploy, "HEALTHCHECK").partition("CMD ")[2])
    assert words[0] == "hive"
    async with open_process(tmp_path / "data") as server:
        environ = {**os.environ, "AGENTHIVE_SERVER": server.target}  # noqa: TID251 - for a child

        async def asked() -> int:
            check = await asyncio.create_subprocess_exec(str(HIVE), *words[1:], stdout=-3, stderr=-3, env=environ)
            return await check.wait()

        assert await asked() == 0
        await server.kill()
        assert await asked() != 0
