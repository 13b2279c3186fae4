"""TLS from end to end: real processes, real certificates, and agents that see none of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agenthive import Client, TaskContext, Worker
from agenthive.errors import NotFound
from agenthive.payload import value
from agenthive.v1 import agent_pb2
from agenthive_server.authority import Authority, Pair
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.rpc.tls import EVERY
from agenthive_server.testing.harness import ServerProcess, open_process, open_sdk_workers
from agenthive_server.testing.waiting import eventually

BIN = Path(sys.executable).parent

# An agent that tells all it can see: its environment, and what those that started it show to everyone.
SNOOP = """
import json, os
from pathlib import Path
pid, shown = os.getppid(), []
while pid > 1:
    shown.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\\0", b" ").decode())
    pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
print(json.dumps({"result": {"environment": dict(os.environ), "shown": shown}}))
"""


class Tls:
    """An authority, the certificates of all who take part, and how each of them uses them."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.new(folder, SystemClock())
        self.ca = folder / "ca.pem"
        self.server = self.authority.issue_server([])

    def flags(self, *, mutual: bool = False) -> list[str]:
        flags = ["--tls-cert", str(self.server.certificate), "--tls-key", str(self.server.key)]
        return [*flags, "--tls-client-ca", str(self.ca)] if mutual else flags

    def words(self, pair: Pair) -> list[str]:
        """What `hive` and `agenthived runner` are told."""
        return ["--ca", str(self.ca), "--cert", str(pair.certificate), "--key", str(pair.key)]


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path / "tls")


async def output(program: str, *words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        str(BIN / program), *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode()


async def snoop(client: Client, agent_id: str, **labels: str) -> str:
    """Have a process agent tell what it sees; returns that as one text."""
    spec = agent_pb2.AgentSpec(capabilities=[agent_id])
    spec.process.command.extend([sys.executable, "-I", "-S", "-c", SNOOP])
    spec.runner_labels.update(labels)
    await client.spawn(agent_id=agent_id, spec=spec)
    task = await client.delegate("snoop", required_capabilities=[agent_id])
    told = value((await client.wait_task(task.task_id, timeout=30)).result)
    assert isinstance(told, dict)
    assert "PATH" in str(told["environment"])
    return json.dumps(told)


@asynccontextmanager
async def open_runner(target: str, folder: Path, *words: str) -> AsyncIterator[None]:
    """A runner of another machine, as far as it can tell."""
    command = [str(BIN / "agenthived"), "runner", "--server", target, "--data-dir", str(folder), *words]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stderr=log, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_everyone_works_over_mutual_tls_and_agents_see_no_secret(
    tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("runner", "far-runner", "worker", "ana")
    pairs = {name: tls.authority.issue_client(name) for name in names}
    token_file, join_file = tmp_path / "token", tmp_path / "join"
    token_file.write_text("token-of-the-far-runner")
    join_file.write_text("join-of-the-far-runner")
    # What an operator has in the shell that starts the server.
    monkeypatch.setenv("AGENTHIVE_TOKEN", "token-of-the-operator")
    monkeypatch.setenv("AGENTHIVE_CERT", str(pairs["ana"].certificate))
    monkeypatch.setenv("AGENTHIVE_KEY", str(pairs["ana"].key))
    own = {"runner.certificate": pairs["runner"].certificate, "runner.key": pairs["runner"].key}
    async with open_process(tmp_path / "data", *tls.flags(mutual=True), runner=True, settings=own) as server:
        for name in ("TOKEN", "CERT", "KEY"):
            monkeypatch.delenv(f"AGENTHIVE_{name}")
        ana = pairs["ana"]
        async with Client(server.target, ca=tls.ca, cert=ana.certificate, key=ana.key) as client:
            near = await snoop(client, "near")
            far_words = [*tls.words(pairs["far-runner"]), "--token-file", str(token_file)]
            far_words += ["--join-token-file", str(join_file), "--label", "place=far"]
            async with open_runner(server.target, tmp_path / "far", *far_words):
                far = await snoop(client, "far", place="far")
            for told in (near, far):
                # Not in what anybody shows in `ps` either.
                assert "token-of" not in told
                assert "join-of" not in told
                environment = json.dumps(json.loads(told)["environment"])
                assert not any(
                    word in environment for word in ("TOKEN", "AGENTHIVE_KEY", ".pem", str(tls.authority.folder))
                )
            assert await work_as_a_worker(server, tls, pairs["worker"], client) == "done"
            code, told = await output("hive", "--server", server.target, *tls.words(ana), "agents", "list")
            assert (code, "near" in told) == (0, True)
        assert "Traceback" not in server.log()


async def work_as_a_worker(server: ServerProcess, tls: Tls, pair: Pair, client: Client) -> object:
    worker = Worker(
        server.target, agent_id="worker-1", capabilities=["sdk"], ca=tls.ca, cert=pair.certificate, key=pair.key
    )

    @worker.task("any")
    async def handle(task: TaskContext) -> str:
        return "done"

    async with open_sdk_workers(client, worker):
        task = await client.delegate("any", required_capabilities=["sdk"])
        return value((await client.wait_task(task.task_id, timeout=20)).result)


async def test_reflection_and_health_answer_over_tls(tls: Tls, tmp_path: Path) -> None:
    async with open_process(tmp_path / "data", *tls.flags()) as server:
        curl = ["curl", "--protocol", "grpc", "--cacert", str(tls.ca), "--reflect"]
        code, told = await output("buf", *curl, "--list-methods", f"https://{server.target}")
        assert (code, "agenthive.v1.OrchestratorService/DelegateTask" in told) == (0, True), told
        code, told = await output("buf", *curl, "-d", "{}", f"https://{server.target}/grpc.health.v1.Health/Check")
        assert (code, json.loads(told)) == (0, {"status": "SERVING"})
        assert (await output("hive", "--server", server.target, "--ca", str(tls.ca), "health"))[0] == 0
        code, told = await output("hive", "--server", server.target, "health")
        assert (code, "it may speak TLS" in told) == (2, True), told


async def test_a_running_server_takes_a_renewed_certificate_within_seconds(tls: Tls, tmp_path: Path) -> None:
    async with open_process(tmp_path / "data", *tls.flags()) as server:
        old = Authority.open(tls.authority.folder, SystemClock())
        new = Tls(tmp_path / "new")
        for source, target in ((new.server.key, tls.server.key), (new.server.certificate, tls.server.certificate)):
            os.replace(source, target)

        async def trusts(ca: Path) -> bool:
            code, _ = await output("hive", "--server", server.target, "--ca", str(ca), "--timeout", "1s", "health")
            return code == 0

        await eventually(lambda: trusts(new.ca), limit=EVERY + 10)
        assert not await trusts(old.folder / "ca.pem")


async def test_a_runner_that_was_kept_trusts_its_next_server_whatever_certificate_that_has(
    tls: Tls, tmp_path: Path
) -> None:
    settings: dict[str, object] = {"runner.orphan_timeout_seconds": 30}
    async with open_process(tmp_path / "data", *tls.flags(), "--keep-runner", runner=True, settings=settings) as server:
        runner = int(await eventually(lambda: runner_of(server)))
        try:
            await server.stop()
            new = Tls(tmp_path / "new")
            server.arguments = [*new.flags(), "--keep-runner"]
            await server.start()
            async with Client(server.target, ca=new.ca) as client:
                await snoop(client, "kept")
            assert int(runner_of(server)) == runner
        finally:
            os.kill(runner, signal.SIGTERM)
            await eventually(lambda: not Path(f"/proc/{runner}").exists(), limit=30)


def runner_of(server: ServerProcess) -> str:
    lock = server.data_dir / "runner" / "lock"
    return lock.read_text(encoding="ascii") if lock.exists() else ""


@pytest.mark.parametrize("spoil", ["missing", "mismatch", "open"])
async def test_a_server_that_is_not_protected_as_it_should_does_not_start(tls: Tls, tmp_path: Path, spoil: str) -> None:
    words = ["serve", "--no-runner", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    if spoil == "missing":
        tls.server.key.unlink()
    elif spoil == "mismatch":
        tls.server.key.write_bytes(tls.authority.issue_client("ana").key.read_bytes())
    else:
        words[-1] = "0.0.0.0:0"
    code, told = await output("agenthived", *words, *tls.flags())
    expected = {"missing": "No such file", "mismatch": "is not that of", "open": "has no authentication"}[spoil]
    assert (code, expected in told.splitlines()[-1]) == (1, True), told
    assert "Traceback" not in told


async def test_unprotected_beyond_loopback_is_logged_at_every_start(tls: Tls, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", "--listen", "0.0.0.0:0", "--insecure", *tls.flags())
    for _ in range(2):
        await server.start()
        await server.stop()
    assert server.log().count("without authentication, as told by --insecure") == 2


async def test_a_worker_that_is_not_let_in_says_why_and_goes_on_trying(
    tls: Tls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_process(tmp_path / "data", *tls.flags()) as server:
        stranger = Tls(tmp_path / "other")
        worker = Worker(server.target, agent_id="stranger", ca=stranger.ca)
        running = asyncio.create_task(worker.run())
        await eventually(lambda: "not of an authority trusted here" in caplog.text)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        async with Client(server.target, ca=tls.ca) as client:
            with pytest.raises(NotFound):
                await client.get_agent("stranger")
