"""Calls to the services of plugins: their stubs, lists over their pages, and patience for what takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agenthive.cli.call import take
from agenthive.cli.options import settings_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import typer
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client
    from agenthive.v1.production_service_pb2_grpc import ProductionServiceAsyncStub
    from agenthive.v1.security_service_pb2_grpc import SecurityServiceAsyncStub

LONG_SECONDS: Final = 3600.0
_PAGE: Final = 1000


def security(client: Client) -> SecurityServiceAsyncStub:
    """Return the methods of the plugin `security`."""
    from agenthive.v1.security_service_pb2_grpc import SecurityServiceStub

    return SecurityServiceStub(client._channel)


def production(client: Client) -> ProductionServiceAsyncStub:
    """Return the methods of the plugin `production`."""
    from agenthive.v1.production_service_pb2_grpc import ProductionServiceStub

    return ProductionServiceStub(client._channel)


def long_timeout(context: typer.Context) -> float:
    """Return the deadline of a call that takes as long as there is much to read: `--timeout`, else an hour."""
    timeout = settings_of(context).timeout
    return LONG_SECONDS if timeout is None else timeout


async def listed(
    client: Client, terminal: Terminal, method: Any, request: Any, field: str, limit: int = 0
) -> list[Any]:
    """Return the first `limit` items (0: all) of a list that comes in pages; a note tells people of the others."""
    request.page_size = min(limit, _PAGE) or _PAGE
    found, more = await take(_items(client, method, request, field), limit)
    if more:
        terminal.note(f"... and more; --limit 0 shows all, not only {limit}")
    return found


async def _items(client: Client, method: Any, request: Any, field: str) -> AsyncIterator[Any]:
    """Yield the items of all pages; a page may be empty and still not be the last."""
    while True:
        page = await client._call(method, request)
        for each in getattr(page, field):
            yield each
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def set_span(field: Duration, length: float) -> None:
    """Set a span in a request."""
    field.FromNanoseconds(round(length * 1e9))


def set_moment(field: Timestamp, at: float) -> None:
    """Set a time in a request."""
    field.FromNanoseconds(round(at * 1e9))
