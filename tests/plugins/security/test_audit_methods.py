"""The trail of a served server: kept over restarts and kills, found broken when touched, given away whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive import Client
from agenthive.v1 import agent_pb2, security_service_pb2_grpc
from agenthive.v1 import security_service_pb2 as pb
from agenthive_server.testing.harness import ServerProcess, open_process

DAMAGE = pb.AuditFaultKind
WRONG: Any = 77
SERVICE = "agenthive.v1.SecurityService"


def blocks(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "hive.db") as database:
        rows = database.execute("SELECT id FROM state WHERE id LIKE 'audit/%' ORDER BY id").fetchall()
    database.close()
    return [row[0] for row in rows]


def touch(folder: Path, statement: str, *arguments: object) -> None:
    """Change the database of a server that is stopped, behind its back."""
    database = sqlite3.connect(folder / "hive.db")
    with database:
        assert database.execute(statement, arguments).rowcount == 1
    database.close()


def body_of(folder: Path, key: str) -> bytes:
    database = sqlite3.connect(folder / "hive.db")
    (body,) = database.execute("SELECT body FROM state WHERE id = ?", (key,)).fetchone()
    database.close()
    return bytes(body)


async def make_records(secured: Any, count: int = 5) -> None:
    for n in range(count):
        await secured.issue(f"p{n}")


async def test_a_trail_nobody_touched_holds_over_restarts(open_secured: Any, tmp_path: Path) -> None:
    for _ in range(3):
        async with open_secured(tmp_path) as secured:
            await make_records(secured)
            found = await secured.verify()
            assert found.intact
            assert not found.faults
            (chain,) = found.chains
            assert chain.record_count == chain.head.sequence


async def test_a_flipped_byte_in_the_database_is_found(open_secured: Any, tmp_path: Path) -> None:
    async with open_secured() as secured:
        await make_records(secured)
    for key in blocks(tmp_path):
        body = body_of(tmp_path, key)
        # Inside of the block's bytes, behind what the store itself writes around them.
        flipped = bytearray(body)
        flipped[len(body) // 2] ^= 0x01
        touch(tmp_path, "UPDATE state SET body = ? WHERE id = ?", bytes(flipped), key)
        async with open_secured(tmp_path) as secured:
            found = await secured.verify()
            assert not found.intact
            assert found.faults
            assert not found.chains[0].intact
            report = pb.GenerateComplianceReportRequest(framework=pb.COMPLIANCE_FRAMEWORK_SOC2)
            report.start_time.FromSeconds(1)
            made = (await secured.call("SecurityService/GenerateComplianceReport", report)).report
            kinds = {gap.kind for control in made.controls for gap in control.gaps}
            assert pb.COMPLIANCE_GAP_KIND_TRAIL_BROKEN in kinds
        touch(tmp_path, "UPDATE state SET body = ? WHERE id = ?", body, key)
    async with open_secured(tmp_path) as secured:
        assert (await secured.verify()).intact


async def test_a_removed_a_moved_and_a_cut_off_record_are_found(open_secured: Any, tmp_path: Path) -> None:
    async with open_secured() as secured:
        await make_records(secured)
        head = (await secured.verify()).chains[0].head
    keys = blocks(tmp_path)
    bodies = {key: body_of(tmp_path, key) for key in keys}
    found = {}
    for name, key in (("first", keys[0]), ("middle", keys[2]), ("last", keys[-1])):
        touch(tmp_path, "DELETE FROM state WHERE id = ?", key)
        found[name] = await faults(open_secured, tmp_path)
        database = sqlite3.connect(tmp_path / "hive.db")
        with database:
            database.execute(
                "INSERT INTO state (namespace, id, revision, body) VALUES ('security', ?, 1, ?)", (key, bodies[key])
            )
        database.close()
    assert DAMAGE.AUDIT_FAULT_KIND_WRONG_BEGINNING in found["first"]
    assert DAMAGE.AUDIT_FAULT_KIND_BROKEN_LINK in found["middle"]
    # The server wrote on behind the gap: the link over it is broken.
    assert DAMAGE.AUDIT_FAULT_KIND_BROKEN_LINK in found["last"]
    request = pb.VerifyAuditLogRequest(expected_heads=[head])
    async with open_secured(tmp_path) as secured:
        assert (await secured.call("SecurityService/VerifyAuditLog", request)).intact
        request.expected_heads[0].hash = b"x" * 32
        wrong = await secured.call("SecurityService/VerifyAuditLog", request)
        assert [fault.kind for fault in wrong.faults] == [DAMAGE.AUDIT_FAULT_KIND_HEAD_MISSING]


async def faults(open_secured: Any, folder: Path) -> list[int]:
    async with open_secured(folder) as secured:
        return [fault.kind for fault in (await secured.verify()).faults]


async def test_a_trail_whose_end_is_unreadable_is_told_and_another_chain_begun(
    open_secured: Any, tmp_path: Path
) -> None:
    async with open_secured() as secured:
        await make_records(secured)
    database = sqlite3.connect(tmp_path / "hive.db")
    (key,) = database.execute("SELECT id FROM state WHERE id LIKE 'chain/%'").fetchone()
    database.close()
    body = body_of(tmp_path, key)
    touch(tmp_path, "UPDATE state SET body = ? WHERE id = ?", body.replace(b"{", b"[", 1), key)
    async with open_secured(tmp_path) as secured:
        found = await secured.verify()
        assert [fault.kind for fault in found.faults] == [DAMAGE.AUDIT_FAULT_KIND_UNREADABLE]
        components = (await secured.call("OrchestratorService/HealthCheck")).components
        (plugin,) = [each for each in components if each.name == "plugin/security"]
        assert "cannot be read" in plugin.reason
        # Nothing is answered unrecorded meanwhile.
        await make_records(secured)


async def test_the_trail_is_given_away_as_lines_that_anybody_can_check(secured: Any) -> None:
    await make_records(secured, 20)
    for _ in range(3):
        await secured.refused("OrchestratorService/ListAgents", token=None)
    answers = await secured.call("SecurityService/ExportAuditLog")
    lines = b"".join(answer.lines for answer in answers).splitlines()
    previous = "0" * 64
    for n, line in enumerate(lines, 1):
        record = json.loads(line)
        claimed = record.pop("hash")
        bare = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert hashlib.sha256(bare).hexdigest() == claimed
        assert (record["previous"], record["sequence"]) == (previous, n)
        previous = claimed
    assert len(lines) > 20
    head = (await secured.verify()).chains[0].head
    assert head.sequence >= len(lines)
    some = pb.ExportAuditLogRequest(filter=pb.AuditFilter(principal="admin", methods=["IssueToken"]))
    answers = await secured.call("SecurityService/ExportAuditLog", some)
    assert len(b"".join(answer.lines for answer in answers).splitlines()) == 20


async def test_pages_of_the_trail_hold_what_was_asked_for(secured: Any) -> None:
    await make_records(secured, 20)
    request = pb.QueryAuditLogRequest(page_size=7, filter=pb.AuditFilter(methods=["IssueToken"]))
    names: list[str] = []
    while True:
        page = await secured.call("SecurityService/QueryAuditLog", request)
        assert len(page.records) <= 7
        names += [each.id for record in page.records for each in record.resources if each.field == "principal"]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert names == [f"p{n}" for n in reversed(range(20))]
    request.filter.principal = "another"
    assert (await secured.refused("SecurityService/QueryAuditLog", request)).reason == "INVALID_PAGE_TOKEN"
    for wrong in (
        pb.AuditFilter(outcomes=[WRONG]),
        pb.AuditFilter(categories=[WRONG]),
        pb.AuditFilter(methods=["x" * 300]),
    ):
        failed = await secured.refused("SecurityService/QueryAuditLog", pb.QueryAuditLogRequest(filter=wrong))
        assert failed.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateComplianceReportRequest(framework=pb.COMPLIANCE_FRAMEWORK_SOC2),
        pb.GenerateComplianceReportRequest(start_time={"seconds": 1}),  # type: ignore[arg-type]
        pb.GenerateComplianceReportRequest(framework=WRONG, start_time={"seconds": 1}),  # type: ignore[arg-type]
        pb.GenerateComplianceReportRequest(
            framework=pb.COMPLIANCE_FRAMEWORK_SOC2,
            start_time={"seconds": 9},  # type: ignore[arg-type]
            end_time={"seconds": 9},  # type: ignore[arg-type]
        ),
        pb.GenerateComplianceReportRequest(
            framework=pb.COMPLIANCE_FRAMEWORK_SOC2,
            start_time={"seconds": 1},  # type: ignore[arg-type]
            maximum_reference_count=1_001,
        ),
    ],
)
async def test_a_report_for_nothing_is_refused(secured: Any, request_: pb.GenerateComplianceReportRequest) -> None:
    assert (await secured.refused("SecurityService/GenerateComplianceReport", request_)).code == "INVALID_ARGUMENT"


async def test_what_an_administrator_did_is_in_the_trail_after_kill_9(tmp_path: Path) -> None:
    """And it says that the server was killed; what went before it is whole."""
    server = ServerProcess(tmp_path, settings={"plugins.enabled": '["security"]', **RATES})
    await server.start()
    try:
        metadata = bearer(tmp_path)
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = security_service_pb2_grpc.SecurityServiceStub(channel)
            for n in range(10):
                await stub.IssueToken(pb.IssueTokenRequest(principal=f"p{n}"), metadata=metadata)
        await server.kill()
        await server.start()
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub = security_service_pb2_grpc.SecurityServiceStub(channel)
            wanted = pb.AuditFilter(methods=["IssueToken"])
            records = (await stub.QueryAuditLog(pb.QueryAuditLogRequest(filter=wanted), metadata=metadata)).records
            assert len(records) == 10
            assert (await stub.VerifyAuditLog(pb.VerifyAuditLogRequest(), metadata=metadata)).intact
            wanted = pb.AuditFilter(methods=["audit.began"])
            began = (await stub.QueryAuditLog(pb.QueryAuditLogRequest(filter=wanted), metadata=metadata)).records
            assert [record.reason for record in began] == ["NOT_ENDED", ""]
    finally:
        await server.kill()


RATES = {"plugins.security.limits.per_principal": 0, "plugins.security.limits.per_method": 0}
SECRET = re.compile(rb"ahv[jc]?_[0-9A-Za-z]{20,}")


def bearer(folder: Path) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {(folder / 'plugins/security/admin.token').read_text().strip()}"),)


async def test_no_secret_is_in_a_log_an_event_an_error_the_database_or_ps(tmp_path: Path) -> None:
    settings = {"plugins.enabled": '["security"]', **RATES, "plugins.security.audit.reads": "true"}
    texts: list[str] = []
    async with open_process(tmp_path, "--log-level", "debug", runner=True, settings=settings) as server:
        metadata = bearer(tmp_path)
        async with (
            grpc.aio.insecure_channel(server.target) as channel,
            Client(server.target, token=metadata[0][1].removeprefix("Bearer ")) as client,
        ):
            stub = security_service_pb2_grpc.SecurityServiceStub(channel)
            made = await stub.IssueToken(pb.IssueTokenRequest(principal="ann", request_id="1"), metadata=metadata)
            scope = pb.JoinScope(agent_id="a-1")
            join = await stub.IssueJoinToken(pb.IssueJoinTokenRequest(scope=scope), metadata=metadata)
            secrets = [made.secret, join.secret, metadata[0][1].removeprefix("Bearer ")]
            for secret in secrets:
                # In places where people put them by mistake.
                for call in (
                    stub.RevokeToken(pb.RevokeTokenRequest(token_id=secret), metadata=metadata),
                    stub.ResolveThreat(pb.ResolveThreatRequest(threat_id=secret), metadata=metadata),
                    stub.ListTokens(pb.ListTokensRequest(), metadata=(("authorization", secret),)),
                    stub.ListTokens(pb.ListTokensRequest(), metadata=(("authorization", f"Bearer {secret}x"),)),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    texts += [str(caught.value.details()), repr(caught.value.trailing_metadata())]
            texts += [str(event) async for event in client.events(follow=False)]
            texts.append(str(await stub.ListTokens(pb.ListTokensRequest(), metadata=metadata)))
            texts.append(str(await stub.QueryAuditLog(pb.QueryAuditLogRequest(page_size=1_000), metadata=metadata)))
        processes = what_ps_shows()
    assert not [text for text in texts if any(secret in text for secret in secrets)]
    assert not SECRET.findall(server.log().encode())
    assert not [found for found in SECRET.findall(processes) if found.decode() in secrets]
    # One place is meant to have one, for its owner only.
    (kept,) = files_with_secrets(tmp_path)
    assert kept.name == "admin.token"
    assert kept.stat().st_mode & 0o077 == 0


def what_ps_shows() -> bytes:
    """Return commands and environments of all processes that can be looked at."""
    found = []
    for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
        # Processes end while one looks.
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return b"\0".join(found)


def files_with_secrets(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.search(path.read_bytes())]


async def test_the_runner_of_the_server_joins_and_its_agents_work(tmp_path: Path) -> None:
    settings = {"plugins.enabled": '["security"]', **RATES}
    async with open_process(tmp_path, runner=True, settings=settings) as server:
        token = bearer(tmp_path)[0][1].removeprefix("Bearer ")
        async with Client(server.target, token=token) as client:
            spec = agent_pb2.AgentSpec(
                capabilities=["talk"], process=agent_pb2.ProcessDriver(command=["echo", "hello"])
            )
            await client.spawn(agent_id="parrot-1", spec=spec)
            done = await client.delegate("talk", wait=True, required_capabilities=["talk"])
            assert done.result.data == b"hello\n"
        await server.stop()
        await server.start()
        async with Client(server.target, token=token) as client:
            done = await client.delegate("talk", wait=True, required_capabilities=["talk"])
            assert done.result.data == b"hello\n"
        async with grpc.aio.insecure_channel(server.target) as channel:
            wanted = pb.ListTokensRequest(kinds=[pb.TOKEN_KIND_CREDENTIAL, pb.TOKEN_KIND_JOIN])
            stub = security_service_pb2_grpc.SecurityServiceStub(channel)
            tokens = (await stub.ListTokens(wanted, metadata=bearer(tmp_path))).tokens
        # Of the runner that is gone nothing is left that counts.
        assert [token.state for token in tokens if token.kind == pb.TOKEN_KIND_CREDENTIAL] == [
            pb.TOKEN_STATE_ACTIVE,
            pb.TOKEN_STATE_REVOKED,
        ]
        assert len({token.principal for token in tokens}) == 1
