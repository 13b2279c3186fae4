"""Server reflection, `grpc.reflection.v1` beside `v1alpha`: what grpcurl and its friends ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool

from agenthive_server.plugin.api import Call

from . import wellknown
from .wire import Duplex

_TEXT: Final = 500


class ReflectionMethods:
    """Answers from the descriptors that are linked in; lists only the services that are answered for."""

    def __init__(self, services: Callable[[], Collection[str]]) -> None:
        self._services = services
        self._pools: tuple[DescriptorPool, ...] = (wellknown.POOL, Default())

    async def ServerReflectionInfo(self, stream: Duplex, call: Call) -> None:
        """Answer question after question."""
        async for request in stream:
            # v1 and v1alpha are the same bytes.
            question = wellknown.ReflectionRequest.FromString(request.SerializeToString())
            await stream.write(self._answer(question).SerializeToString())

    def _answer(self, question: Any) -> Any:
        answer = wellknown.ReflectionResponse(valid_host=question.host, original_request=question)
        kind = question.WhichOneof("message_request") or ""
        if kind == "list_services":
            for name in sorted(self._services()):
                answer.list_services_response.service.add(name=name)
            return answer
        for pool in self._pools:
            try:
                if kind == "all_extension_numbers_of_type":
                    _fill_extensions(pool, question.all_extension_numbers_of_type, answer)
                else:
                    files = _with_imports(_file(pool, kind, question), set())
                    answer.file_descriptor_response.file_descriptor_proto.extend(map(_described, files))
            except (KeyError, TypeError):
                continue
            return answer
        answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
        answer.error_response.error_message = f"not found: {kind or 'nothing was asked'}"[:_TEXT]
        return answer


def _file(pool: DescriptorPool, kind: str, question: Any) -> FileDescriptor:
    """Return the file that is asked for; raises `KeyError`."""
    if kind == "file_by_filename":
        return pool.FindFileByName(question.file_by_filename)
    if kind == "file_containing_symbol":
        return _file_of_symbol(pool, question.file_containing_symbol)
    if kind != "file_containing_extension":
        raise KeyError(kind)
    wanted = question.file_containing_extension
    extension: Any = pool.FindExtensionByNumber(
        pool.FindMessageTypeByName(wanted.containing_type), wanted.extension_number
    )
    file: FileDescriptor = extension.file
    return file


def _file_of_symbol(pool: DescriptorPool, symbol: str) -> FileDescriptor:
    """Return the file of a symbol. Raises `KeyError`; the pool itself does not find methods."""
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        service, _, method = symbol.rpartition(".")
        return pool.FindServiceByName(service).methods_by_name[method].containing_service.file


def _described(file: FileDescriptor) -> bytes:
    """Return the description of a file with the JSON names of its fields, as every protoc plugin is given it.

    The Python stubs come without: grpcurl would print `task_id` where everyone else has `taskId`.
    """
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    _name_fields(proto.message_type)
    return proto.SerializeToString()


def _name_fields(messages: Iterable[DescriptorProto]) -> None:
    for message in messages:
        for field in message.field:
            if not field.json_name:
                first, *others = field.name.split("_")
                field.json_name = first + "".join(word[:1].upper() + word[1:] for word in others)
        _name_fields(message.nested_type)


def _fill_extensions(pool: DescriptorPool, name: str, answer: Any) -> None:
    found = pool.FindAllExtensions(pool.FindMessageTypeByName(name))
    answer.all_extension_numbers_response.base_type_name = name
    answer.all_extension_numbers_response.extension_number.extend(sorted(field.number for field in found))


def _with_imports(file: FileDescriptor, seen: set[str]) -> Iterator[FileDescriptor]:
    """Yield a file and all it imports, the file first."""
    if file.name not in seen:
        seen.add(file.name)
        yield file
        for imported in file.dependencies:
            yield from _with_imports(imported, seen)
