"""The yardstick: a bare grpc.aio unary echo, one process, no interceptor, uvloop where present."""

from __future__ import annotations

import asyncio
import sys

import grpc
from agenthive.v1 import orchestrator_service_pb2 as pb


async def serve() -> None:
    """Echo a message of about 135 bytes until killed; prints the port."""

    async def echo(request: pb.DelegateTaskRequest, _: object) -> pb.DelegateTaskRequest:
        return request

    handler = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=pb.DelegateTaskRequest.FromString,
        response_serializer=pb.DelegateTaskRequest.SerializeToString,
    )
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"SERVING 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def main() -> None:
    """Run on uvloop where it is installed."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
