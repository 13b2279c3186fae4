"""Every way a call can go wrong ends in a typed error, and the chain always hears of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from agenthive.v1 import blob_service_pb2 as blobs
from agenthive.v1 import orchestrator_service_pb2 as pb
from agenthive_server.kernel.errors import Conflict, OutcomeUnknown
from agenthive_server.plugin.api import Audience, Call, Load, Outcome, Policy, Stage
from agenthive_server.rpc.adapter import Adapter
from agenthive_server.rpc.chain import Switch

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Edge

Failure = Callable[[Any], Any]
SERVICE = pb.DESCRIPTOR.services_by_name["OrchestratorService"]
BLOBS = blobs.DESCRIPTOR.services_by_name["BlobService"]
GET_TASK = "/agenthive.v1.OrchestratorService/GetTask"
SHORT = Policy(audience=Audience.VIEWER, default_deadline=0.05, longest_deadline=0.05)


class Witness:
    """An interceptor that writes down what it sees; `ended` is set by the end of a call."""

    stage = Stage.OBSERVE

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.outcomes: list[Outcome] = []
        self.ended = asyncio.Event()

    def before(self, call: Call) -> None:
        self.calls.append(call)

    def after(self, call: Call, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.ended.set()


class Methods:
    """Methods that do what the test says."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = False
        self.error: BaseException | None = None

    async def GetTask(self, request: pb.GetTaskRequest, call: Call) -> pb.GetTaskResponse:
        self.entered.set()
        if self.error is not None:
            raise self.error
        return pb.GetTaskResponse()

    async def WaitTask(self, request: pb.WaitTaskRequest, call: Call) -> pb.WaitTaskResponse:
        self.entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return pb.WaitTaskResponse()

    async def StreamEvents(self, request: pb.StreamEventsRequest, call: Call) -> AsyncIterator[Any]:
        yield pb.StreamEventsResponse(cursor="a")
        yield pb.StreamEventsResponse(cursor="b").SerializeToString()
        self.entered.set()
        if self.error is not None:
            raise self.error
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled = True


async def test_a_message_that_is_too_large_is_refused_with_limit_and_size(edge: Edge, failure: Failure) -> None:
    large = pb.GetTaskRequest(task_id="x" * (4 * 1024 * 1024))
    failed = await failure(edge.orchestrator.GetTask(large))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert failed.metadata == {"limit": "4194304", "size": str(large.ByteSize())}
    assert failed.metadata["limit"] in failed.text
    assert failed.metadata["size"] in failed.text


async def test_bytes_that_are_no_message_are_refused(edge: Edge, failure: Failure) -> None:
    witness = Witness()
    edge.plug(witness)
    failed = await failure(edge.raw(GET_TASK, b"\xff\xff\xff"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert "agenthive.v1.GetTaskRequest" in failed.text
    # The chain was entered all the same: it may have refused the caller first.
    assert [call.request for call in witness.calls] == [None]
    assert [(o.code, o.reason) for o in witness.outcomes] == [("INVALID_ARGUMENT", "MALFORMED_MESSAGE")]


@pytest.mark.parametrize("path", ["/agenthive.v1.OrchestratorService/Nothing", "/no.such.Service/Get", "/x", "/"])
async def test_what_does_not_exist_is_unimplemented(edge: Edge, failure: Failure, path: str) -> None:
    failed = await failure(edge.raw(path))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


async def test_a_method_nobody_implements_is_unimplemented(edge: Edge, failure: Failure) -> None:
    edge.serve(SERVICE, Methods())
    failed = await failure(edge.orchestrator.CancelTask(pb.CancelTaskRequest(task_id="t")))
    assert failed.reason == "NOT_IMPLEMENTED"


async def test_a_service_that_was_removed_is_unimplemented(edge: Edge, failure: Failure) -> None:
    edge.adapter.remove(SERVICE.full_name)
    failed = await failure(edge.orchestrator.GetTask(pb.GetTaskRequest(task_id="t")))
    assert failed.reason == "NOT_IMPLEMENTED"
    assert SERVICE.full_name not in edge.adapter.services


@pytest.mark.parametrize("namespace", ["", "a b", "x" * 129, "a/b"])
async def test_a_namespace_that_is_none_is_refused(edge: Edge, failure: Failure, namespace: str) -> None:
    metadata = (("agenthive-namespace", namespace),)
    failed = await failure(edge.orchestrator.GetTask(pb.GetTaskRequest(task_id="t"), metadata=metadata))
    assert failed.details["BadRequest"].field_violations[0].field == "agenthive-namespace"


async def test_the_namespace_comes_from_the_metadata(edge: Edge) -> None:
    witness = Witness()
    edge.plug(witness)
    edge.serve(SERVICE, Methods())
    await edge.orchestrator.GetTask(pb.GetTaskRequest(), metadata=(("agenthive-namespace", "red"),))
    await edge.orchestrator.GetTask(pb.GetTaskRequest())
    assert [call.namespace for call in witness.calls] == ["red", "default"]


async def test_a_defect_is_internal_and_tells_the_caller_only_where_to_look(
    edge: Edge, failure: Failure, caplog: pytest.LogCaptureFixture
) -> None:
    methods = Methods()
    methods.error = ValueError("secret")
    edge.serve(SERVICE, methods)
    failed = await failure(edge.orchestrator.GetTask(pb.GetTaskRequest()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in failed.text
    assert failed.metadata["call_id"] == failed.trailing["agenthive-call-id"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.__dict__["call_id"] == failed.metadata["call_id"]
    assert "secret" in str(record.exc_info)


async def test_a_cancellation_from_within_is_a_defect_and_not_silence(edge: Edge, failure: Failure) -> None:
    methods = Methods()
    methods.error = asyncio.CancelledError()
    edge.serve(SERVICE, methods)
    assert (await failure(edge.orchestrator.GetTask(pb.GetTaskRequest()))).code is grpc.StatusCode.INTERNAL


async def test_every_answer_carries_a_call_id(edge: Edge) -> None:
    edge.serve(SERVICE, Methods())
    call = edge.orchestrator.GetTask(pb.GetTaskRequest())
    await call
    first = dict(await call.trailing_metadata())["agenthive-call-id"]
    call = edge.orchestrator.GetTask(pb.GetTaskRequest())
    await call
    assert first != dict(await call.trailing_metadata())["agenthive-call-id"]


async def test_a_call_without_deadline_gets_the_default_one(edge: Edge, failure: Failure) -> None:
    methods, witness = Methods(), Witness()
    edge.plug(witness)
    edge.serve(SERVICE, methods, WaitTask=SHORT)
    failed = await failure(edge.orchestrator.WaitTask(pb.WaitTaskRequest(task_id="t")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert methods.cancelled
    assert [o.code for o in witness.outcomes] == ["DEADLINE_EXCEEDED"]


async def test_a_deadline_beyond_the_longest_is_cut(edge: Edge, failure: Failure) -> None:
    edge.serve(SERVICE, Methods(), WaitTask=SHORT)
    failed = await failure(edge.orchestrator.WaitTask(pb.WaitTaskRequest(task_id="t"), timeout=60))
    assert failed.reason == "DEADLINE_EXCEEDED"


async def test_a_deadline_of_the_caller_reaches_the_chain_as_such(edge: Edge) -> None:
    methods, witness = Methods(), Witness()
    edge.plug(witness)
    edge.serve(SERVICE, methods)
    with pytest.raises(grpc.aio.AioRpcError):
        await edge.orchestrator.WaitTask(pb.WaitTaskRequest(task_id="t"), timeout=0.05)
    await witness.ended.wait()
    assert methods.cancelled
    assert [o.code for o in witness.outcomes] == ["DEADLINE_EXCEEDED"]


async def test_a_cancellation_reaches_the_method_and_the_chain(edge: Edge) -> None:
    methods, witness = Methods(), Witness()
    edge.plug(witness)
    edge.serve(SERVICE, methods)
    call = edge.orchestrator.WaitTask(pb.WaitTaskRequest(task_id="t"))
    await methods.entered.wait()
    call.cancel()
    await witness.ended.wait()
    assert methods.cancelled
    assert [o.code for o in witness.outcomes] == ["CANCELLED"]
    assert edge.built_in.limit.in_flight(Load.UNARY) == 0


async def test_a_stream_passes_messages_and_bytes_on_and_hears_of_cancellation(edge: Edge) -> None:
    methods, witness = Methods(), Witness()
    edge.plug(witness)
    edge.serve(SERVICE, methods)
    call = edge.orchestrator.StreamEvents(pb.StreamEventsRequest())
    assert [(await call.read()).cursor, (await call.read()).cursor] == ["a", "b"]
    await methods.entered.wait()
    call.cancel()
    await witness.ended.wait()
    assert methods.cancelled
    assert [o.code for o in witness.outcomes] == ["CANCELLED"]


async def test_an_error_in_the_middle_of_a_stream_is_typed(edge: Edge, failure: Failure) -> None:
    methods = Methods()
    methods.error = Conflict("no")
    edge.serve(SERVICE, methods)
    failed = await failure(edge.orchestrator.StreamEvents(pb.StreamEventsRequest()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "CONFLICT")


async def test_streams_from_the_client_are_checked_message_by_message(edge: Edge, failure: Failure) -> None:
    async def requests(*raw: bytes) -> AsyncIterator[bytes]:
        for data in raw:
            yield data

    upload: Any = edge.channel.stream_unary("/agenthive.v1.BlobService/UploadBlob")
    assert (await failure(upload(requests(b"", b"\xff\xff")))).reason == "MALFORMED_MESSAGE"
    assert (await failure(upload(requests(b"", bytes(4 * 1024 * 1024 + 1))))).reason == "MESSAGE_TOO_LARGE"


async def test_an_unknown_outcome_may_be_repeated_when_there_is_a_request_id(edge: Edge, failure: Failure) -> None:
    class Unlucky:
        async def CancelTask(self, request: pb.CancelTaskRequest, call: Call) -> pb.CancelTaskResponse:
            raise OutcomeUnknown("the connection to the database broke")

    edge.serve(SERVICE, Unlucky())
    failed = await failure(edge.orchestrator.CancelTask(pb.CancelTaskRequest()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNKNOWN, "OUTCOME_UNKNOWN")
    failed = await failure(edge.orchestrator.CancelTask(pb.CancelTaskRequest(request_id="r")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


def test_an_rpc_without_policy_cannot_be_served() -> None:
    with pytest.raises(ValueError, match=r"no policy for /agenthive\.v1\.BlobService/UploadBlob"):
        Adapter(Switch()).add(BLOBS, (), {})
