"""What grpcurl and its friends ask for, by both versions of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb  # type: ignore[import-untyped]  # ships without types

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

VERSIONS = ["v1", "v1alpha"]
ORCHESTRATOR = "agenthive.v1.OrchestratorService"


async def ask(edge: Edge, version: str, **question: Any) -> Any:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call: Any = edge.channel.stream_stream(path)()
    await call.write(pb.ServerReflectionRequest(**question).SerializeToString())
    answer = pb.ServerReflectionResponse.FromString(await call.read())
    await call.done_writing()
    return answer


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_services_are_listed(edge: Edge, version: str) -> None:
    answer = await ask(edge, version, list_services="")
    names = [service.name for service in answer.list_services_response.service]
    assert names == sorted(edge.adapter.services)
    assert {ORCHESTRATOR, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= set(names)
    edge.adapter.remove(ORCHESTRATOR)
    answer = await ask(edge, version, list_services="")
    assert ORCHESTRATOR not in [service.name for service in answer.list_services_response.service]


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_service_that_is_listed_can_be_described(edge: Edge, version: str) -> None:
    for name in edge.adapter.services:
        answer = await ask(edge, version, file_containing_symbol=name)
        files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto]
        pool = DescriptorPool()
        for file in reversed(files):
            known = {done.name for done in files}
            assert set(file.dependency) <= known
        # As a client would: dependencies first.
        added: set[str] = set()
        while len(added) < len(files):
            for file in files:
                if file.name not in added and set(file.dependency) <= added:
                    pool.AddSerializedFile(file.SerializeToString())
                    added.add(file.name)
        assert pool.FindServiceByName(name).full_name == name


async def test_health_is_described_with_all_that_is_answered(edge: Edge) -> None:
    answer = await ask(edge, "v1", file_by_filename="grpc/health/v1/health.proto")
    (raw,) = answer.file_descriptor_response.file_descriptor_proto
    (service,) = FileDescriptorProto.FromString(raw).service
    assert {"Check", "Watch", "List"} <= {method.name for method in service.method}


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "no/such.proto"},
        {"file_containing_symbol": "no.Such"},
        {"file_containing_extension": pb.ExtensionRequest(containing_type="no.Such", extension_number=1)},
        {"all_extension_numbers_of_type": "no.Such"},
        {},
    ],
)
async def test_what_is_not_there_is_not_found(edge: Edge, question: dict[str, Any]) -> None:
    answer = await ask(edge, "v1", **question)
    assert answer.error_response.error_code == 5
    assert answer.original_request == pb.ServerReflectionRequest(**question)


async def test_a_method_is_found_by_its_name_as_grpcurl_asks_for_it(edge: Edge) -> None:
    answer = await ask(edge, "v1", file_containing_symbol=f"{ORCHESTRATOR}.GetTask")
    file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert [service.name for service in file.service] == ["OrchestratorService"]
    assert (await ask(edge, "v1", file_containing_symbol=f"{ORCHESTRATOR}.NoSuch")).error_response.error_code == 5


async def test_fields_are_described_with_their_json_names(edge: Edge) -> None:
    answer = await ask(edge, "v1", file_containing_symbol="agenthive.v1.Task")
    file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    names = {field.name: field.json_name for message in file.message_type for field in message.field}
    assert (names["task_id"], names["state"]) == ("taskId", "state")


async def test_extensions_of_a_message_without_any_are_none(edge: Edge) -> None:
    answer = await ask(edge, "v1", all_extension_numbers_of_type="agenthive.v1.Task")
    assert answer.all_extension_numbers_response.base_type_name == "agenthive.v1.Task"
    assert not answer.all_extension_numbers_response.extension_number
