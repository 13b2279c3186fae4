"""Running one command: a client that is connected, a terminal, and an exit code for whatever happens."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

import typer

from agenthive.cli.failures import ExitCode, Failure, exit_code, failure_document, sentence
from agenthive.cli.options import settings_of
from agenthive.cli.terminal import Terminal, let_go_of_stdout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeAlias, TypeVar

    import grpc

    from agenthive.access import AccessOptions
    from agenthive.cli.options import Settings
    from agenthive.client import Client

    T = TypeVar("T")
    Body: TypeAlias = Callable[[Client, Terminal], Awaitable[ExitCode | None]]

CALL_SECONDS: Final = 30.0
_PATIENCE: Final = 1.0  # seconds after the first refusal: a server that starts again is back by then


def run(context: typer.Context, body: Body) -> None:
    """Run the body of a command with a client that has reached the server; ends as `exit_code` says."""
    settings = settings_of(context)
    terminal = Terminal(settings)
    try:
        code = asyncio.run(_connected(settings, terminal, body))
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        let_go_of_stdout()
        code = ExitCode.BROKEN_PIPE
    if code:
        raise typer.Exit(code)


async def _connected(settings: Settings, terminal: Terminal, body: Body) -> ExitCode | None:
    from agenthive.errors import DeadlineExceeded, HiveError

    try:
        async with open_client(settings) as client:
            await reach(client, settings)
            return await body(client, terminal)
    except Failure as error:
        terminal.fail(str(error), failure_document(error))
        return error.code
    except DeadlineExceeded as error:
        if not error.message:
            error.message = "no answer in time"
        terminal.fail(sentence(error), failure_document(error))
        return exit_code(error)
    except HiveError as error:
        terminal.fail(sentence(error), failure_document(error))
        return exit_code(error)
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        terminal.fail(str(error), failure_document(Failure(str(error), ExitCode.USAGE, "USAGE")))
        return ExitCode.USAGE


def open_client(settings: Settings) -> Client:
    """Return a client for these settings; nothing is connected. Raises Failure when they make no sense together."""
    from agenthive.client import Client

    timeout = CALL_SECONDS if settings.timeout is None else settings.timeout
    try:
        return Client(settings.server, namespace=settings.namespace, timeout=timeout, **_access(settings))
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE, "USAGE") from None


def _access(settings: Settings) -> AccessOptions:
    return {
        "token_file": settings.token_file,
        "ca": settings.ca,
        "cert": settings.cert,
        "key": settings.key,
        "tls": settings.tls or None,
        "server_name": settings.server_name,
        "insecure": settings.insecure,
    }


async def reach(client: Client, settings: Settings) -> None:
    """Wait until the channel is connected. Raises Failure when nothing answers: calls would wait in silence."""
    from agenthive.transport_errors import why_unreachable

    limit = CALL_SECONDS if settings.timeout is None else settings.timeout
    try:
        async with asyncio.timeout(limit):
            connected = await _connect(client._channel)
    except TimeoutError:
        connected = False
    if not connected:
        why = await why_unreachable(client._channel, tls=client._access.tls)
        raise Failure(
            f"no connection to {settings.server}{f': {why}' if why else ''} (UNAVAILABLE);"
            " --server or AGENTHIVE_SERVER name another",
            ExitCode.UNAVAILABLE,
            "UNAVAILABLE",
        )


async def _connect(channel: grpc.aio.Channel) -> bool:
    """Return whether the channel connects; once it was refused, it gets a little more time and no more."""
    import grpc

    state = channel.get_state(try_to_connect=True)
    while state is grpc.ChannelConnectivity.IDLE or state is grpc.ChannelConnectivity.CONNECTING:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        return True
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            await channel.channel_ready()
            return True
    return False


async def take(items: AsyncIterator[T], limit: int) -> tuple[list[T], bool]:
    """Return the first `limit` items (0: all) and whether there are more."""
    taken: list[T] = []
    async with aclosing(items) as opened:  # type: ignore[type-var] # the client's iterators are generators
        async for item in opened:
            if limit and len(taken) == limit:
                return taken, True
            taken.append(item)
    return taken, False
