"""Services that others define: grpc.health.v1 and grpc.reflection, as this server describes and speaks them.

The packages that ship them are a little behind: health is without `List`, reflection without v1 (the same messages as
v1alpha under another name). What is missing is added to a copy of their description, in a pool of our own.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]  # ships without types
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]  # ships without types

POOL: Final = DescriptorPool()
"""Describes what is in this module; everything else is in the default pool."""


def _copy(file: FileDescriptor, name: str) -> FileDescriptorProto:
    """Return a description under the name its own project gives it; the Python packages ship it under another."""
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    proto.name = name
    return proto


def _health() -> FileDescriptorProto:
    proto = _copy(health_pb2.DESCRIPTOR, "grpc/health/v1/health.proto")
    (service,) = proto.service
    if any(method.name == "List" for method in service.method):
        return proto
    package = f".{proto.package}"
    proto.message_type.add(name="HealthListRequest")
    response = proto.message_type.add(name="HealthListResponse")
    kinds = FieldDescriptorProto
    response.field.add(
        name="statuses",
        number=1,
        label=kinds.LABEL_REPEATED,
        type=kinds.TYPE_MESSAGE,
        type_name=f"{package}.HealthListResponse.StatusesEntry",
    )
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
    value = entry.field.add(name="value", number=2, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE)
    value.type_name = f"{package}.HealthCheckResponse"
    lists = service.method.add(name="List")
    lists.input_type, lists.output_type = f"{package}.HealthListRequest", f"{package}.HealthListResponse"
    return proto


def _reflection_v1alpha() -> FileDescriptorProto:
    return _copy(reflection_pb2.DESCRIPTOR, "grpc/reflection/v1alpha/reflection.proto")


def _reflection_v1() -> FileDescriptorProto:
    """Return the description of v1alpha under the names of v1."""
    proto = _copy(reflection_pb2.DESCRIPTOR, "grpc/reflection/v1/reflection.proto")
    proto.package = "grpc.reflection.v1"
    for message in proto.message_type:
        for field in (field for field in message.field if field.type_name):
            field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for service in proto.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    return proto


for _proto in (_health(), _reflection_v1(), _reflection_v1alpha()):
    POOL.AddSerializedFile(_proto.SerializeToString())

HEALTH: Final[ServiceDescriptor] = POOL.FindServiceByName("grpc.health.v1.Health")
REFLECTION_V1: Final[ServiceDescriptor] = POOL.FindServiceByName("grpc.reflection.v1.ServerReflection")
REFLECTION_V1ALPHA: Final[ServiceDescriptor] = POOL.FindServiceByName("grpc.reflection.v1alpha.ServerReflection")

# Message classes; made at run time, so they have no types.
HealthCheckResponse: Final[Any] = GetMessageClass(POOL.FindMessageTypeByName("grpc.health.v1.HealthCheckResponse"))
HealthListResponse: Final[Any] = GetMessageClass(POOL.FindMessageTypeByName("grpc.health.v1.HealthListResponse"))
ReflectionRequest: Final[Any] = reflection_pb2.ServerReflectionRequest
ReflectionResponse: Final[Any] = reflection_pb2.ServerReflectionResponse
