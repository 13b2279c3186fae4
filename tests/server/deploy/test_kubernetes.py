"""The manifests: they fit together, and what they say of the server is so."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from agenthive import Client
from agenthive_server.__main__ import _parser
from agenthive_server.authority import Authority
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.settings import load
from agenthive_server.testing.harness import free_port, open_process

Opens = Callable[..., AbstractAsyncContextManager[Any]]
Manifest = dict[str, Any]

HIVE = Path(sys.executable).parent / "hive"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
TO_COMMIT_AND_CLOSE = 10.0
"""Seconds a server needs at most after its grace."""


@pytest.fixture
def plain(deploy: Path) -> Path:
    return deploy / "kubernetes"


@pytest.fixture
def tls(deploy: Path) -> Path:
    return deploy / "kubernetes-tls"


def documents(folder: Path) -> Iterator[Manifest]:
    for file in sorted(folder.glob("*.yaml")):
        yield from yaml.safe_load_all(file.read_text(encoding="utf-8"))


def only(folder: Path, kind: str) -> Manifest:
    (found,) = (each for each in documents(folder) if each["kind"] == kind)
    return found


def server_of(deployment: Manifest) -> Manifest:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


def environment(container: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


# How they fit together ------------------------------------------------------------------------------------------------


def test_everything_is_listed_and_finds_the_pods(plain: Path) -> None:
    listed = set(only(plain, "Kustomization")["resources"])
    assert listed == {file.name for file in plain.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    labels = only(plain, "Deployment")["spec"]["template"]["metadata"]["labels"]
    services = [each for each in documents(plain) if each["kind"] == "Service"]
    assert {each["spec"].get("clusterIP") for each in services} == {None, "None"}
    for each in services:
        assert each["spec"]["selector"] == labels
        assert [port["targetPort"] for port in each["spec"]["ports"]] == ["grpc"]
    assert only(plain, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert only(plain, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert only(plain, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


def test_a_pod_has_longer_to_end_than_its_server_takes(plain: Path) -> None:
    server = load(plain / "hive.toml", environ={}).server
    grace = only(plain, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= server.drain_delay_seconds + server.drain_grace_seconds + TO_COMMIT_AND_CLOSE
    assert server.drain_delay_seconds >= 5


def test_a_pod_may_do_nothing_it_need_not(plain: Path) -> None:
    pod = only(plain, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    container = server_of(only(plain, "Deployment"))["securityContext"]
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}


def test_the_way_into_the_database_comes_from_a_secret_alone(plain: Path, tls: Path) -> None:
    secret = only(plain, "Secret")
    (store,) = (each for each in server_of(only(plain, "Deployment"))["env"] if each["name"].endswith("__STORE"))
    reference = store["valueFrom"]["secretKeyRef"]
    assert reference["name"] == secret["metadata"]["name"]
    assert reference["key"] in secret["stringData"]
    for folder in (plain, tls):
        for file in folder.iterdir():
            assert ("postgresql://" in file.read_text()) == (file.name == "secret.example.yaml"), file


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-tls"])
def test_kustomize_builds_them(deploy: Path, name: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on this machine")
    built = subprocess.run(
        [kubectl, "kustomize", str(deploy / name)], check=True, capture_output=True, text=True
    ).stdout
    manifests = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(built)}
    container = server_of(manifests["Deployment", "agenthive"])
    kinds = {"exec" if "exec" in container[probe] else "grpc" for probe in PROBES}
    assert kinds == {"grpc" if name == "kubernetes" else "exec"}
    assert not any({"exec", "grpc"} <= set(container[probe]) for probe in PROBES)
    # The settings are found, under the name with a hash.
    volumes = manifests["Deployment", "agenthive"]["spec"]["template"]["spec"]["volumes"]
    (settings,) = (each["configMap"]["name"] for each in volumes if "configMap" in each)
    assert "hive.toml" in manifests["ConfigMap", settings]["data"]
    assert manifests["Service", "agenthive"]["spec"]["ports"][0]["targetPort"] == "grpc"


# What they say of the server ------------------------------------------------------------------------------------------


async def test_a_server_starts_as_in_a_pod_and_answers_its_probes(plain: Path, tmp_path: Path) -> None:
    container = server_of(only(plain, "Deployment"))
    options = _parser().parse_args(container["args"])
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert options.config == Path(mounts["settings"]) / "hive.toml"
    assert options.data_dir == mounts["data"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    written = load(plain / "hive.toml", environ={}).server
    assert written.listen == f"0.0.0.0:{ports['grpc']}"
    assert written.web == f"0.0.0.0:{ports['metrics']}"
    flags = ("--config", str(plain / "hive.toml"), "--web", f"127.0.0.1:{free_port()}")
    async with open_process(tmp_path / "data", *flags) as server, Client(server.target) as client:
        for probe in PROBES:
            assert container[probe]["grpc"]["port"] == ports["grpc"]
            assert await client.serving(container[probe]["grpc"]["service"])
        await server.kill()


async def test_with_tls_it_needs_not_be_insecure_and_its_probes_are_commands(
    tls: Path, plain: Path, folder: Path
) -> None:
    authority = Authority.new(folder / "authority", SystemClock())
    pair = authority.issue_server(["agenthive"])
    secret = folder / "secret"
    secret.mkdir()
    for name, file in (("tls.crt", pair.certificate), ("tls.key", pair.key), ("ca.crt", authority.folder / "ca.pem")):
        shutil.copy(file, secret / name)
    container = server_of(only(tls, "Deployment"))
    (mount,) = (each["mountPath"] for each in container["volumeMounts"])
    given = {name: text.replace(mount, str(secret)) for name, text in environment(container).items()}
    port = free_port()
    settings = {k.removeprefix("AGENTHIVE_").replace("__", "."): v for k, v in given.items() if "__" in k}
    settings["server.web"] = f"127.0.0.1:{free_port()}"
    flags = ("--config", str(plain / "hive.toml"), "--listen", f"0.0.0.0:{port}")
    async with open_process(folder / "data", *flags, settings=settings) as server:
        environ = {**os.environ, **given, "AGENTHIVE_SERVER": f"127.0.0.1:{port}"}  # noqa: TID251 - for a child
        for probe in PROBES:
            words = container[probe]["exec"]["command"]
            assert words[0] == "hive"
            asked = await asyncio.create_subprocess_exec(str(HIVE), *words[1:], stdout=-1, stderr=-1, env=environ)
            assert (await asked.communicate(), asked.returncode) == ((b"SERVING\n", b""), 0)
        assert "without TLS" not in server.log()
        await server.kill()
