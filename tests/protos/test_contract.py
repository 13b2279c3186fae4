"""The contract keeps its own rules, the server knows every RPC of it, and a change of it shows as a diff."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from agenthive.v1 import (
    blob_service_pb2,
    error_pb2,
    event_pb2,
    messaging_service_pb2,
    orchestrator_service_pb2,
    plugin_service_pb2,
    production_service_pb2,
    security_service_pb2,
    worker_service_pb2,
)
from agenthive_plugins.production.plugin import POLICIES as PRODUCTION
from agenthive_plugins.security.plugin import POLICIES as SECURITY
from agenthive_server.kernel.events import EventType
from agenthive_server.rpc.policy import POLICIES
from agenthive_server.rpc.status import CODES
from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

FILES = (
    orchestrator_service_pb2,
    worker_service_pb2,
    messaging_service_pb2,
    blob_service_pb2,
    plugin_service_pb2,
    production_service_pb2,
    security_service_pb2,
)
# The server's own rows, and those that plugins bring along.
ROWS = {**POLICIES, **PRODUCTION, **SECURITY}
# What only looks. Everything else that is called with one message changes something.
READING = (
    "Get", "List", "Wait", "Explain", "Stream", "Health", "Download", "Query", "Verify", "Export", "Generate", "Check"
)  # fmt: skip


def methods() -> Iterator[MethodDescriptor]:
    for module in FILES:
        file: FileDescriptor = module.DESCRIPTOR
        for service in file.services_by_name.values():
            yield from service.methods


METHODS = [pytest.param(method, id=method.name) for method in methods()]


@pytest.mark.parametrize("method", METHODS)
def test_every_rpc_has_a_policy(method: MethodDescriptor) -> None:
    assert f"/{method.containing_service.full_name}/{method.name}" in ROWS


def test_every_policy_of_ours_is_of_an_rpc() -> None:
    known = {f"/{method.containing_service.full_name}/{method.name}" for method in methods()}
    ours = {path for path in ROWS if path.startswith("/agenthive.")}
    assert ours == known


@pytest.mark.parametrize("method", METHODS)
def test_every_rpc_has_messages_of_its_own(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


@pytest.mark.parametrize("method", METHODS)
def test_what_changes_something_takes_a_request_id(method: MethodDescriptor) -> None:
    changes = not method.client_streaming and not method.name.startswith(READING)
    assert ("request_id" in method.input_type.fields_by_name) == changes
    assert not (changes and ROWS[f"/{method.containing_service.full_name}/{method.name}"].load)


@pytest.mark.parametrize("method", [m for m in METHODS if str(m.id).startswith("List")])
def test_what_lists_is_paged(method: MethodDescriptor) -> None:
    assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
    assert "next_page_token" in method.output_type.fields_by_name


def test_every_reason_has_a_status_code_and_the_other_way_round() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name, _ in error_pb2.ErrorReason.items()} - {"UNSPECIFIED"}
    assert reasons <= set(CODES)
    # grpc.health.v1 wants a NOT_FOUND that the catalogue does not have yet.
    assert set(CODES) - reasons <= {"SERVICE_NOT_FOUND"}


def test_the_kernel_knows_the_types_of_events_by_the_same_numbers() -> None:
    theirs = {name.removeprefix("EVENT_TYPE_"): number for name, number in event_pb2.EventType.items() if number}
    assert {kind.name: kind.value for kind in EventType} == theirs


def test_every_type_of_event_has_a_fact() -> None:
    facts = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["fact"].fields}
    assert facts == {kind.name.lower() for kind in EventType}


def test_the_contract_is_what_was_reviewed(golden: Callable[[str, str], None]) -> None:
    found: dict[str, FileDescriptorProto] = {}

    def collect(file: FileDescriptor) -> None:
        if file.name in found or not file.package.startswith("agenthive"):
            return
        file.CopyToProto(found.setdefault(file.name, FileDescriptorProto()))
        for imported in file.dependencies:
            collect(imported)

    for module in FILES:
        collect(module.DESCRIPTOR)
    files = FileDescriptorSet(file=[found[name] for name in sorted(found)])
    golden("api.txtpb", text_format.MessageToString(files))
