"""JSON Web Tokens and client certificates on a served server: whose they are, when they count, and when no more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from agenthive import Client
from agenthive.errors import HiveError, PermissionDenied
from agenthive.v1 import orchestrator_service_pb2, plugin_service_pb2, worker_service_pb2
from agenthive.v1 import security_service_pb2 as pb
from agenthive_server.authority import Authority, Pair
from agenthive_server.kernel.clock import SystemClock
from agenthive_server.lifecycle import StartError
from agenthive_server.testing.raw_worker import hello_of
from agenthive_server.testing.waiting import eventually
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import encode
from jwt.algorithms import RSAAlgorithm

LOOK = "OrchestratorService/ListAgents"
SPAWN = "OrchestratorService/ShutdownAgent"
FIRST = rsa.generate_private_key(65_537, 2_048)
SECOND = rsa.generate_private_key(65_537, 2_048)


def write_keys(path: Path, *keys: tuple[str, Any]) -> None:
    found = [{**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": kid} for kid, key in keys]
    path.write_text(json.dumps({"keys": found}))


def token(secured: Any, key: Any = FIRST, kid: str = "1", **changes: Any) -> str:
    now = int(secured.clock.now())
    claims: dict[str, object] = {
        "iss": "https://login.example",
        "aud": "hive",
        "sub": "alice",
        "iat": now,
        "exp": now + 300,
        "groups": ["hive-operators", "admin"],
        **changes,
    }
    return encode(claims, key, algorithm="RS256", headers={"kid": kid})


@pytest.fixture
def open_trusting(open_secured: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    write_keys(tmp_path / "keys.json", ("1", FIRST))

    def openly(**more: object) -> Any:
        return open_secured(
            tmp_path / "data",
            jwt__issuer="https://login.example",
            jwt__audience="hive",
            jwt__jwks_file=str(tmp_path / "keys.json"),
            jwt__roles_claim="groups",
            jwt__roles={"hive-operators": "operator", "hive-admins": "admin"},
            **more,
        )

    return openly


@pytest.fixture
async def trusting(open_trusting: Callable[..., Any]) -> AsyncIterator[Any]:
    async with open_trusting() as served:
        yield served


async def test_a_jwt_has_the_roles_its_claim_is_worth_here_and_no_others(trusting: Any) -> None:
    alice = token(trusting)
    await trusting.call(LOOK, token=alice)
    # `admin` is a group there, and no role here.
    assert (await trusting.refused("SecurityService/ListTokens", token=alice)).code == "PERMISSION_DENIED"
    bob = token(trusting, sub="bob", groups=[])
    assert (await trusting.refused(LOOK, token=bob)).code == "PERMISSION_DENIED"
    binding = pb.RoleBinding(principal="jwt:bob", namespace="default", roles=[pb.ROLE_VIEWER])
    await trusting.call("SecurityService/SetRoleBinding", pb.SetRoleBindingRequest(binding=binding))
    await trusting.call(LOOK, token=bob)
    records = await trusting.trail(principal="jwt:alice")
    assert {record.method for record in records} >= {"authenticated", "/agenthive.v1.SecurityService/ListTokens"}


async def test_a_jwt_counts_until_it_expires_also_when_it_was_seen_before(trusting: Any) -> None:
    alice = token(trusting)
    await trusting.call(LOOK, token=alice)
    trusting.clock.ahead += 300 + 31
    failed = await trusting.refused(LOOK, token=alice)
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "expired")
    assert alice not in failed.text


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"aud": "another"}, "audience"), ({"iss": "https://evil"}, "issuer"), ({"exp": 1}, "expired")],
)
async def test_a_jwt_that_is_not_for_here_is_refused_and_recorded(
    trusting: Any, changes: dict[str, Any], why: str
) -> None:
    failed = await trusting.refused(LOOK, token=token(trusting, **changes))
    assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", why)
    (record,) = await trusting.trail(outcomes=[pb.AUDIT_OUTCOME_DENIED])
    assert (record.reason, record.category) == (why, pb.AUDIT_CATEGORY_AUTHENTICATION)


async def test_a_jwt_that_counts_once_is_refused_the_second_time_and_after_a_restart(open_trusting: Any) -> None:
    async with open_trusting(jwt__single_use=True) as served:
        once = token(served, jti="7")
        await served.call(LOOK, token=once)
        failed = await served.refused(LOOK, token=once)
        assert (failed.code, failed.metadata["why"]) == ("UNAUTHENTICATED", "replayed")
        assert (await served.refused(LOOK, token=token(served))).metadata["why"] == "jti"
    async with open_trusting(jwt__single_use=True) as served:
        assert (await served.refused(LOOK, token=once)).metadata["why"] == "replayed"
        (record,) = [each for each in await served.trail(principal="jwt:alice") if each.reason == "replayed"][:1]
        assert record.outcome == pb.AUDIT_OUTCOME_DENIED


async def test_a_key_that_is_taken_back_ends_the_tokens_it_signed(trusting: Any, tmp_path: Path) -> None:
    old, new = token(trusting), token(trusting, SECOND, "2")
    await trusting.call(LOOK, token=old)
    assert (await trusting.refused(LOOK, token=new)).metadata["why"] == "unknown_key"
    write_keys(tmp_path / "keys.json", ("2", SECOND))
    keys = trusting.app.plugins._rack.standings["security"].instance.plugin.tasks[-1].run.__self__
    await keys.load()
    await trusting.call(LOOK, token=new)
    assert (await trusting.refused(LOOK, token=old)).metadata["why"] == "unknown_key"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"jwt__issuer": "i"}, "one `audience` only"),
        ({"jwt__issuer": "i", "jwt__audience": "a"}, "`jwks_file` or at `jwks_url`"),
        ({"jwt__issuer": "i", "jwt__audience": "a", "jwt__jwks_url": "https://evil.example/"}, "not among the hosts"),
        (
            {
                "jwt__issuer": "i",
                "jwt__audience": "a",
                "jwt__jwks_url": "http://plain.example/",
                "jwt__jwks_hosts": ["plain.example"],
            },
            "by https only",
        ),
        ({"jwt__algorithms": ["none"]}, "algorithms"),
        ({"jwt__algorithms": ["HS256"]}, "algorithms"),
        ({"limits__per_principal": -1}, "per_principal"),
        ({"nothing": 1}, "nothing"),
        ({"threats__failed_logins__nothing": 1}, "nothing"),
    ],
)
async def test_with_settings_that_make_no_sense_the_server_does_not_start(
    open_secured: Callable[..., Any], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(StartError, match=why):
        async with open_secured(**settings):
            raise AssertionError


async def test_a_plugin_that_cannot_be_opened_lets_nobody_through(
    open_secured: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "plugins/security/chain.lock").mkdir(parents=True)
    with pytest.raises(StartError, match="plugin security cannot be opened"):
        async with open_secured(tmp_path):
            raise AssertionError


async def test_without_the_keys_of_the_issuer_its_tokens_do_not_count_and_others_do(
    open_trusting: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "keys.json").unlink()
    async with open_trusting() as served:
        await served.call(LOOK)
        assert (await served.refused(LOOK, token=token(served))).metadata["why"] == "unknown_key"
        components = (await served.call("OrchestratorService/HealthCheck")).components
        (plugin,) = [each for each in components if each.name == "plugin/security"]
        assert plugin.status == orchestrator_service_pb2.HEALTH_STATUS_DEGRADED
        assert "keys.json" in plugin.reason


# Certificates --------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.new(tmp_path / "tls", SystemClock())
    made.issue_server(["127.0.0.1"])
    return made


def files(authority: Authority) -> dict[str, object]:
    folder = authority.folder
    return {
        "server.tls.certificate": str(folder / "server.pem"),
        "server.tls.key": str(folder / "server-key.pem"),
        "server.tls.client_ca": str(folder / "ca.pem"),
    }


def shown(authority: Authority, pair: Pair | None) -> grpc.ChannelCredentials:
    ca = (authority.folder / "ca.pem").read_bytes()
    if pair is None:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, pair.key.read_bytes(), pair.certificate.read_bytes())


async def test_a_client_certificate_is_a_principal_with_the_roles_it_is_bound_to(
    open_tls: Callable[..., Any], authority: Authority
) -> None:
    ana, eve = authority.issue_client("ana"), authority.issue_client("eve")
    async with open_tls(files(authority), shown(authority, ana)) as served:
        # Nobody is bound yet; the administrator's token goes with any certificate.
        assert (await served.refused(LOOK, token=None)).code == "PERMISSION_DENIED"
        binding = pb.RoleBinding(principal="cert:ana", namespace="default", roles=[pb.ROLE_VIEWER])
        await served.call("SecurityService/SetRoleBinding", pb.SetRoleBindingRequest(binding=binding))
        await served.call(LOOK, token=None)
        assert (await served.refused(SPAWN, token=None)).code == "PERMISSION_DENIED"
        options: dict[str, Any] = {"ca": authority.folder / "ca.pem", "cert": eve.certificate, "key": eve.key}
        async with Client(served.target, **options) as client:
            with pytest.raises(PermissionDenied):
                await anext(client.list_agents())
        denied = await served.trail(principal="cert:eve", outcomes=[pb.AUDIT_OUTCOME_DENIED])
        assert [record.method.rpartition("/")[2] for record in denied] == ["ListAgents"]
        allowed = await served.trail(principal="cert:ana", outcomes=[pb.AUDIT_OUTCOME_OK])
        assert [record.method for record in allowed] == ["authenticated"]


async def test_a_certificate_of_another_authority_does_not_get_in(
    open_tls: Callable[..., Any], authority: Authority, tmp_path: Path
) -> None:
    ana = authority.issue_client("ana")
    stranger = Authority.new(tmp_path / "other", SystemClock()).issue_client("ana")
    async with open_tls(files(authority), shown(authority, ana)) as served:
        options: dict[str, Any] = {"ca": authority.folder / "ca.pem", "cert": stranger.certificate, "key": stranger.key}
        async with Client(served.target, timeout=2.0, **options) as client:
            with pytest.raises(HiveError):
                await anext(client.list_agents(timeout=2.0))
        assert not await served.trail(principal="cert:ana")


async def test_a_certificate_is_swapped_at_run_time_and_its_principal_stays(
    open_tls: Callable[..., Any], authority: Authority
) -> None:
    ana = authority.issue_client("ana")
    async with open_tls(files(authority), shown(authority, ana)) as served:
        binding = pb.RoleBinding(principal="cert:ana", namespace="default", roles=[pb.ROLE_VIEWER])
        await served.call("SecurityService/SetRoleBinding", pb.SetRoleBindingRequest(binding=binding))
        authority.renew("server")
        renewed = authority.renew("client-ana", new_key=True)
        options: dict[str, Any] = {"ca": authority.folder / "ca.pem", "cert": renewed.certificate, "key": renewed.key}

        async def looked() -> bool:
            async with Client(served.target, **options) as client:
                assert [agent async for agent in client.list_agents()] == []
            return True

        assert await eventually(looked, what="the new certificate counts")


async def test_a_worker_joins_with_its_certificate_as_agents_that_are_its_own(
    open_tls: Callable[..., Any], authority: Authority
) -> None:
    fleet = authority.issue_client("fleet-7")
    async with open_tls(files(authority), shown(authority, fleet)) as served:
        binding = pb.RoleBinding(principal="cert:fleet-7", namespace="default", roles=[pb.ROLE_AGENT])
        said = hello_of("f-1")
        assert (await served.join(said)).code == "PERMISSION_DENIED"
        await served.call("SecurityService/SetRoleBinding", pb.SetRoleBindingRequest(binding=binding))
        assert isinstance(await served.join(said), worker_service_pb2.Welcome)
        request = orchestrator_service_pb2.GetAgentRequest(agent_id="f-1")
        await served.call("OrchestratorService/GetAgent", request, token=None)
        request.agent_id = "other"
        assert (await served.refused("OrchestratorService/GetAgent", request, token=None)).code == "PERMISSION_DENIED"


async def test_beyond_this_machine_the_server_listens_with_tls_and_this_plugin_only(
    open_tls: Callable[..., Any], open_secured: Callable[..., Any], authority: Authority
) -> None:
    with pytest.raises(StartError, match="has no TLS"):
        async with open_tls({"server.listen": "0.0.0.0:0"}):
            raise AssertionError
    with pytest.raises(StartError, match="has no authentication"):
        async with open_tls({**files(authority), "server.listen": "0.0.0.0:0", "plugins.enabled": []}):
            raise AssertionError
    ana = authority.issue_client("ana")
    async with open_tls({**files(authority), "server.listen": "0.0.0.0:0"}, shown(authority, ana)) as served:
        await served.call(LOOK)
        disable = plugin_service_pb2.DisablePluginRequest(name="security")
        refused = await served.refused("PluginService/DisablePlugin", disable)
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PLUGIN_CONFLICT")
