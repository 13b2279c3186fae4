"""From gRPC to methods: reads the request, runs the chain around the method, answers or says why not.

The only module that knows gRPC's four call shapes. For each method of a service's descriptor it makes one handler,
which takes raw bytes, so that size and syntax are checked here and answered as typed errors. Methods are

    async def GetTask(self, request, call) -> response            unary
    def StreamEvents(self, request, call) -> AsyncIterator        server stream; yields messages or encoded bytes
    async def UploadBlob(self, requests, call) -> response        client stream; `requests` is an AsyncIterator
    async def Connect(self, stream, call) -> None                 both; `stream` is a Duplex
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from agenthive_server import telemetry
from agenthive_server.kernel.errors import BadRequest, DeadlineExceeded, KernelError, NotImplementedHere
from agenthive_server.plugin.calls import OK, Call, Outcome, Policy
from agenthive_server.plugin.services import plugin_off

from . import status
from .chain import Chain, Switch
from .validate import is_id
from .wire import Context, Duplex, Read, reader

NAMESPACE_KEY: Final = "agenthive-namespace"
DEFAULT_NAMESPACE: Final = "default"
MESSAGE_LIMIT: Final = 4 * 1024 * 1024

_CANCELLED: Final = Outcome("CANCELLED", "CANCELLED")
_LATE: Final = Outcome("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
_log = logging.getLogger(__name__)

T = TypeVar("T")


class Adapter(grpc.GenericRpcHandler):
    """Answers every call: methods of the services that were added, and UNIMPLEMENTED for all else."""

    def __init__(self, switch: Switch, *, message_limit: int = MESSAGE_LIMIT) -> None:
        self._switch = switch
        self._limit = message_limit
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._services: frozenset[str] = frozenset()
        # Calls that are being served, but for brief ones.
        self.open: set[Call] = set()
        # Services of plugins, also of those that are off, with the plugin that brings them.
        self.owners: Mapping[str, str] = {}

    @property
    def services(self) -> frozenset[str]:
        """Full names of the services that are answered for."""
        return self._services

    def add(self, service: ServiceDescriptor, parts: Iterable[object], policies: Mapping[str, Policy]) -> None:
        """Answer for a service; each method is an attribute of one of `parts`.

        Also while the server runs. A method without implementation stays UNIMPLEMENTED. Raises `ValueError` for a
        method without policy: such an RPC cannot be called.
        """
        self.add_as(service.full_name, service, parts, policies)

    def add_as(
        self, name: str, service: ServiceDescriptor, parts: Iterable[object], policies: Mapping[str, Policy]
    ) -> None:
        """Answer for a service under another name than its descriptor's."""
        parts = tuple(parts)
        handlers = {}
        for method in service.methods:
            path = f"/{name}/{method.name}"
            if path not in policies:
                raise ValueError(f"no policy for {path}")
            run = next((getattr(part, method.name) for part in parts if hasattr(part, method.name)), None)
            if run is not None:
                handlers[path] = self._handler(path, policies[path], method, run)
        self._handlers = self._handlers | handlers
        self._services |= {name}

    def remove(self, name: str) -> None:
        """Answer for a service no more; calls in flight finish."""
        self._handlers = {path: h for path, h in self._handlers.items() if not path.startswith(f"/{name}/")}
        self._services -= {name}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of a method; gRPC calls this for every RPC."""
        path = handler_call_details.method
        return self._handlers.get(path) or self._refusal(path)

    def _refusal(self, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        service = path[1:].partition("/")[0]
        what = "method" if service in self._services else "service"
        error = NotImplementedHere(f"this server has no {what} {path if what == 'method' else service!r}")
        if what == "service" and service in self.owners:
            error = plugin_off(self.owners[service], f"the service {service}")

        async def refuse(requests: object, context: Context) -> None:
            await _abort(context, error, ())

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _handler(
        self, path: str, policy: Policy, method: MethodDescriptor, run: Callable[..., Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        read = reader(GetMessageClass(method.input_type), self._limit)
        if not method.client_streaming and not method.server_streaming:
            return grpc.unary_unary_rpc_method_handler(self._unary(path, policy, read, run))
        if not method.client_streaming:
            return grpc.unary_stream_rpc_method_handler(self._server_stream(path, policy, read, run))
        if not method.server_streaming:
            return grpc.stream_unary_rpc_method_handler(self._client_stream(path, policy, read, run))
        return grpc.stream_stream_rpc_method_handler(self._duplex(path, policy, read, run))

    def _unary(self, path: str, policy: Policy, read: Read, run: Callable[..., Any]) -> Any:
        """The hot path: everything in one coroutine."""
        switch, brief = self._switch, policy.brief

        async def serve(raw: bytes, context: Context) -> bytes:
            call, refusal = _begin(path, policy, context)
            if not brief:
                self._open(call)
            if refusal is None:
                try:
                    call.request = read(raw)
                except KernelError as error:
                    refusal = error
            chain = switch.current
            entered = 0
            try:
                for before in chain.befores:
                    waits = before(call)
                    if waits is not None:
                        await waits
                    entered += 1
                if refusal is not None:
                    raise refusal
                answer: bytes = (await run(call.request, call)).SerializeToString()
            except BaseException as error:
                await _fail(call, context, chain, entered, error)
                raise
            finally:
                if not brief:
                    self.open.discard(call)
            await _finish(call, context, chain)
            return answer

        return serve

    def _server_stream(self, path: str, policy: Policy, read: Read, run: Callable[..., Any]) -> Any:
        async def serve(raw: bytes, context: Context) -> None:
            call, refusal = _begin(path, policy, context)

            async def body() -> None:
                write = context.write
                async with aclosing(run(call.request, call)) as items:
                    async for item in items:
                        await write(item if type(item) is bytes else item.SerializeToString())

            if refusal is None:
                try:
                    call.request = read(raw)
                except KernelError as error:
                    refusal = error
            await self._around(call, context, refusal, body)

        return serve

    def _client_stream(self, path: str, policy: Policy, read: Read, run: Callable[..., Any]) -> Any:
        async def serve(requests: object, context: Context) -> bytes:
            call, refusal = _begin(path, policy, context)

            async def body() -> bytes:
                answer: bytes = (await run(aiter(Duplex(context, read)), call)).SerializeToString()
                return answer

            return await self._around(call, context, refusal, body)

        return serve

    def _duplex(self, path: str, policy: Policy, read: Read, run: Callable[..., Any]) -> Any:
        async def serve(requests: object, context: Context) -> None:
            call, refusal = _begin(path, policy, context)
            await self._around(call, context, refusal, lambda: run(Duplex(context, read), call))

        return serve

    def _open(self, call: Call) -> None:
        call.task = asyncio.current_task()
        self.open.add(call)

    async def _around(
        self, call: Call, context: Context, refusal: KernelError | None, body: Callable[[], Awaitable[T]]
    ) -> T:
        """Serve a streaming method."""
        self._open(call)
        try:
            return await _around(call, context, self._switch.current, refusal, body)
        finally:
            self.open.discard(call)


def _begin(path: str, policy: Policy, context: Context) -> tuple[Call, KernelError | None]:
    metadata = context.invocation_metadata()
    namespace, refusal = DEFAULT_NAMESPACE, None
    for key, value in metadata:
        if key == NAMESPACE_KEY:
            if is_id(value):
                namespace = value
            else:
                refusal = BadRequest("a namespace has 1 to 128 letters, digits and `-_.`", field=NAMESPACE_KEY)
    call = Call(path, policy, context, metadata, namespace)
    call.remaining = context.time_remaining()
    return call, refusal


async def _around(
    call: Call, context: Context, chain: Chain, refusal: KernelError | None, body: Callable[[], Awaitable[T]]
) -> T:
    """Run the chain around a streaming method."""
    entered = 0
    try:
        for before in chain.befores:
            waits = before(call)
            if waits is not None:
                await waits
            entered += 1
        if refusal is not None:
            raise refusal
        answer = await body()
    except BaseException as error:
        await _fail(call, context, chain, entered, error)
        raise
    await _finish(call, context, chain)
    return answer


async def _finish(call: Call, context: Context, chain: Chain) -> None:
    call.answered = True
    await chain.leave(call, OK, len(chain.befores))
    if call.trailing:
        context.set_trailing_metadata(call.trailing)


async def _fail(call: Call, context: Context, chain: Chain, entered: int, error: BaseException) -> None:
    """Tell the chain and the caller; returns only when there is nobody to tell, and the error is to be raised again."""
    call.answered = True
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        if not call.expired and call.ended is None:
            await chain.leave(call, _gone(call), entered)
            return
        task.uncancel()
        late = DeadlineExceeded("the server's deadline for this call passed before an answer was ready")
        error = call.ended or late
    elif not isinstance(error, Exception | asyncio.CancelledError):
        return
    shown = status.seen_by_caller(error, call.request, call.call_id)
    if shown.reason == "INTERNAL":
        fields = {telemetry.CALL_ID: call.call_id, telemetry.METHOD: call.method}
        _log.error("rpc failed: %s", call.method, exc_info=error, extra=fields)
    reason = status.reason_of(shown)
    await chain.leave(call, Outcome(status.CODES[reason].name, reason, error), entered)
    await _abort(context, shown, call.trailing)


def _gone(call: Call) -> Outcome:
    """Return how a call ended whose caller went away: by its deadline, or because it cancelled."""
    late = call.deadline and asyncio.get_running_loop().time() >= call.deadline
    return _LATE if late else _CANCELLED


async def _abort(context: Context, error: KernelError, trailing: tuple[tuple[str, str | bytes], ...]) -> None:
    code, text, details = status.trailers(error)
    await context.abort(code, text, (*trailing, *details))
