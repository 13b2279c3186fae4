"""What is recorded of a call says what it was about, and repeats nothing that could be a secret."""

from __future__ import annotations

import pytest
from agenthive.v1 import blob_service_pb2, orchestrator_service_pb2, plugin_service_pb2
from agenthive.v1 import security_service_pb2 as pb
from agenthive_plugins.security.acts import (
    CONNECT,
    UPLOAD,
    category_of,
    gives_admin,
    is_recorded,
    kind_of_call,
    resources_of,
    shown,
)
from agenthive_plugins.security.plugin import POLICIES as OWN
from agenthive_plugins.security.records import Category
from agenthive_plugins.security.tokens import TokenKind, mint
from agenthive_server.plugin.api import Audience, Policy
from agenthive_server.rpc.policy import POLICIES
from hypothesis import given
from hypothesis import strategies as st

ROWS = {**POLICIES, **OWN}


def test_everything_that_changes_something_is_recorded_and_no_probe_is() -> None:
    for path, policy in ROWS.items():
        recorded = is_recorded(path, policy, reads=False)
        if policy.audience is Audience.ANYONE or path == CONNECT:
            assert not recorded
            assert not is_recorded(path, policy, reads=True)
        elif not policy.idempotent or policy.audience is Audience.ADMIN or path == UPLOAD:
            assert recorded
        else:
            assert not recorded
            assert is_recorded(path, policy, reads=True)


@pytest.mark.parametrize(
    ("path", "request_", "category"),
    [
        ("/agenthive.v1.OrchestratorService/SpawnAgent", None, Category.DATA_MODIFICATION),
        ("/agenthive.v1.OrchestratorService/GetTask", None, Category.DATA_ACCESS),
        (UPLOAD, None, Category.DATA_MODIFICATION),
        (CONNECT, None, Category.AUTHENTICATION),
        ("/agenthive.v1.PluginService/EnablePlugin", None, Category.CONFIGURATION_CHANGE),
        ("/agenthive.v1.SecurityService/IssueToken", pb.IssueTokenRequest(roles=[1]), Category.USER_MANAGEMENT),  # type: ignore[list-item]
        ("/agenthive.v1.SecurityService/IssueToken", pb.IssueTokenRequest(roles=[1, 4]), Category.PRIVILEGE_ESCALATION),  # type: ignore[list-item]
        ("/agenthive.v1.SecurityService/QueryAuditLog", None, Category.DATA_ACCESS),
    ],
)
def test_what_kind_of_act_a_call_is(path: str, request_: object, category: Category) -> None:
    assert category_of(path, ROWS[path], request_) is category


@pytest.mark.parametrize(
    ("path", "audience", "category"),
    [
        ("/x.y.OtherService/SetRule", Audience.OPERATOR, Category.CONFIGURATION_CHANGE),
        ("/x.y.OtherService/Restart", Audience.ADMIN, Category.SYSTEM_ADMINISTRATION),
        ("/x.y.OtherService/Restart", Audience.OPERATOR, Category.DATA_MODIFICATION),
    ],
)
def test_calls_of_other_plugins_have_a_category_too(path: str, audience: Audience, category: Category) -> None:
    assert category_of(path, Policy(audience=audience), None) is category


def test_kinds_of_calls() -> None:
    kinds = {path.rpartition("/")[2]: kind_of_call(policy) for path, policy in ROWS.items()}
    assert (kinds["GetTask"], kinds["DelegateTask"], kinds["IssueToken"]) == ("read", "change", "admin")


def test_what_a_request_names_is_found_also_one_level_down() -> None:
    delegate = orchestrator_service_pb2.DelegateTaskRequest(task_id="t-1", request_id="r")
    delegate.spec.type = "work"
    assert resources_of(delegate) == (("task_id", "t-1"),)
    binding = pb.SetRoleBindingRequest(binding=pb.RoleBinding(principal="ann", namespace="a"))
    assert resources_of(binding) == (("principal", "ann"),)
    scope = pb.IssueJoinTokenRequest(scope=pb.JoinScope(agent_id_prefix="pool-"))
    assert resources_of(scope) == (("agent_id_prefix", "pool-"),)
    assert resources_of(plugin_service_pb2.EnablePluginRequest(name="context")) == (("name", "context"),)
    assert resources_of(blob_service_pb2.DownloadBlobRequest(blob_id="sha256:00")) == (("blob_id", "sha256:00"),)
    assert resources_of(None) == ()


@given(st.text(max_size=300))
def test_an_id_that_is_none_is_not_repeated(text: str) -> None:
    found = shown(text)
    assert len(found) <= 200
    assert found.isprintable()


@pytest.mark.parametrize("kind", list(TokenKind))
def test_a_secret_in_the_place_of_an_id_is_not_repeated(kind: TokenKind) -> None:
    secret = mint(kind)
    for text in (secret, f"x.{secret}", secret[:40]):
        assert secret[10:35] not in str(resources_of(orchestrator_service_pb2.GetTaskRequest(task_id=text)))


def test_who_gives_the_role_of_an_administrator() -> None:
    assert not gives_admin(pb.RevokeTokenRequest())
    assert not gives_admin(None)
    assert gives_admin(pb.SetRoleBindingRequest(binding=pb.RoleBinding(roles=[pb.ROLE_ADMIN])))
